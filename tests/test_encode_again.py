"""A call of `encode` that goes on where another stopped has the same samples, or is refused."""

from __future__ import annotations

import json

import pytest
import small_records
from test_encode import contents, encoded, joint

from paella_jax.config import ConfigError
from paella_jax.data.encoded import EncodedSource
from paella_jax.data.encoded_format import MANIFEST


def test_a_stopped_call_goes_on_with_the_same_samples_alone(tmp_path):
    """Where one came and one went, the others would get the wrong places."""
    images = tmp_path / "images"
    images.mkdir()
    for index in range(6):
        (images / f"{index}.png").write_bytes(small_records.png(index))
        (images / f"{index}.txt").write_text(f"caption {index}")
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
