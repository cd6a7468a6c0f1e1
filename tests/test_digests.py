"""Digests of arrays and files, the parts of a run folder against each other, and `verify`."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
import small
import tensorstore
from damages import try_damages
from older import without_digests

from paella_jax import verify
from paella_jax.config import CheckpointError, to_json
from paella_jax.files.digests import from_sealed_json, to_sealed_json
from paella_jax.files.safetensors_file import map_safetensors, write_safetensors
from paella_jax.runs import digests
from paella_jax.runs.array_places import array_places, between
from paella_jax.runs.average import average_run
from paella_jax.runs.checked_lines import metrics_line
from paella_jax.runs.checkpoint import Checkpointer, read_arrays, restore_variables
from paella_jax.runs.digests import note_files, noting, read_digests, write_noted
from paella_jax.runs.folder import metrics_are_lost, prepare_workdir, read_config, read_metrics
from paella_jax.runs.frozen import load_carried
from paella_jax.runs.step_digests import read_step_digests, write_step_digests
from paella_jax.runs.verify import NOTE, verify_run
from paella_jax.runs.weights import load_tree, save_tree
from paella_jax.runs.whole_steps import complete_steps
from paella_jax.training.metrics import MetricWriter


def state_of(step):
    """A state with arrays large enough to lie in data files, and one in the index."""
    draw = lambda seed: np.random.default_rng(seed).normal(size=(40, 30)).astype(np.float32)
    trees = {"params": 1, "ema_params": 2, "opt_state": 3}
    tree = {name: {"net": {"kernel": draw(seed + step)}} for name, seed in trees.items()}
    return tree | {"step": np.int32(step), "model_state": {"mean": np.ones(3, np.float32)}}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run folder with everything but training."""
    config = small.small_paella()
    folder = prepare_workdir(tmp_path_factory.mktemp("run"), config)
    small.carry_random_tokenizer(folder)
    other = jax.tree.map(lambda x: x + 1, dict(small.random_tokenizer()))
    save_tree(folder / "frozen" / "base.safetensors", other)
    checkpointer = Checkpointer(folder, None)
    for step in (2, 4):
        checkpointer.save(step, state_of(step))
    checkpointer.close()
    rows = [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3, 4)]
    (folder / "metrics.jsonl").write_text("".join(map(metrics_line, rows)))
    write_noted(folder, "data.json", json.dumps({"samples": 100}))
    (folder / "samples").mkdir()
    (folder / "samples" / "step_0000004.png").write_bytes(b"an image")
    note_files(folder)
    return folder


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def faults(folder):
    return [finding for finding in verify_run(folder) if finding.kind != NOTE]


def flip(file, place=-1, bit=0x40):
    content = bytearray(file.read_bytes())
    content[place] ^= bit
    file.write_bytes(content)


