"""A shared folder is held against its manifest, whatever list of digests lies beside it."""

from __future__ import annotations

import pytest
import small

from paella_jax import __version__, verify
from paella_jax.config import CheckpointError
from paella_jax.runs.digests import note_files, version_of
from paella_jax.runs.folder import prepare_workdir, read_config
from paella_jax.runs.frozen import load_carried
from paella_jax.runs.manifest import write_manifest


@pytest.fixture
def shared(tmp_path):
    folder = prepare_workdir(tmp_path / "shared", small.small_paella())
    small.carry_random_tokenizer(folder)
    (folder / "digests.json").unlink(missing_ok=True)
    write_manifest(folder, [], version="0.0.1")
    return folder


def test_noting_a_changed_file_turns_no_manifest_off(shared):
    file = shared / "config.json"
    file.write_text(file.read_text().replace('"dropout": 0.1', '"dropout": 0.2') + " ")
    with pytest.raises(ValueError, match=r"held against its paella_jax\.json; change the run"):
        verify.accept(shared, ["config.json"])
    note_files(shared, ["config.json"])
    with pytest.raises(CheckpointError, match=r"is not what was shared: config\.json"):
        read_config(shared)


def test_a_list_beside_the_manifest_says_nothing(shared):
    note_files(shared)
    assert read_config(shared).method == "tokens" and version_of(shared) == "0.0.1" != __version__
    file = shared / "frozen" / "vqgan.json"
    file.write_text(file.read_text() + " ")
    note_files(shared, ["frozen/vqgan.json"])
    with pytest.raises(CheckpointError, match=r"not what was shared: frozen/vqgan\.json"):
        load_carried("tokenizer", shared)
