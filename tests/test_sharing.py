"""Shared folders: what they hold, that they draw the same bits, damage, and what is refused."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
import small
from PIL import Image
from safetensors.numpy import load_file

import paella_jax
from paella_jax import export
from paella_jax.config import ConfigError, to_json
from paella_jax.families.tokens import load_networks
from paella_jax.files.tensors import ConversionError
from paella_jax.runs.checkpoint import CheckpointError, restore_variables
from paella_jax.runs.folder import WEIGHTS_FILE, prepare_workdir, read_config
from paella_jax.runs.manifest import MANIFEST, check_files, files_of, read_manifest
from paella_jax.runs.weights import save_tree
from paella_jax.sharing.folder import of_run, write_shared
from paella_jax.sharing.portable import portable

pytestmark = pytest.mark.devices(8)
RED = "a large red circle at the top left"
REPORT = {"scores": {"validation": {"exact": 0.875, "clean": 0.75, "images": 64}}}


def command(monkeypatch, *flags):
    monkeypatch.setattr("sys.argv", ["export", *map(str, flags)])
    assert export.main() == 0


@pytest.fixture(scope="module")
def run(shared_runs, tmp_path_factory):
    """A trained run, with what `evaluate` would leave in it."""
    folder = tmp_path_factory.mktemp("runs") / "red"
    shutil.copytree(shared_runs.trained(small.brief_paella()), folder)
    (folder / "report.json").write_text(json.dumps(REPORT))
    Image.new("RGB", (8, 8)).save(folder / "samples.png")
    return folder


@pytest.fixture(scope="module")
def pipe(run):
    return paella_jax.load(run)


@pytest.fixture(scope="module")
def tokens(pipe):
    return pipe.generate(RED, seed=3, num_steps=2).tokens


@pytest.fixture(scope="module")
def shared(run, tmp_path_factory):
    return write_shared(tmp_path_factory.mktemp("shared") / "red", {"": of_run(run)}, licence="mit")


@pytest.fixture
def copy(shared, tmp_path):
    """The folder, to be damaged."""
    return shutil.copytree(shared, tmp_path / "red")


def test_a_run_exported_draws_the_same_bits(run, pipe, tokens, tmp_path, monkeypatch, capsys):
    out = tmp_path / "red"
    command(monkeypatch, "--checkpoint", run, "--out", out)
    assert "without optimiser state" in capsys.readouterr().out
    again = paella_jax.load(out)
    images = again.generate(RED, seed=3, num_steps=2)
    np.testing.assert_array_equal(images.tokens, tokens)
    np.testing.assert_array_equal(images.images, pipe.generate(RED, seed=3, num_steps=2).images)
    size = lambda folder: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    assert size(out) < size(run) / 2
    step, averaged = restore_variables(run)
    assert read_manifest(out)["step"] == step > 0
    stored = load_file(out / "weights.safetensors")
    name = "params/predictor/classifier"
    np.testing.assert_array_equal(stored[name], averaged["params"]["predictor"]["classifier"])


def test_a_loaded_pipeline_saves_what_it_has_in_memory(run, pipe, tokens, tmp_path):
    changed = paella_jax.load(run)
    changed.set_params(jax.tree.map(lambda x: 1.5 * x, pipe.params), pipe.frozen)
    out = changed.save(tmp_path / "out")
    ours, theirs = (load_file(f / "weights.safetensors") for f in (out, pipe.save(tmp_path / "b")))
    assert ours.keys() == theirs.keys()
    name = "params/predictor/classifier"
    np.testing.assert_array_equal(ours[name], np.float32(1.5) * theirs[name])
    loaded = paella_jax.load(tmp_path / "b")
    np.testing.assert_array_equal(loaded.generate(RED, seed=3, num_steps=2).tokens, tokens)
    # Saved from its own folder, which is replaced.
    loaded.save(tmp_path / "b")
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["b", "out"]
    check_files(tmp_path / "b")


def test_a_folder_saved_again_keeps_scores_and_pictures(shared, tmp_path):
    again = paella_jax.load(shared).save(tmp_path / "red", licence="mit")
    assert (again / "README.md").read_text() == (shared / "README.md").read_text()
    assert read_manifest(again) == read_manifest(shared)
    write_shared(again, {"": of_run(shared)}, licence="mit")
    assert read_manifest(again) == read_manifest(shared)


def test_half_precision_is_half_as_large(run, shared, tmp_path):
    half = write_shared(tmp_path / "half", {"": of_run(run)}, "bfloat16")
    weights = load_file(half / "weights.safetensors")
    assert {str(x.dtype) for n, x in weights.items() if n.startswith("params/")} == {"bfloat16"}
    sizes = [(f / "weights.safetensors").stat().st_size for f in (half, shared)]
    assert sizes[0] < 0.55 * sizes[1]
    assert "| stored as | bfloat16 |" in (half / "README.md").read_text()
    images = paella_jax.load(half)(RED, num_steps=2, output_type="array")
    assert np.isfinite(images).all()


def test_the_folder_stands_alone_and_its_card_has_the_scores(shared):
    manifest = read_manifest(shared)
    needed = {"config.json", "weights.safetensors", "frozen/vqgan.json", "frozen/vqgan.safetensors"}
    assert set(manifest["files"]) == needed
    assert set(manifest["card"]) == {"README.md", "scores.md", "pictures/samples.png"}
    assert set(files_of(shared)) == needed | set(manifest["card"]) | {MANIFEST}
    card = (shared / "README.md").read_text()
    front = card.split("---")[1]
    assert "license: mit" in front and "pipeline_tag: text-to-image" in front
    assert "# red: text-to-image token predictor (unet, uniform corruption)" in card
    assert "| validation | 64 | 0.875 | 0.750 |" in card and "](pictures/samples.png)" in card
    decay, step = read_config(shared).optim.ema_decay, manifest["step"]
    assert f"| weights | moving average (decay {decay:g}) after {step} training steps |" in card
    assert str(shared.parent) not in card


MUSE = {
    "model__codebook_size": 32, "text__width": 16, "text__hidden_dim": 32, "text__num_heads": 2,
    "transformer__width": 16, "transformer__depth": 1, "transformer__num_heads": 2,
    "transformer__feed_forward_width": 32, "super_resolution__width": 16,
    "super_resolution__depth": 1, "super_resolution__low_depth": 1,
    "super_resolution__low_grid": 4, "super_resolution__num_heads": 2,
    "super_resolution__feed_forward_width": 32, "super_resolution__block_size": 2,
    "sampler__num_steps": 2,
}  # fmt: skip


def untrained(folder, preset, size):
    """A run of random weights, of any size of images."""
    low = "/home/me/low" if preset.startswith("super") else ""
    config = small.config_of(f"muse:{preset}", **MUSE, data__image_size=size, low_tokenizer=low)
    small.carry_random_tokenizer(prepare_workdir(folder, config))
    networks, _ = load_networks(config, folder)
    grid = size // networks.vqgan.downsampling
    shapes = jax.eval_shape(lambda key: networks.init(key, grid), jax.random.key(0))
    save_tree(folder / WEIGHTS_FILE, {"params": small.random_values(shapes), "model_state": {}})
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Run folders of a base and of a network that enlarges its tokens."""
    folder = tmp_path_factory.mktemp("pair")
    small.carry_random_tokenizer(folder / "high" / "frozen" / "low")
    high = untrained(folder / "high", "super_resolution_tiny", 32)
    return untrained(folder / "base", "tiny", 16), high


