"""Images that visitors give, files that they are given, and the page's address."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paella_jax.images.decode import ImageError
from paella_jax.serving.address import AddressError, address_of, listen
from paella_jax.serving.limits import Limits
from paella_jax.serving.sources import for_editor, kept_file, mask_of, read_upload


def plain(value=0):
    image = Image.new("RGB", (8, 8), (value, value, value))
    image.info["record"] = "what drew it"
    return image


def png_of(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


PNG = png_of(Image.new("RGB", (8, 8), "white"))


def test_uploads_are_read_as_every_image(tmp_path):
    file = tmp_path / "image.png"
    Image.new("RGBA", (40, 20), (255, 0, 0, 0)).save(file)
    image = read_upload(file, Limits())
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255)
    Image.new("RGB", (3000, 100)).save(file)
    assert read_upload(file, Limits()).size == (1536, 51)


@pytest.mark.parametrize(
    "limits, content, message",
    [
        (Limits(), b"not an image", "the uploaded file is not a readable image"),
        (Limits(), PNG[: len(PNG) // 2], "the uploaded file is not a readable image"),
        (Limits(pixels=60), PNG, "the image is 8x8; give at most 0 megapixels"),
        (Limits(megabytes=0), PNG, "larger than 0 MB"),
    ],
)
def test_uploads_that_are_refused(tmp_path, limits, content, message):
    file = tmp_path / "secret_place.png"
    file.write_bytes(content)
    with pytest.raises(ImageError, match=message) as error:
        read_upload(file, limits)
    assert "secret_place" not in str(error.value)


def test_paint_becomes_a_mask_of_the_image_s_size():
    shown = for_editor(plain())
    assert shown["background"].size == (448, 448) and shown["layers"] == []
    layer = Image.new("RGBA", (448, 448), (0, 0, 0, 0))
    layer.paste((224, 33, 138, 255), (60, 0, 100, 20))
    other = Image.new("RGBA", (448, 448), (0, 0, 0, 0))
    other.paste((224, 33, 138, 255), (440, 440, 448, 448))
    mask = np.asarray(mask_of({"layers": [layer, other]}, (8, 8)))
    assert mask[0, 1] == mask[7, 7] == 255 and (mask > 0).sum() == 2
    assert mask_of({"layers": []}, (8, 8)) is None is mask_of(None, (8, 8))


def test_an_image_has_one_file_however_often_it_is_shown(tmp_path):
    file = kept_file(plain(1), tmp_path)
    written = Path(file).stat().st_mtime_ns
    assert kept_file(plain(1), tmp_path) == file != kept_file(plain(2), tmp_path)
    assert Path(file).stat().st_mtime_ns == written
    assert not Image.open(file).info.get("record")


# --- the address


def test_a_taken_port_is_told():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert address_of(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(AddressError, match=f"port {port} is taken.*another --port"):
            listen("127.0.0.1", port)
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize(
    "host, port, message",
    [
        ("127.0.0.1", 70_000, "--port must be from 0 to 65535"),
        ("192.0.2.1", 0, "192.0.2.1 is no address of this machine"),
        ("no such host", 0, "--host no such host is not known"),
    ],
)
def test_addresses_that_cannot_be_served(host, port, message):
    with pytest.raises(AddressError, match=message):
        listen(host, port)