def flip_array(run, name, step="4"):
    """One bit of an array of a checkpoint."""
    folder = run / "checkpoints" / step
    file, start, length = read_step_digests(folder)["arrays"][name]["at"][0]
    flip(folder / file, start + length // 2)


def swap(a, b):
    kept = a.with_name("kept")
    a.rename(kept)
    b.rename(a)
    kept.rename(b)


def test_a_sound_folder_passes(run, capsys, monkeypatch):
    assert verify_run(run) == []
    monkeypatch.setattr("sys.argv", ["verify", str(run)])
    assert verify.main() == 0
    assert "all is what was written" in capsys.readouterr().out
    assert restore_variables(run)[0] == 4


def test_every_file_has_a_digest(run):
    """But for the lists themselves, what is written line by line, and orbax's last mark."""
    listed = set(read_digests(run)["files"])
    for step in ("2", "4"):
        content = read_step_digests(run / "checkpoints" / step)
        listed |= {f"checkpoints/{step}/{name}" for name in content["files"]}
        arrays = {f"{name}.net.kernel" for name in ("params", "ema_params", "opt_state")}
        assert set(content["arrays"]) == arrays
    names = {f.relative_to(run).as_posix() for f in run.rglob("*") if f.is_file()}
    left = {name.rpartition("/")[2] for name in names - listed}
    assert left == {"digests.json", "metrics.jsonl", "commit_success.txt"}
    assert not listed - names


def test_a_flipped_bit_of_an_array_is_named_where_it_is_read(run):
    flip_array(run, "ema_params.net.kernel")
    with pytest.raises(CheckpointError, match=r"4 cannot be read: array ema_params/net/kernel in"):
        restore_variables(run)
    assert [name for _, name, _ in faults(run)] == ["checkpoints/4"]


def test_who_reads_some_arrays_checks_those(run):
    """Sampling passes over the optimiser's state, resuming and averaging do not."""
    flip_array(run, "opt_state.net.kernel")
    assert restore_variables(run)[0] == 4
    flip_array(run, "params.net.kernel", "2")
    with pytest.raises(CheckpointError, match=r"2 cannot be read: array params/net/kernel"):
        average_run(run)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(4))
    with pytest.raises(CheckpointError, match="array opt_state/net/kernel"):
        Checkpointer(run).restore(shapes)


@pytest.mark.parametrize("name", [
    "_CHECKPOINT_METADATA", "note/metadata", "state/_METADATA", "state/manifest.ocdbt",
    "state/ocdbt.process_0/manifest.ocdbt", "digests.json",
])  # fmt: skip
def test_a_flipped_bit_of_any_other_file_is_found(run, name):
    file = run / "checkpoints" / "4" / name
    flip(file, file.stat().st_size // 2, 1)
    with pytest.raises(CheckpointError, match=name):
        restore_variables(run)
    assert any(name in f"{found.name} {found.what}" for found in faults(run))


def test_a_folder_can_be_named_from_where_one_is(run, monkeypatch):
    """As users do; orbax itself takes absolute paths alone."""
    monkeypatch.chdir(run.parent)
    assert verify_run(run.name) == []
    assert read_arrays(Path(run.name) / "checkpoints", 2, averaged=True)


def test_what_no_array_has_of_a_data_file_is_found_by_verify(run):
    folder = run / "checkpoints" / "4"
    content = read_step_digests(folder)
    parts = {name: known["at"] for name, known in content["arrays"].items()}
    data = {name for name, known in content["files"].items() if "rest" in known}
    file, start, _ = next(p for name in data for p in between(
        name, content["files"][name]["bytes"], parts))  # fmt: skip
    flip(folder / file, start)
    assert [found.what for found in faults(run)] == [f"{file} has another SHA-256 digest"]


def test_steps_that_were_swapped_or_renamed_are_refused(run):
    steps = run / "checkpoints"
    (steps / "4").rename(steps / "6")
    with pytest.raises(CheckpointError, match="it is of step 4"):
        restore_variables(run)
    swap(steps / "6" / "state", steps / "2" / "state")
    with pytest.raises(CheckpointError, match="2, 6 lack files"):
        restore_variables(run)


def test_a_note_or_a_state_of_another_step_is_told(run):
    """As a program that knows nothing of digests would leave them: the list is made anew."""
    folder = run / "checkpoints" / "4"
    swap(folder / "state", run / "checkpoints" / "2" / "state")
    (folder / "data").mkdir()
    (folder / "data" / "process_0-of-1.json").write_text('{"next_index": 3}')
    write_step_digests(folder, 4)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(4))
    with pytest.raises(CheckpointError, match=r"process_0-of-1.json has the data at step 3"):
        Checkpointer(run).restore(shapes)
    told = [found.what for found in faults(run) if found.name == "checkpoints/4"]
    assert told == ["its process_0-of-1.json is of step 3", "its state is of step 2"]
    shutil.rmtree(folder / "data")
    write_step_digests(folder, 4)
    with pytest.raises(CheckpointError, match="its state is of step 2"):
        Checkpointer(run).restore(shapes)
    (folder / "note" / "metadata").write_text('{"step": 2, "digests": true}')
    write_step_digests(folder, 4)
    with pytest.raises(CheckpointError, match="its note is of step 2"):
        restore_variables(run)


