"""The one reader of images: the value of each mode, masks, maps, damaged and large files."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from paella_jax.images.decode import ImageError, shown_size
from paella_jax.images.notes import Notes
from paella_jax.images.read import read_classes, read_image, read_mask, read_rgb

HIDDEN = (0, 255, 0)  # the colour under transparent pixels, which nobody may see
RED = (255, 0, 0)


def rgba(alpha=(255, 0, 128)):
    """Red, hidden green, and half red."""
    image = Image.new("RGBA", (3, 1))
    image.putdata([(*RED, alpha[0]), (*HIDDEN, alpha[1]), (*RED, alpha[2])])
    return image


def grey(values, dtype):
    return Image.fromarray(np.array([values], dtype))


def palette(**transparency):
    """Entries 0 red, 1 green, 2 red; what is transparent as PNG stores it."""
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *HIDDEN, *RED])
    image.putdata([0, 1, 2])
    image.info.update(transparency)
    return image


def la(values, alphas):
    image = Image.new("LA", (len(values), 1))
    image.putdata(list(zip(values, alphas, strict=True)))
    return image


def with_key(image, key):
    image.info["transparency"] = key
    return image


def saved(image, folder, suffix, **options):
    """The file, with the transparency that the image's `info` names."""
    file = folder / f"image{suffix}"
    image.save(file, **options)
    return file


def pixels(source, **options):
    return np.asarray(read_rgb(source, notes=Notes(), **options))[0].tolist()


def channel(source):
    """Red, where all three are equal."""
    values = np.asarray(read_rgb(source, notes=Notes()))[0]
    assert (values == values[:, :1]).all()
    return values[:, 0].tolist()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_transparent_pixels_show_the_background(tmp_path, suffix):
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    file = saved(rgba(), tmp_path, suffix, **options)
    white = [[255, 0, 0], [255, 255, 255], [255, 127, 127]]
    assert pixels(file) == white
    assert pixels(file, background="#000000") == [[255, 0, 0], [0, 0, 0], [128, 0, 0]]
    assert pixels(rgba()) == white


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: la([0, 200, 100], [255, 0, 51]), [0, 255, 224]),
        (lambda: with_key(Image.fromarray(np.array([[0, 7, 9]], np.uint8)), 7), [0, 255, 9]),
        (lambda: with_key(grey([0, 7, 65535], np.uint16), 7), [0, 255, 255]),
        (lambda: with_key(grey([0, 7, 0], np.uint16), 7), [0, 255, 0]),
    ],
)
def test_transparency_of_grey_images(tmp_path, make, expected):
    """LA, and one transparent grey of L and of I;16."""
    image = make()
    options = {k: v for k, v in image.info.items() if k == "transparency"}
    file = saved(image, tmp_path, ".png", **options)
    with Image.open(file) as opened:
        assert opened.mode == image.mode and opened.has_transparency_data
    assert channel(file) == expected


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\x80"])
def test_transparency_of_palettes(tmp_path, transparency):
    """One entry, or an alpha for each; from PNG, and in memory."""
    half = [255, 0, 0] if transparency == 1 else [255, 127, 127]
    expected = [[255, 0, 0], [255, 255, 255], half]
    assert pixels(saved(palette(), tmp_path, ".png", transparency=transparency)) == expected
    assert pixels(palette(transparency=transparency)) == expected


def test_rarer_kinds_of_transparency(tmp_path):
    keyed = Image.new("RGB", (2, 1))
    keyed.putdata([RED, HIDDEN])
    assert pixels(saved(keyed, tmp_path, ".png", transparency=HIDDEN)) == [[255, 0, 0], [255] * 3]
    gif = saved(palette(), tmp_path, ".gif", transparency=1)
    assert pixels(gif) == [[255, 0, 0], [255] * 3, [255, 0, 0]]
    assert pixels(rgba().convert("RGBa")) == pixels(rgba())
    pair = la([0, 200], [255, 0])
    assert pixels(pair.convert("La")) == pixels(pair) == [[0] * 3, [255] * 3]
    indexed = palette().convert("PA")
    indexed.putalpha(Image.fromarray(np.array([[255, 0, 128]], np.uint8)))
    assert indexed.mode == "PA"
    assert pixels(indexed) == [[255, 0, 0], [255] * 3, [255, 127, 127]]


