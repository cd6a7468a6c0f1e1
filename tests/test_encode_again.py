"""A call of `encode` that goes on where another stopped has the same samples, or is refused.

And what it tells of its captions and its tokenizer is not lost.
"""

from __future__ import annotations

import json

import pytest
import small
import small_records
from test_encode import ALONE, OPTIONS, contents, encoded, joint, put

from paella_jax import encode
from paella_jax.config import ConfigError
from paella_jax.data.encoded import EncodedSource, describe_data
from paella_jax.data.encoded_format import MANIFEST, TOLD, read_manifest
from paella_jax.registry import build_method
from paella_jax.training import loop
from paella_jax.training.encoding_plan import EncodeOptions


@pytest.fixture
def images(tmp_path):
    """A folder of six captioned images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.png").write_bytes(small_records.png(index))
        (folder / f"{index}.txt").write_text(f"caption {index}")
    return folder


def test_a_stopped_call_goes_on_with_the_same_samples_alone(images, tmp_path):
    """Where one came and one went, the others would get the wrong places."""
    fields = {"data__source": "folder", "data__folder": images, "data__split": 0.4}
    folder = encoded(tmp_path / "data", joint(**fields))
    whole = contents(folder)
    last = max(folder.glob("train-*.array_record"))
    last.unlink()
    encoded(folder, joint(**fields))
    assert contents(folder) == whole
    for suffix in ("png", "txt"):
        (images / f"0.{suffix}").rename(images / f"00.{suffix}")
    last.unlink()
    with pytest.raises(
        ConfigError, match=r"another .*\n  data\.names_of_samples\.train: '\w+' -> "
    ):
        encoded(folder, joint(**fields))
    manifest = json.loads((folder / MANIFEST).read_text())  # as it was written before
    del manifest["data"]["names_of_samples"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    for shard in folder.glob("*.array_record"):
        shard.unlink()
    encoded(folder, joint(**fields))
    assert len(EncodedSource(folder, "train")) == 4


def test_what_captions_and_the_tokenizer_lose_is_told_and_kept(
    images, tmp_path, capsys, monkeypatch
):
    """Training reads neither images nor captions then, and repeats what was told."""
    fields = {"data__source": "folder", "data__folder": images, "data__split": 0.0}
    for text in images.glob("*.txt"):
        text.write_text("a very long caption " * 40)
    config = joint(**fields)
    folder = encoded(tmp_path / "data", config)
    told, out = read_manifest(folder).data[TOLD], capsys.readouterr().out
    assert len(told) == 2
    assert "6 of 6 looked at are longer than the" in told[0] and "(the mean" in told[1]
    assert all(line in out for line in told)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["data"][TOLD] = ["another device says otherwise"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    for shard in folder.glob("*.array_record"):
        shard.unlink()
    encoded(folder, config)  # is the same data set

    def stop(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(loop, "make_iterator", stop)
    config = describe_data(joint(data__encoded=folder))
    capsys.readouterr()
    with pytest.raises(InterruptedError):
        loop.train(config, tmp_path / "run", build_method(config, put(tmp_path / "run", config)))
    assert "when it was encoded: another device says otherwise" in capsys.readouterr().out


def test_a_refused_call_leaves_nothing_behind(images, tmp_path):
    """But shards that were written."""
    fields = {"data__source": "folder", "data__folder": images, "data__split": 0.0}
    out = tmp_path / "out"
    refused = lambda config, **options: encode.encode_together(
        ALONE, config, out, EncodeOptions(**OPTIONS | options)
    )
    tokenizer = small.untrained(tmp_path / "vqgan", small.small_vqgan())
    with pytest.raises(ConfigError, match="the same images 2 times"):
        refused(joint(**fields, tokenizer=tokenizer), variants=2)
    assert not out.exists()
    folder = encoded(tmp_path / "data", joint(**fields))
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"splits\.validation\.count"):
        encoded(folder, joint(**fields), validation=3)
    assert contents(folder) == before
