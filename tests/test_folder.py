"""The image folder source: captions, crops, splitting, broken samples, clear errors."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import small
from PIL import Image

from paella_jax.config import ConfigError
from paella_jax.data.build import make_source
from paella_jax.data.captions import list_captioned
from paella_jax.data.folder import FolderSource
from paella_jax.data.loader import make_iterator
from paella_jax.data.transform import ConditionedImageTransform
from paella_jax.reports.image_sets import open_images


def fill(folder, count, broken=()):
    for index in range(count):
        file = folder / f"{index:03d}.png"
        Image.new("RGB", (40, 20), (index, 0, 0)).save(file)
        file.with_suffix(".txt").write_text(f"caption {index}\n")
        if index in broken:
            file.write_bytes(b"not a picture")


def fill_gradients(folder, count):
    """Images in which every crop differs."""
    for index in range(count):
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[..., 0], picture[..., 1] = np.mgrid[:40, :60] * 4
        picture[..., 2] = index
        Image.fromarray(picture).save(folder / f"{index:03d}.png")
        (folder / f"{index:03d}.txt").write_text(f"caption {index}")


def write_table(folder, rows):
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def test_reads_images_with_captions_and_splits(tmp_path):
    fill(tmp_path, 40)
    train, validation = (FolderSource(str(tmp_path), 16, s) for s in ("train", "validation"))
    assert (len(train), len(validation)) == (38, 2)
    assert not set(train.files) & set(validation.files)
    sample = train[3]
    assert sample["caption"] == "caption 3" and sample["image"].shape == (16, 16, 3)
    np.testing.assert_array_equal(sample["image"][8, 8], [3, 0, 0])


def test_micro_conditions_tell_the_file_and_the_crop(tmp_path):
    """Width and height of the file (60 x 40), top and left of the crop, aMUSEd's score."""
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.mgrid[:40, :60] * 4
    Image.fromarray(picture).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a gradient")
    centred = FolderSource(str(tmp_path), 20)[0]  # 30 x 20 pixels, of which 5 on the left are cut
    np.testing.assert_array_equal(centred["micro_conds"], [60, 40, 0, 5, 6])
    source = FolderSource(str(tmp_path), 20, crop="random", resize=40)
    drawn = source.draw(0, np.random.default_rng(3))
    top, left = drawn["micro_conds"][2:4].astype(int)
    assert 0 <= top <= 20 and 0 <= left <= 40 and (top, left) != (10, 20)
    np.testing.assert_array_equal(drawn["image"][0, 0, :2], [4 * top, 4 * left % 256])
    transform = ConditionedImageTransform(None, 0, micro_conds=True)
    np.testing.assert_array_equal(transform(drawn)["micro_conds"], drawn["micro_conds"])
    plain = {"image": np.zeros((16, 24, 3), np.uint8), "caption": ""}
    np.testing.assert_array_equal(transform(plain)["micro_conds"], [24, 16, 0, 0, 6])


def test_table_as_jsonl_and_csv(tmp_path):
    fill(tmp_path, 4)
    rows = [{"file_name": f"00{i}.png", "text": f"row {i}"} for i in (2, 0)]
    write_table(tmp_path, rows)
    source = FolderSource(str(tmp_path), 16)
    assert [source[i]["caption"] for i in range(len(source))] == ["row 2", "row 0"]
    (tmp_path / "metadata.jsonl").unlink()
    text = 'file_name,caption\n001.png,"a cat, asleep"\n'
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8-sig")
    source = FolderSource(str(tmp_path), 16)
    assert len(source) == 1 and source[0]["caption"] == "a cat, asleep"
    assert source[0]["image"][0, 0, 0] == 1


def test_crop_is_central(tmp_path):
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    Image.fromarray(image).save(tmp_path / "a.png")
    pixels = FolderSource(str(tmp_path), 10, captions=False)[0]["image"]
    assert (pixels[:, 2:8] == 200).all()


def test_photos_are_turned_upright(tmp_path):
    image = Image.new("RGB", (20, 20))
    image.paste((255, 255, 255), (0, 0, 20, 10))  # white above, before the turn
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    image.save(tmp_path / "a.png", exif=exif)
    pixels = FolderSource(str(tmp_path), 20, captions=False)[0]["image"]
    assert pixels[2:8].max() == 0 and pixels[12:18].min() == 255