def test_a_name_that_steers_a_terminal_is_shown_escaped(run, monkeypatch, capsys):
    (run / "a\033[31mx\nall is what was written").touch()
    monkeypatch.setattr("sys.argv", ["verify", str(run)])
    assert verify.main() == verify.WRONG
    out = capsys.readouterr().out
    assert "\033" not in out and out.splitlines()[0].startswith("foreign: a\\x1b[31mx\\nall is")


def test_a_step_of_another_run_of_the_same_config_is_told(run, tmp_path):
    config = small.small_paella()
    other = prepare_workdir(tmp_path / "other", config)
    checkpointer = Checkpointer(other, None)
    checkpointer.save(6, state_of(6))
    checkpointer.close()
    shutil.copytree(other / "checkpoints" / "6", run / "checkpoints" / "6")
    assert [f.what for f in faults(run) if f.name == "checkpoints/6"] == ["it is of another run"]
    with pytest.raises(CheckpointError, match="it is of another run; it was copied here"):
        restore_variables(run)
    shutil.rmtree(run / "checkpoints" / "6")
    (run / "digests.json").unlink()
    verify.accept(run, ["digests.json"])  # as an error's advice has it: the list is of this run
    assert restore_variables(run)[0] == 4 and faults(run) == []
    named = read_digests(run)["run"]
    assert named and named != read_digests(other)["run"]


def test_a_step_without_its_list_is_one_that_lost_a_file(run, capsys):
    (run / "checkpoints" / "4" / "digests.json").unlink()
    assert complete_steps(run) == [2] and restore_variables(run)[0] == 2
    assert "4 lacks files (digests.json): it is left out" in capsys.readouterr().err
    assert ("missing", "checkpoints/4/digests.json") in [found[:2] for found in faults(run)]


def test_older_folders_are_read_and_that_is_told_once(run, capsys):
    without_digests(run)
    for _ in range(2):
        assert restore_variables(run)[0] == 4
    assert capsys.readouterr().err.count("without digests") == 1
    assert faults(run) == []
    config = json.loads((run / "config.json").read_text())
    config["text"]["widht"] = 7
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"text\.widht \(did you mean text\.width\?\)"):
        read_config(run)


def test_a_config_that_was_edited_is_accepted_on_request_only(run, monkeypatch):
    config = json.loads((run / "config.json").read_text())
    config["sampler"]["guidance"] = 9.0
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"(?s)config.json .*--accept.*sampler\.guidance"):
        read_config(run)
    monkeypatch.setattr("sys.argv", ["verify", str(run), "--accept", "config.json"])
    assert verify.main() == 2  # the field is still unknown
    assert read_config(run).sampler.guidance == 9.0
    monkeypatch.setattr("sys.argv", ["verify", str(run), "--accept", "metrics.jsonl"])
    with pytest.raises(ValueError, match=r"--accept metrics\.jsonl"):
        verify.main()


def test_frozen_networks_are_what_was_carried(run):
    frozen = run / "frozen"
    swap(frozen / "vqgan.safetensors", frozen / "base.safetensors")
    with pytest.raises(CheckpointError, match=r"frozen/vqgan\.safetensors"):
        load_carried("tokenizer", run)
    swap(frozen / "vqgan.safetensors", frozen / "base.safetensors")
    load_carried("tokenizer", run)
    flip(frozen / "vqgan.safetensors")
    with pytest.raises(CheckpointError, match=r"vqgan\.safetensors is damaged: params/"):
        load_carried("tokenizer", run)
    load_carried("base", run)
    (frozen / "vqgan.json").unlink()
    kinds = {(found.kind, found.name) for found in faults(run)}
    assert kinds == {("missing", "frozen/vqgan.json"), ("damaged", "frozen/vqgan.safetensors")}