def test_two_runs_are_one_folder(pair, tmp_path, monkeypatch):
    base, high = pair
    pipe = paella_jax.load(base, super_resolution=high)
    command(monkeypatch, "--checkpoint", base, "--super_resolution", high, "--out", tmp_path / "a")
    others = (paella_jax.load(pipe.save(tmp_path / "b")), paella_jax.load(tmp_path / "a"))
    drawn = [p.generate(RED, seed=2) for p in (pipe, *others)]
    for other in drawn[1:]:
        np.testing.assert_array_equal(drawn[0].images, other.images)
        np.testing.assert_array_equal(drawn[0].low.tokens, other.low.tokens)
    assert "enlarged by a second run" in (tmp_path / "a" / "README.md").read_text()
    assert read_config(tmp_path / "a" / "super_resolution").low_tokenizer == "low"
    change(tmp_path / "a" / "super_resolution" / "weights.safetensors")
    with pytest.raises(CheckpointError, match="has another SHA-256 digest"):
        paella_jax.load(tmp_path / "a")


def test_another_decoder_goes_along(run, tmp_path):
    config = small.small_vqgan(model__bottleneck_blocks=2)
    variables = {n: dict(x) for n, x in small.random_tokenizer().items()}
    block = {n: x for n, x in variables["params"].items() if n.startswith("decoder_blocks_0")}
    variables["params"] |= {n.replace("_0", "_1", 1): x for n, x in block.items()}
    tree = {"params": {"vqgan": variables["params"]},
            "model_state": {"vqgan": variables["batch_stats"]}}  # fmt: skip
    save_tree(prepare_workdir(tmp_path / "vqgan", config) / WEIGHTS_FILE, tree)
    pipe = paella_jax.load(run, decoder=tmp_path / "vqgan")
    again = paella_jax.load(pipe.save(tmp_path / "red"))
    assert again.networks.vqgan == pipe.networks.vqgan
    assert again.networks.vqgan.bottleneck_blocks == 2
    tokens = np.zeros((1, 8, 8), np.int32)
    np.testing.assert_array_equal(again.decode(tokens), pipe.decode(tokens))