def test_resize_before_the_crop(tmp_path):
    fill_gradients(tmp_path, 1)
    whole, part = (FolderSource(str(tmp_path), 20, resize=r)[0]["image"] for r in (0, 40))
    height = lambda pixels: np.ptp(pixels[..., 0].astype(int))
    assert part.shape == whole.shape == (20, 20, 3)
    assert height(part) == 19 * 4 and height(whole) > 140


def batches(source, count, threads=2, **options):
    transform = lambda sample: {"image": sample["image"], "index": np.asarray(sample["index"])}
    iterator = make_iterator(source, transform, batch_size=4, seed=5, threads=threads, **options)
    return [next(iterator) for _ in range(count)]


def same(a, b):
    return all(np.array_equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


def test_random_crops_differ_by_epoch_and_repeat_exactly(tmp_path):
    fill_gradients(tmp_path, 6)
    source = FolderSource(str(tmp_path), 16, crop="random", resize=32)
    drawn = batches(source, 12)
    crops = {}
    for batch in drawn:
        for index, image in zip(batch["index"], batch["image"], strict=True):
            crops.setdefault(int(index), set()).add(image.tobytes())
    assert len(crops) == 6 and all(len(different) >= 6 for different in crops.values())
    assert same(drawn, batches(source, 12, threads=0))
    assert same(drawn, batches(source, 12, threads=5))
    assert same(drawn[7:], batches(source, 5, start=7))
    other = FolderSource(str(tmp_path), 16, crop="random", resize=32)
    assert same(drawn, batches(other, 12))
    for rows in ([0, 1], [2, 3], [1, 2], [3]):
        for whole, part in zip(drawn[2:], batches(source, 3, start=2, rows=rows), strict=False):
            np.testing.assert_array_equal(part["image"], whole["image"][rows])


def test_validation_samples_are_not_random(tmp_path):
    fill_gradients(tmp_path, 3)
    source = FolderSource(str(tmp_path), 16, crop="random", resize=32, flip=True)
    np.testing.assert_array_equal(source[1]["image"], source[1]["image"])
    np.testing.assert_array_equal(
        source[1]["image"], FolderSource(str(tmp_path), 16, resize=32)[1]["image"]
    )


def test_flip_mirrors_half_of_the_drawn_samples(tmp_path):
    fill_gradients(tmp_path, 2)
    source = FolderSource(str(tmp_path), 16, flip=True)
    images = np.concatenate([batch["image"] for batch in batches(source, 16)]).astype(int)
    mirrored = images[:, 0, 0, 1] > images[:, 0, -1, 1]
    assert 16 < mirrored.sum() < 48


def test_a_broken_sample_is_replaced_and_counted(tmp_path, capsys):
    fill(tmp_path, 30, broken={4})
    source = FolderSource(str(tmp_path), 16)
    assert source[4]["caption"] == "caption 5"
    assert len(source.broken) == 1 and "004.png" in capsys.readouterr().out


def test_too_many_broken_samples_stop_the_run(tmp_path):
    fill(tmp_path, 10, broken=set(range(6)))
    with pytest.raises(RuntimeError, match="are broken"):
        FolderSource(str(tmp_path), 16)[0]


def test_a_missing_caption_or_file_is_skipped_and_reported(tmp_path, capsys):
    fill(tmp_path, 30)
    (tmp_path / "007.txt").unlink()
    source = FolderSource(str(tmp_path), 16)
    assert source[7]["caption"] == "caption 8"
    assert "007.png: no caption" in capsys.readouterr().out
    rows = [{"file_name": f"{i:03d}.png", "text": f"row {i}"} for i in range(30)]
    write_table(tmp_path, [{"file_name": "gone.png", "text": "x"}, *rows])
    source = FolderSource(str(tmp_path), 16)
    assert source[0]["caption"] == "row 0" and len(source.broken) == 1
    assert "gone.png: no such file" in capsys.readouterr().out


def test_images_alone_need_no_captions(tmp_path):
    fill(tmp_path, 5)
    for file in tmp_path.glob("*.txt"):
        file.unlink()
    assert FolderSource(str(tmp_path), 16, captions=False)[2]["caption"] == ""
    with pytest.raises(ValueError, match=r"5 images without captions.*data\.captions=False"):
        FolderSource(str(tmp_path), 16)


def test_captions_of_any_case_are_found(tmp_path):
    """Cameras and old systems write IMAGE.PNG and IMAGE.TXT."""
    fill(tmp_path, 5)
    for place, suffix in enumerate((".TXT", ".Txt", ".CAPTION", ".caption")):
        (tmp_path / f"00{place}.txt").rename(tmp_path / f"00{place}{suffix}")
        (tmp_path / f"00{place}{suffix}").write_text(suffix)
    (tmp_path / "003.TXT").write_text("before .caption")
    (tmp_path / "004.TXT").write_text("after .txt")
    left_out = Counter()
    samples = list_captioned(tmp_path, left_out)
    said = [sample.read_caption() for sample in samples]
    assert said[:4] == [".TXT", ".Txt", ".CAPTION", "before .caption"]
    assert samples[4].text_file == tmp_path / "004.txt"
    assert left_out == {".caption": 1, ".txt": 1}
    images = open_images("--images", str(tmp_path), captions=True)
    assert images.uncaptioned() == "" and len(list(images.images())) == 5
    assert images.read_captions()[0] == ".TXT"


def test_icons_in_a_folder_are_left_out(tmp_path, capsys):
    """As docs/data.md says; records of them are read."""
    fill(tmp_path, 3)
    Image.new("RGB", (16, 16)).save(tmp_path / "favicon.ico")
    assert len(FolderSource(str(tmp_path), 16)) == 3
    assert "1 .ico (not read; convert" in capsys.readouterr().out


def test_errors_name_the_folder(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        FolderSource(str(tmp_path / "nothing"), 16)
    with pytest.raises(ValueError, match="has no images"):
        FolderSource(str(tmp_path), 16)


@pytest.mark.parametrize(
    "table, words",
    [
        ("not json", "row 1 is not JSON"),
        ("[1]", "row 1 is not a JSON object"),
        ('{"text": "a"}', r"row 1: no file_name; found \['text'\]"),
        ('{"file_name": "000.png", "label": 3}', "column named text or caption"),
        ("\n".join(f'{{"file_name": "no{i}.png", "text": "a"}}' for i in range(9)),
         r"more than 3 of 9 samples lack their image or caption.*no3\.png"),
    ],
)  # fmt: skip
def test_bad_tables(tmp_path, table, words):
    fill(tmp_path, 2)
    (tmp_path / "metadata.jsonl").write_text(table)
    with pytest.raises(ValueError, match=words):
        FolderSource(str(tmp_path), 16)


def test_two_tables(tmp_path):
    fill(tmp_path, 2)
    for name in ("metadata.jsonl", "metadata.csv"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="keep one"):
        FolderSource(str(tmp_path), 16)


@pytest.mark.parametrize(
    "field, value, words",
    [("crop", "left", "data.crop must be one of center, random, got 'left'"),
     ("resize", 8, "data.resize 8 is smaller than data.image_size 32")],
)  # fmt: skip
def test_bad_settings_are_config_errors(tmp_path, field, value, words):
    fill(tmp_path, 2)
    given = {"data__source": "folder", "data__folder": tmp_path, f"data__{field}": value}
    with pytest.raises(ConfigError, match=words):
        make_source(small.config_of("vqgan:tiny", **given).data, "train", 0)


def test_the_tokenizer_recipe_crops_from_larger_images(tmp_path):
    """128 of 256 pixels, without captions (configs/vqgan.py:f4)."""
    fill_gradients(tmp_path, 1)
    data = small.config_of("vqgan:f4", data__folder=tmp_path).data
    source = make_source(data, "train", 0)
    rng = np.random.default_rng(0)
    crops = {source.draw(0, rng)["image"].tobytes() for _ in range(4)}
    assert len(crops) == 4 and source[0]["image"].shape == (128, 128, 3)