def test_a_tokenizer_with_other_codes_is_told(run):
    write_noted(run, "frozen/vqgan.json", json.dumps({"model": {"codebook_size": 64}}))
    assert [found.what for found in faults(run)] == ["it has 64 codes, the predictor 32"]


def test_weights_files_know_their_arrays(tmp_path):
    file = tmp_path / "weights.safetensors"
    tree = {"a": np.arange(8, dtype=np.float32).reshape(2, 4), "b": np.float32(3), "c": np.zeros(0)}
    save_tree(file, {"params": tree})
    jax.tree.map(np.testing.assert_array_equal, load_tree(file)["params"], tree)
    whole = file.read_bytes()
    flip(file, -30)
    with pytest.raises(CheckpointError, match="damaged: params/a is not what was written"):
        load_tree(file)
    file.write_bytes(whole.replace(b"[2, 4]", b"[4, 2]"))  # the same bytes, read otherwise
    with pytest.raises(CheckpointError, match="damaged: params/a is"):
        load_tree(file)
    write_safetensors(file, {"a": np.ones(2)})  # as other programs do
    assert set(map_safetensors(file)) == set(load_tree(file)) == {"a"}


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd"])
def test_lists_of_files_elsewhere_are_refused(run, name):
    """Also where the digest of the list itself was made for it."""
    for file in (run / "digests.json", run / "checkpoints" / "4" / "digests.json"):
        before = file.read_text()
        content = from_sealed_json(before)
        content["files"][name] = {"bytes": 1, "sha256": "0"}
        file.write_text(to_sealed_json(content))
        with pytest.raises(CheckpointError, match="no file of its folder"):
            restore_variables(run)
            read_config(run)
        file.write_text(before)
    arrays = content["arrays"]
    del content["files"][name]
    next(iter(arrays.values()))["at"][0][0] = name
    file.write_text(to_sealed_json(content))
    with pytest.raises(CheckpointError, match="no file of its folder"):
        restore_variables(run)


def test_an_older_name_of_a_field_is_read(tmp_path):
    config = small.small_paella().copy_and_resolve_references()
    with config.unlocked():
        del config.text["values_from"]
        config.text["values"] = "words"
    (tmp_path / "config.json").write_text(to_json(config))
    text = read_config(tmp_path).text
    assert text.values_from == "words" and "values" not in text


def test_a_damaged_line_of_metrics_loses_itself_alone(run, capsys):
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines()
    torn = [lines[0][:9], "", lines[1].replace("0.5", "0.6"), "[1]", '{"loss": 1}', *lines[2:]]
    file.write_text("\n".join(torn) + "\n" + lines[0][:20])
    file.write_bytes(file.read_bytes() + b"\xff\n")
    assert [row["step"] for row in read_metrics(file)] == [3, 4]
    assert "line 1, 3, 4, 5, 8 is torn or damaged" in capsys.readouterr().err
    numbers = [what for _, name, what in faults(run) if name == "metrics.jsonl"]
    assert numbers == ["line 1", "line 3", "line 4", "line 5", "line 8"]
    MetricWriter(run, small.small_paella(), 3).write(4, {"loss": 0.25})
    assert read_metrics(file) == [{"step": 3, "loss": 1.0 / 3}, {"step": 4, "loss": 0.25}]
    file.write_text(metrics_line({"step": 1, "loss": 2.0}))
    assert [found.what for found in faults(run)] == [
        "ends at step 1, the newest checkpoint is of step 4"
    ]
    capsys.readouterr()
    file.unlink()
    assert [found[:2] for found in faults(run)] == [("missing", "metrics.jsonl")]
    MetricWriter(run, small.small_paella(), 4)
    assert "metrics.jsonl is missing" in capsys.readouterr().err


