"""Lists of digests that are gone, and checkpoints that lost what says that they had one."""

from __future__ import annotations

import json
import shutil

import pytest
import small
from fault_works import command, training, use_mean_method
from older import without_digests
from test_digests import faults, flip_array, original, run, state_of, swap

from paella_jax import train, verify
from paella_jax.config import CheckpointError
from paella_jax.runs.checkpoint import Checkpointer, restore_variables
from paella_jax.runs.digests import note_files, read_digests
from paella_jax.runs.folder import prepare_workdir, read_config
from paella_jax.runs.frozen import load_carried
from paella_jax.runs.manifest import write_manifest
from paella_jax.runs.verify import verify_run
from paella_jax.runs.whole_steps import complete_steps

__all__ = ["original", "run"]  # fixtures
WAY = r".*take all files as they are now by .*--accept digests\.json"


def lose(file):
    file.unlink()


def damage(file):
    file.write_text("{}")


def lead_away(file):
    """A device that gives bytes without end."""
    file.unlink()
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize("break_it", [lose, damage, lead_away])
def test_a_list_that_is_no_more_is_told_with_one_way_on(run, break_it):
    named = read_digests(run)["run"]
    break_it(run / "digests.json")
    for read in (
        lambda: read_config(run),
        lambda: load_carried("tokenizer", run),
        lambda: prepare_workdir(run, small.small_paella()),
        lambda: note_files(run),
        lambda: verify.accept(run, ["config.json"]),
    ):
        with pytest.raises(CheckpointError, match=WAY):
            read()
    verify.accept(run, ["digests.json"])
    assert verify_run(run) == [] and read_digests(run)["run"] == named
    prepare_workdir(run, small.small_paella())  # as the next training call does
    note_files(run)
    checkpointer = Checkpointer(run, None)
    checkpointer.save(6, state_of(6))
    checkpointer.close()
    assert restore_variables(run)[0] == 6 and load_carried("tokenizer", run)


def test_a_foreign_tokenizer_is_not_believed_without_the_list(run):
    (run / "digests.json").unlink()
    swap(run / "frozen" / "vqgan.safetensors", run / "frozen" / "base.safetensors")
    with pytest.raises(CheckpointError, match=r"lost its digests\.json, by which its files are"):
        load_carried("tokenizer", run)
    kinds = [found[:2] for found in faults(run)]
    assert kinds == [("missing", "digests.json")]


def test_training_goes_on_with_a_new_list(tmp_path, capsys):
    """The command itself, with what its error says."""
    config, folder = use_mean_method(tmp_path), tmp_path / "run"
    training(config).begin(folder)
    words = ("--config", config, "--workdir", str(folder))
    assert command(train.main, *words, "--config.num_steps=2") == 0
    (folder / "digests.json").unlink()
    assert command(train.main, *words, "--config.num_steps=4") == 2
    assert "--accept digests.json" in capsys.readouterr().err
    assert command(verify.main, str(folder), "--accept", "digests.json") == 0
    assert command(train.main, *words, "--config.num_steps=4") == 0
    assert complete_steps(folder)[-1] == 4 and faults(folder) == []


def test_a_damaged_list_beside_a_manifest_can_be_deleted(run):
    write_manifest(run, [], version="0.0.1")
    (run / "digests.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"delete it: .* against its paella_jax\.json"):
        note_files(run)


@pytest.mark.parametrize("note", ["gone", "empty", "of another kind"])
def test_a_checkpoint_without_note_and_list_is_no_older_one(run, note):
    """Every version wrote the note, and those without digests say so in it."""
    step = run / "checkpoints" / "4"
    flip_array(run, "params.net.kernel")
    (step / "digests.json").unlink()
    if note == "gone":
        shutil.rmtree(step / "note")
    else:
        (step / "note" / "metadata").write_text("" if note == "empty" else "[4]")
    assert complete_steps(run) == [2] and restore_variables(run)[0] == 2
    told = [found[:2] for found in faults(run)]
    assert ("missing", "checkpoints/4/digests.json") in told
    assert (("missing", "checkpoints/4/note/metadata") in told) == (note == "gone")


def test_an_older_run_goes_on_and_keeps_its_checkpoints(run):
    """Its folder gets a list with a name, which its older checkpoints do not repeat."""
    without_digests(run)
    prepare_workdir(run, small.small_paella())
    assert faults(run) == [], "stopped before the rest was noted"
    note_files(run)
    assert read_digests(run)["run"] and faults(run) == []
    assert set(read_digests(run)["files"]) >= {"data.json", "frozen/vqgan.json"}
    assert restore_variables(run)[0] == 4
    checkpointer = Checkpointer(run, None)
    checkpointer.save(6, state_of(6))
    checkpointer.close()
    assert complete_steps(run) == [2, 4, 6] and restore_variables(run)[0] == 6
    note = json.loads((run / "checkpoints" / "6" / "note" / "metadata").read_text())
    assert note["run"] == read_digests(run)["run"]
