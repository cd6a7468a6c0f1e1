"""Aspect-ratio buckets: one size per batch, the same stream everywhere, and training on them."""

from __future__ import annotations

import numpy as np
import pytest
import small
from PIL import Image

from paella_jax.config import ConfigError
from paella_jax.data.buckets import BucketedImages
from paella_jax.data.build import make_source
from paella_jax.data.folder import FolderRecords
from paella_jax.data.loader import make_iterator
from paella_jax.registry import build_method
from paella_jax.runs.folder import prepare_workdir
from paella_jax.training.loop import train

SIZES = {(32, 32): 10, (32, 64): 20, (64, 32): 10}  # of the files, (height, width) -> how many
BUCKETS = "((32,32),(32,64),(64,32))"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    number = 0
    for (height, width), count in SIZES.items():
        for _ in range(count):
            image = Image.new("RGB", (3 * width + 5, 3 * height), (number * 6, 0, 0))
            image.save(folder / f"{number:03d}.png")
            (folder / f"{number:03d}.txt").write_text(f"a picture of size {height} by {width}")
            number += 1
    return folder


def source_of(folder, **options):
    return BucketedImages(FolderRecords(str(folder)), list(SIZES), **options)


def batches(folder, count, **options):
    keep = lambda sample: {"image": sample["image"], "index": np.int32(sample["index"])}
    stream = make_iterator(source_of(folder), keep, batch_size=4, seed=3, **options)
    return [next(stream) for _ in range(count)]


def test_every_batch_has_one_size_and_all_sizes_come(photos):
    found = [batch["image"].shape[1:3] for batch in batches(photos, 60)]
    shares = {size: found.count(size) / 60 for size in SIZES}
    assert set(found) == set(SIZES)
    assert abs(shares[32, 64] - 0.5) < 0.2  # half of the files


def test_images_go_to_the_nearest_bucket(photos):
    source = source_of(photos)
    for position in range(len(source)):
        words = source[position]["caption"].split()
        own = (int(words[-3]), int(words[-1]))
        assert source[position]["image"].shape[:2] == own


def test_threads_processes_and_resuming_change_nothing(photos):
    whole = batches(photos, 6)
    parts = [batches(photos, 6, rows=rows, threads=4) for rows in ([0, 1], [2, 3])]
    for batch, first, second in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(batch["index"][:2], first["index"])
        np.testing.assert_array_equal(batch["index"][2:], second["index"])
    (resumed,) = batches(photos, 1, start=3)
    np.testing.assert_array_equal(whole[3]["image"], resumed["image"])


def test_rotated_and_broken_files(photos, tmp_path):
    turned = Image.new("RGB", (96, 192))
    exif = turned.getexif()
    exif[274] = 6  # shown lying on its side
    for number in range(30):
        turned.save(tmp_path / f"{number:02d}.jpg", exif=exif)
        (tmp_path / f"{number:02d}.txt").write_text("a")
    (tmp_path / "07.jpg").write_bytes(b"no image")
    source = source_of(tmp_path)
    assert source[0]["image"].shape == (32, 64, 3)
    assert source.broken == {7} and source.fractions.tolist() == [0, 1, 0]


@pytest.mark.slow
def test_training_compiles_each_size_once(photos, tmp_path, capsys):
    """A stage that takes any size trains on batches of several."""
    stage_b = small.config_of(
        "stage_b:tiny", batch_size=8, num_steps=1, log__preview_images=1, model__widths="(16,)",
        model__depths="(1,)", model__cond_width=16, compressor__head_channels=16,
        compressor__stages="(('fused',1,3,1,8,8,1),('fused',2,3,2,8,8,1),('fused',2,3,2,8,8,1))",
    )  # fmt: skip
    workdir = small.untrained(tmp_path / "b", stage_b)
    config = small.config_of(
        "stage_c:tiny", stage_b=workdir, data__source="folder", data__folder=photos,
        data__buckets=BUCKETS, batch_size=8, num_steps=10, model__width=16, model__depth=1,
        log__every=1, log__preview_images=1, sampler__segments="(1,1)", text__width=16,
    )  # fmt: skip
    workdir = prepare_workdir(tmp_path / "c", config)
    method = build_method(config, workdir)
    object.__setattr__(method, "preview", None)
    capsys.readouterr()
    result = train(config, workdir, method)
    assert result.step == 10
    assert 2 <= capsys.readouterr().out.count("train step compiled") <= 3


def test_what_cannot_be_used(photos, tmp_path):
    with pytest.raises(ValueError, match="must be \\(height, width\\) pairs"):
        BucketedImages(FolderRecords(str(photos)), [(32,)])
    config = small.config_of("stage_c:tiny", data__source="folder", data__folder=tmp_path,
                             data__buckets=BUCKETS)  # fmt: skip
    with pytest.raises(ConfigError, match="has no images"):
        make_source(config.data, "train", 0)