def test_opaque_alpha_changes_nothing(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    opaque = Image.fromarray(np.dstack([noise, np.full((5, 7), 255, np.uint8)]))
    np.testing.assert_array_equal(np.asarray(read_rgb(opaque)), noise)
    assert capsys.readouterr().out == ""


def test_grey_of_sixteen_bits_is_scaled_by_its_format(tmp_path):
    """65535 is white, whatever the image's own largest value is."""
    values = [0, 128, 129, 257, 32768, 65535]
    for suffix in (".png", ".tif"):
        file = saved(grey(values, np.uint16), tmp_path, suffix)
        assert channel(file) == [0, 0, 1, 1, 128, 255]
    assert channel(grey([0, 1000], np.uint16)) == [0, 4]
    assert channel(grey([0, 1000], ">u2")) == [0, 4]


@pytest.mark.parametrize(
    "values, dtype, expected",
    [
        ([0, 40, 100], np.int32, [0, 102, 255]),
        ([-1000, 0, 3000], np.int32, [0, 64, 255]),
        ([-(2**31), 0, 2**31 - 1], np.int32, [0, 128, 255]),
        ([5, 5], np.int32, [0, 0]),
        ([0.25, 0.5, 1.0], np.float32, [64, 128, 255]),
        ([0.0, 51.0, 255.0], np.float32, [0, 51, 255]),
        ([-1.0, 0.0, 3.0], np.float32, [0, 64, 255]),
    ],
)
def test_grey_of_thirty_two_bits_is_scaled_by_its_own_range(tmp_path, values, dtype, expected):
    file = saved(grey(values, dtype), tmp_path, ".tif")
    with Image.open(file) as opened:
        assert opened.mode in "IF"
    assert channel(file) == channel(grey(values, dtype)) == expected


def test_values_that_are_not_finite_are_refused(tmp_path):
    file = saved(grey([0, np.nan], np.float32), tmp_path, ".tif")
    with pytest.raises(ImageError, match=r"image\.tif .*not finite"):
        read_rgb(file)


def test_other_modes(tmp_path):
    cmyk = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert pixels(saved(cmyk, tmp_path, ".tif")) == pixels(cmyk) == [[255, 0, 0]]
    (jpeg,) = pixels(saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), tmp_path, ".jpg"))
    np.testing.assert_allclose(jpeg, RED, atol=6)
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert channel(saved(bits, tmp_path, ".png")) == [0, 255]
    assert pixels(saved(palette(), tmp_path, ".png")) == [[255, 0, 0], [0, 255, 0], [255, 0, 0]]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_files_are_what_pil_reads(tmp_path, capsys, mode, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    file = saved(Image.fromarray(noise).convert(mode), tmp_path, suffix)
    with Image.open(file) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_rgb(file)), expected)
    np.testing.assert_array_equal(read_image(file), expected.astype(np.float32) / 255.0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_cameras_are_held_in_eight_ways(tmp_path, turn, suffix):
    """Stored so that turned upright every image has its white quarter at the top left."""
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :16] = 255
    undo = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud,
            5: lambda x: x.T, 6: np.rot90, 7: lambda x: np.rot90(x, 2).T,
            8: lambda x: np.rot90(x, -1)}  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(undo[turn](upright)))
    exif = image.getexif()
    exif[0x0112] = turn
    file = saved(image, tmp_path, suffix, exif=exif)
    shown = np.asarray(read_rgb(file))[..., 0]
    assert shown.shape == (16, 32) and shown_size(file, Notes()) == (32, 16)
    assert shown[2:6, 4:12].min() > 200 and shown[10:].max() < 50 and shown[:, 20:].max() < 50


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage that is no TIFF",
                                  b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_broken_exif_leaves_the_image_as_stored(tmp_path, exif):
    file = saved(Image.new("RGB", (4, 2), RED), tmp_path, ".png", exif=exif)
    assert pixels(file) == [[255, 0, 0]] * 4
    assert shown_size(file, Notes()) == (4, 2)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_of_several_images_the_first_is_taken(tmp_path, capsys, suffix):
    first, second = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if suffix == ".webp" else {}
    file = saved(first, tmp_path, suffix, save_all=True, append_images=[second], **options)
    assert pixels(file) == [[255, 0, 0]] * 4
    notes = Notes("data.folder x")
    for _ in range(3):
        read_rgb(file, notes=notes)
    told = capsys.readouterr().out
    assert told.count("holds several images: its first one is used (data.folder x") == 1


def test_a_kind_is_told_once_for_a_source(tmp_path, capsys):
    notes = Notes("data.folder x")
    for number in range(3):
        file = tmp_path / f"{number}.png"
        rgba().save(file)
        read_rgb(file, "#0000ff", notes)
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and "0.png is transparent" in told and "(0, 0, 255)" in told


