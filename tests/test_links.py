"""Links in a folder from outside: what lies elsewhere is never copied into a run."""

from __future__ import annotations

import json
import os

import pytest
import small
from safetensors.numpy import load_file
from small_clip import write_clip_folder

from paella_jax.config import CheckpointError, ConfigError
from paella_jax.convert.joined import joined
from paella_jax.runs.folder import prepare_workdir
from paella_jax.runs.frozen import carry_clip, copy_frozen
from paella_jax.runs.inside import inside
from paella_jax.runs.verify import FOREIGN, verify_run


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key.json").write_text(json.dumps({"auth": "hunter2"}))
    return tmp_path / "private" / "key.json"


def carrying(folder):
    """A run with a frozen tokenizer."""
    small.carry_random_tokenizer(prepare_workdir(folder, small.small_paella()))
    return folder


@pytest.mark.parametrize("name", ["notes.json", "more"])
def test_a_link_in_a_run_is_not_copied_and_verify_tells_it(tmp_path, secret, name):
    run = carrying(tmp_path / "run")
    target = secret if "." in name else secret.parent
    (run / "frozen" / name).symlink_to(target)
    with pytest.raises(CheckpointError, match=f"{name}.* is a link out of .*in its place"):
        copy_frozen(run, tmp_path / "new")
    assert not (tmp_path / "new" / "frozen").exists()
    found = {finding.name: finding.kind for finding in verify_run(run)}
    assert found[f"frozen/{name}"] == FOREIGN


def test_a_link_to_a_folder_of_the_run_is_not_followed_for_ever(tmp_path):
    run = carrying(tmp_path / "run")
    (run / "frozen" / "again").symlink_to(run / "frozen")
    with pytest.raises(CheckpointError, match="again is a link to a folder"):
        copy_frozen(run, tmp_path / "new")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "model-00002-of-00002.safetensors"])
def test_links_of_a_model_folder_are_not_copied(tmp_path, secret, name):
    """The shard is one that the text tower never reads."""
    folder = write_clip_folder(tmp_path / "clip")
    (folder / name).unlink(missing_ok=True)
    if name.startswith("model"):
        first = folder / "model-00001-of-00002.safetensors"
        (folder / "model.safetensors").rename(first)
        shards = {**dict.fromkeys(load_file(first), first.name), "vision_model.x": name}
        index = json.dumps({"weight_map": shards})
        (folder / "model.safetensors.index.json").write_text(index)
    (folder / name).symlink_to(secret)
    with pytest.raises(ConfigError, match=f"{name} is a link out of"):
        carry_clip(folder, tmp_path / "run" / "clip")
    assert not (tmp_path / "run" / "clip").exists()
    with pytest.raises(CheckpointError, match=f"{name} is a link out of"), joined(folder):
        pass


def test_the_links_of_the_hub_and_our_own_are_copied(tmp_path):
    plain = write_clip_folder(tmp_path / "clip")
    folder = tmp_path / "models--a--b" / "snapshots" / "1" / "text_encoder"
    blobs = tmp_path / "models--a--b" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for file in plain.iterdir():
        file.rename(blobs / file.name)
        (folder / file.name).symlink_to(os.path.relpath(blobs / file.name, folder))
    carry_clip(folder, tmp_path / "carried")
    with joined(folder) as links:
        carry_clip(links, tmp_path / "joined")
        of_ours = next(links.iterdir())
        assert inside(of_ours, links)
    assert not inside(folder / "config.json", tmp_path / "other")
    for name in ("carried", "joined"):
        names = {file.name for file in (tmp_path / name).iterdir() if not file.is_symlink()}
        assert {"config.json", "model.safetensors", "merges.txt"} <= names