def test_other_distances_of_lines_are_no_lost_ones(run):
    """A resumed run may log at other steps: what was due before was due at the old ones."""
    file = run / "metrics.jsonl"
    file.write_text(metrics_line({"step": 1, "loss": 2.0}))
    changed = {"step": 2, "changes": ["log.every: 5 -> 1", "num_steps: 2 -> 4"]}
    (run / "history.jsonl").write_text(metrics_line(changed))
    assert faults(run) == []
    assert ["log.every was changed" in found.what for found in verify_run(run)] == [True]
    file.unlink()
    assert faults(run) == [] and not metrics_are_lost(run)
    (run / "history.jsonl").write_text(metrics_line(changed | {"changes": ["log.every: 2 -> 1"]}))
    assert [found[:2] for found in faults(run)] == [("missing", "metrics.jsonl")]  # steps 2 and 4
    file.write_text(metrics_line({"step": 3, "loss": 2.0}))
    assert [found[:2] for found in faults(run)] == [("missing", "metrics.jsonl")]


def test_a_kill_between_a_file_and_its_digest_is_no_damage(run):
    for change in (False, True):
        with pytest.raises(RuntimeError, match="killed"), noting(run, "data.json") as file:
            if change:
                file.write_text(json.dumps({"samples": 5}))
            raise RuntimeError("killed")
        assert faults(run) == []
        assert any("was being written" in found.what for found in verify_run(run))
    note_files(run)  # as the next training call does
    assert verify_run(run) == []
    flip(run / "data.json")
    assert [found.name for found in faults(run)] == ["data.json"]


def test_what_is_foreign_is_told(run):
    (run / "notes.txt").write_text("mine")
    (run / "checkpoints" / "best").mkdir()
    (run / "checkpoints" / "4" / "state" / "more").write_text("")
    (run / "report.json").write_text("{}")  # of evaluate
    (run / "wandb_id").write_text("0a1b\n")
    found = sorted(found[:2] for found in faults(run))
    assert found == [("foreign", "checkpoints/4/state/more"), ("foreign", "checkpoints/best"),
                     ("foreign", "notes.txt")]  # fmt: skip
    with pytest.raises(CheckpointError, match="not a run folder"):
        verify_run(run / "samples")


def test_a_lost_or_damaged_list_is_told(run):
    (run / "digests.json").unlink()
    assert ("missing", "digests.json") in [found[:2] for found in faults(run)]
    (run / "digests.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"digests\.json is damaged"):
        read_config(run)


def test_arrays_are_found_in_an_index_of_several_levels(tmp_path):
    """As large states have; one process writes beside another."""
    spec = {"driver": "ocdbt", "base": f"file://{tmp_path}",
            "config": {"max_decoded_node_bytes": 500, "max_inline_value_bytes": 10}}  # fmt: skip
    store = tensorstore.KvStore.open(spec).result()
    with tensorstore.Transaction() as transaction:
        for number in range(60):
            value = bytes([number]) * 20
            store.with_transaction(transaction)[f"net.layer_{number:03d}/0.0"] = value
    places = array_places(tmp_path, "state")
    assert sorted(places) == [f"net.layer_{number:03d}" for number in range(60)]
    for number, (_, ((file, start, length),)) in enumerate(sorted(places.items())):
        content = (tmp_path / file.removeprefix("state/")).read_bytes()
        assert content[start : start + length] == bytes([number]) * 20
    assert array_places(tmp_path / "absent", "state") == {}
    taken = sorted(part for parts in places.values() for part in parts)
    ends = [(a[1] + a[2], b[1]) for a, b in pairwise(taken) if a[0] == b[0]]
    assert all(end <= start for end, start in ends)
    assert digests.matches("frozen/a/b", ["frozen/*"])


def test_random_damages_are_never_silent(original):
    """More of them, of a run of one's own: python tests/damages.py RUN COUNT."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(4))
    counts, bad = try_damages(original, abstract, count=12, seed=0)
    assert not bad and counts["refused"] > 6
    assert counts["found by verify"] == 12