def test_damaged_files_are_refused_by_name(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for suffix in (".png", ".jpg", ".gif", ".bmp", ".webp", ".tif"):
        file = saved(Image.fromarray(noise), tmp_path, suffix)
        whole = file.read_bytes()
        for length in (0, 10, len(whole) // 2, len(whole) - 40):
            file.write_bytes(whole[:length])
            with pytest.raises(ImageError, match=rf"image\{suffix} is not a readable image"):
                read_rgb(file)
    with pytest.raises(ImageError, match="there is no image"):
        read_rgb(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="is not a readable image"):
        read_rgb(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_any_damage_is_an_image_error(tmp_path, monkeypatch):
    """Random bytes changed: an image or an `ImageError`, nothing else."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # or a changed size takes seconds
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    rng = np.random.default_rng(1)
    refused = 0
    for suffix in (".png", ".jpg", ".gif", ".bmp", ".webp", ".tif"):
        file = saved(Image.fromarray(noise), tmp_path, suffix)
        whole = np.frombuffer(file.read_bytes(), np.uint8)
        for _ in range(25):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 6)] = rng.integers(0, 256, 6)
            file.write_bytes(damaged.tobytes())
            for read in (read_rgb, lambda f: shown_size(f, Notes()), read_mask):
                try:
                    read(file)
                except ImageError:
                    refused += 1
    assert refused > 60


def bomb(width, height):
    """A PNG whose header promises pixels that its few bytes do not hold."""
    chunk = lambda kind, data: (struct.pack(">I", len(data)) + kind + data
                                + struct.pack(">I", zlib.crc32(kind + data)))  # fmt: skip
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_too_many_pixels_are_refused_by_the_header(tmp_path):
    """The message has the size and the limit; nothing is decoded."""
    file = tmp_path / "big.png"
    file.write_bytes(bomb(40_000, 30_000))
    assert os.path.getsize(file) < 100
    for read in (read_rgb, read_mask, lambda f: shown_size(f, Notes())):
        with pytest.raises(ImageError, match=r"too large: .*1200000000 pixels.* 178956970 pixels"):
            read(file)


def test_masks_by_grey_and_by_alpha(tmp_path):
    """White is marked; of a layer with transparent pixels, the paint on it."""
    read = lambda image, suffix=".png": read_mask(saved(image, tmp_path, suffix))[0].tolist()
    assert read(grey([0, 127, 128, 255], np.uint8)) == [False, False, True, True]
    assert read(grey([0, 300, 600], np.uint16)) == [False, False, True]
    assert read(grey([0, 1], np.int32), ".tif") == [False, True]
    assert read(grey([0, 0.2, 1], np.float32), ".tif") == [False, False, True]
    assert read(la([255, 255, 0], [255, 0, 255])) == [True, False, False]
    assert read(la([0, 0, 0], [255, 0, 200])) == [True, False, True]  # painted in black
    assert read(la([255, 0], [255, 255])) == [True, False]  # opaque alpha says nothing
    red = rgba((255, 0, 0))
    assert read(red) == [True, False, False]
    with pytest.raises(ImageError, match="give \\[height, width\\]"):
        read_mask(np.zeros((2, 2, 3)))
    with pytest.raises(ImageError, match="holds NaN or infinity"):
        read_mask(np.array([[0.0, np.nan]]))


def test_maps_of_classes(tmp_path):
    classes = [0, 2, 1]
    assert read_classes(saved(grey(classes, np.uint8), tmp_path, ".png")).tolist() == [classes]
    assert read_classes(saved(grey(classes, np.uint16), tmp_path, ".png")).tolist() == [classes]
    indexed = palette()
    indexed.putdata(classes)
    assert read_classes(saved(indexed, tmp_path, ".png")).tolist() == [classes]
    np.save(tmp_path / "map.npy", np.array([classes]))
    assert read_classes(tmp_path / "map.npy").tolist() == [classes]
    with pytest.raises(ImageError, match="map in mode RGB; save it in grey"):
        read_classes(saved(Image.new("RGB", (2, 2)), tmp_path, ".png"))


@pytest.mark.parametrize("shape", ["(1099511627776,)", "(True, None)", "(", "(2,)"])
def test_damaged_arrays_of_classes(tmp_path, shape):
    text = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    file = tmp_path / "map.npy"
    for data in (b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.encode() + b"\0" * 8, b""):
        file.write_bytes(data)
        with pytest.raises(ImageError, match=r"map\.npy"):
            read_classes(file)
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}]), allow_pickle=True)
    file.write_bytes(pickled.getvalue())
    with pytest.raises(ImageError, match="no array of numbers"):
        read_classes(file)