def test_no_path_of_the_machine_is_shared(shared):
    config = read_config(shared).copy_and_resolve_references().unlock()
    config.update({"tokenizer": "/home/me/vqgan", "init_from": "/home/me/x"})
    config.text.folder = "/home/me/byt5"
    config.data.update({"folder": "/home/me/icons", "shards": "/data/{00..09}.tar"})
    with config.unlocked():
        config.objective.perceptual_file = "/home/me/secret/vgg.safetensors"
    told = to_json(portable(config.lock()))
    assert '"vgg.safetensors"' in told
    assert "/home" not in told and '"icons"' in told and '"{00..09}.tar"' in told
    assert json.loads(told)["tokenizer"] == json.loads(told)["text"]["folder"] == ""


def cut(file):
    file.write_bytes(file.read_bytes()[:-5])


def change(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("weights.safetensors", cut, r"weights\.safetensors is cut short: it has \d+ bytes of \d+"),
        ("weights.safetensors", change, r"weights\.safetensors has another SHA-256 digest"),
        ("frozen/vqgan.safetensors", change, r"vqgan\.safetensors has another SHA-256 digest"),
        ("config.json", lambda file: file.write_text(file.read_text() + " "), "config.* too long"),
        ("frozen/vqgan.json", lambda file: file.unlink(), "vqgan.json is missing"),
        (MANIFEST, cut, "is damaged"),
        (MANIFEST, lambda f: f.write_text(f.read_text().replace('"format": 1', '"format": 9')),
         "format 9, this version reads 1"),
        (MANIFEST, lambda f: f.write_text(f.read_text().replace("frozen/", "../")), "is damaged"),
    ],
)  # fmt: skip
def test_damage_is_found_before_anything_is_read(copy, name, damage, words):
    damage(copy / name)
    with pytest.raises(CheckpointError, match=words) as error:
        paella_jax.load(copy)
    assert "\n" not in str(error.value)


def test_training_on_finds_damage_too(copy):
    change(copy / "weights.safetensors")
    with pytest.raises(CheckpointError, match="another SHA-256 digest"):
        restore_variables(copy)


def test_an_edited_card_does_no_harm_and_is_not_overwritten(run, copy):
    (copy / "README.md").write_text("mine")
    paella_jax.load(copy)
    with pytest.raises(ConversionError, match=r"did not write: README.md \(edited\); choose"):
        write_shared(copy, {"": of_run(run)})
    assert (copy / "README.md").read_text() == "mine"


def test_only_what_export_made_is_replaced(run, copy, tmp_path):
    weights = (copy / "weights.safetensors").read_bytes()
    write_shared(copy, {"": of_run(run)}, "bfloat16")
    assert (copy / "weights.safetensors").read_bytes() != weights
    check_files(copy)
    (copy / "notes.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for out, words in (
        (copy, "did not write: notes.txt"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "mine", "something that export did not write"),
        (run, "something that export did not write"),
        (tmp_path / "file" / "x", "no folder to write in"),
    ):
        with pytest.raises(ConversionError, match=words):
            write_shared(out, {"": of_run(run)})
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "mine", "red"]


def test_a_stopped_export_leaves_what_was_there(run, copy, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("paella_jax.sharing.card.write_card", stop)
    for out in (copy, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            write_shared(out, {"": of_run(run)})
    check_files(copy)
    assert [f.name for f in tmp_path.iterdir()] == ["red"]


def test_what_cannot_be_saved(run, pipe, tmp_path, monkeypatch):
    made = type(pipe)(pipe.networks, pipe.params, pipe.frozen, pipe.config)
    with pytest.raises(ConfigError, match="was not made by paella_jax"):
        made.save(tmp_path / "x")
    with pytest.raises(ConversionError, match="dtype must be one of keep, float32, bfloat16"):
        pipe.save(tmp_path / "x", dtype="int8")
    with pytest.raises(ConversionError, match="report nope is not a folder; give one that"):
        pipe.save(tmp_path / "x", report="nope")
    with pytest.raises(ConversionError, match="report nope is not a folder"):
        write_shared(tmp_path / "x", {}, report="nope")  # before the runs are looked at
    for given, words in (
        ({"folder": 3}, "folder=3 must be a path, as a text or a Path"),
        ({"folder": None}, "folder=None must be a path"),
        ({"folder": tmp_path / "x", "report": 3}, "report=3 must be a path"),
    ):
        with pytest.raises(ValueError, match=words):
            pipe.save(**given)
    flags = ["--checkpoint", run, "--out", tmp_path / "x"]
    for more, words in (
        (["--private"], "--private belongs to --push"),
        (["--push", "a/b/c"], "no name of a repository"),
        (["--report", "/nowhere"], "report /nowhere is not a folder; give one that evaluate"),
        (["--super_resolution", run], "enlarges nothing"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=words):
            command(monkeypatch, *flags, *more)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        command(monkeypatch, "--checkpoint", tmp_path / "none", "--out", tmp_path / "x")
    assert not list(tmp_path.iterdir())
