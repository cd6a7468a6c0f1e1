"""The image folder source: reading, splitting, broken samples, clear errors."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from paella_jax.data.folder import FolderSource, load_image


def fill(folder, count, broken=()):
    for index in range(count):
        file = folder / f"{index:03d}.png"
        Image.new("RGB", (40, 20), (index, 0, 0)).save(file)
        file.with_suffix(".txt").write_text(f"caption {index}\n")
        if index in broken:
            file.write_bytes(b"not a picture")


def test_reads_images_with_captions_and_splits(tmp_path):
    fill(tmp_path, 40)
    train, validation = (FolderSource(str(tmp_path), 16, s) for s in ("train", "validation"))
    assert (len(train), len(validation)) == (38, 2)
    assert not set(train.files) & set(validation.files)
    sample = train[3]
    assert sample["caption"] == "caption 3" and sample["image"].shape == (16, 16, 3)
    np.testing.assert_array_equal(sample["image"][8, 8], [3, 0, 0])


def test_crop_is_central(tmp_path):
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    Image.fromarray(image).save(tmp_path / "a.png")
    assert (load_image(tmp_path / "a.png", 10)[:, 2:8] == 200).all()


def test_a_broken_sample_is_replaced_and_counted(tmp_path, capsys):
    fill(tmp_path, 30, broken={4})
    source = FolderSource(str(tmp_path), 16)
    assert source[4]["caption"] == "caption 5"
    assert len(source.broken) == 1 and "004.png" in capsys.readouterr().out


def test_too_many_broken_samples_stop_the_run(tmp_path):
    fill(tmp_path, 10, broken=set(range(6)))
    with pytest.raises(RuntimeError, match="are broken"):
        FolderSource(str(tmp_path), 16)[0]


def test_errors_name_the_folder(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        FolderSource(str(tmp_path / "nothing"), 16)
    with pytest.raises(ValueError, match="has no images"):
        FolderSource(str(tmp_path), 16)
