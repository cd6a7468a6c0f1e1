"""`python -m paella_jax.convert` on small models: run folders, exports, inference, refusals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import replace

import golden
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import small
from converting import run, same
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import paella_jax
from paella_jax.config import to_json
from paella_jax.convert.paella import CLIP_PRIOR, condition_widths, infer_clip_prior, infer_paella
from paella_jax.convert.paella import PAELLA as RELEASED
from paella_jax.convert.recognise import recognise
from paella_jax.convert.vqgan import VQGAN as VQGAN_F4
from paella_jax.convert.vqgan import infer_vqgan
from paella_jax.families.clip_prior import load_clip_prior
from paella_jax.families.start import settle_config
from paella_jax.families.vqgan import load_vqgan_run
from paella_jax.files.tensors import ConversionError, to_theirs
from paella_jax.models.clip_prior import ClipPrior
from paella_jax.models.paella import Paella
from paella_jax.models.vqgan import VQGAN
from paella_jax.objectives.vqgan import initial_code_state
from paella_jax.registry import build_method
from paella_jax.runs.checkpoint import Checkpointer, CheckpointError, restore_variables
from paella_jax.runs.digests import note_files
from paella_jax.runs.folder import prepare_workdir, read_config
from paella_jax.runs.weights import load_tree, save_tree
from paella_jax.training import sharding
from paella_jax.training.loop import abstract_state

GOLDEN = small.ROOT / "tests" / "golden"
PAELLAS = ["paella", "paella_variant"]


def tensors_of(name):
    return load_file(GOLDEN / name / "weights.safetensors")


def reference(name):
    return golden.paella_of(golden.config_of(GOLDEN / name)["constructor"])


def convert_paella(name, out, *options):
    model = reference(name)
    heads = tuple(max(0, h) for h in model.num_heads)
    run("--family", "paella", "--weights", GOLDEN / name / "weights.safetensors", "--out", out,
        f"--config.model.num_heads={heads}",
        f"--config.model.self_attention={model.self_attention}", *options)  # fmt: skip
    return model


# --- sizes from shapes


@pytest.mark.parametrize("name", PAELLAS)
def test_paella_sizes_are_told_by_the_weights(name):
    model, tensors = reference(name), tensors_of(name)
    fields = infer_paella(tensors)
    assert "num_heads" not in fields
    told = {field: getattr(model, field) for field in fields}
    # A pattern repeated inside itself is the same network.
    repeated = lambda f: [p * d for p, d in zip(f["patterns"], f["depths"], strict=True)]
    assert repeated(fields) == repeated(told)
    for field in fields.keys() - {"patterns", "depths"}:
        assert fields[field] == told[field], field
    constructor = golden.config_of(GOLDEN / name)["constructor"]
    assert condition_widths(tensors) == (constructor["byt5_embd"], constructor["clip_embd"])
    missing = {"dropout", "self_attention", "remat", "loop", "num_heads", "num_classes"}
    missing |= {"num_segments", "positions", "attention", "attention_dropout", "depthwise"}
    missing.add("remat_keeps")
    assert {*fields, *missing} == set(small.config_of("paella:1b").model)


def shapes_of(entries, abstract):
    """A state dict without memory behind it."""
    flat = flatten_dict(abstract)
    empty = lambda shape: np.broadcast_to(np.float32(0), shape)
    return {e.name: to_theirs(empty(flat[e.path].shape), e.layout) for e in entries}


def test_released_sizes():
    mixed = Paella(widths=(64, 80), depths=(3, 1), num_heads=(0, 1), patterns=("CT", "CTAFC"))
    for model in (Paella(), mixed):
        tensors = shapes_of(RELEASED.names.table(model), RELEASED.names.shapes(model, 2560, 1024))
        assert Paella(**infer_paella(tensors)) == model
        assert condition_widths(tensors) == (2560, 1024)
    for vqgan in (VQGAN(), VQGAN(levels=3, bottleneck_blocks=2, width=64)):
        for diffusers in (False, True):
            tensors = shapes_of(
                VQGAN_F4.names.table(vqgan, diffusers), VQGAN_F4.names.shapes(vqgan)
            )
            assert VQGAN(**infer_vqgan(tensors)) == vqgan


@pytest.mark.parametrize(
    "infer, name, word",
    [
        (infer_paella, "byt5_mapper.weight", "byt5_mapper.weight.* is missing"),
        (infer_paella, "embedding.1.weight", "embedding.1.weight.* is missing"),
        (infer_paella, "down_blocks.1.1.depthwise.weight", None),
        (infer_paella, "down_blocks.2.0.1.weight", "down_blocks.2.0.1.weight.* is missing"),
        (infer_paella, "down_blocks.1.2.mapper.weight", r"down_blocks\.1 has blocks .* \[1, 3"),
        (infer_vqgan, "vquantizer.codebook.weight", "codebook.weight.* is missing"),
        (infer_vqgan, "down_blocks.3.0.weight", "down_blocks.3.0.weight.* is missing"),
    ],
)
def test_weights_without_their_sizes(infer, name, word):
    tensors = tensors_of("vqgan" if infer is infer_vqgan else "paella")
    del tensors[name]
    if word is None:  # a block of another kind then; the import lists what is missing
        model = Paella(**infer(tensors), num_heads=(0, 4, 3))
        with pytest.raises(ConversionError, match=r"unknown tensor down_blocks\.1\.1\.depthwise"):
            RELEASED.names.load(tensors, model)
        return
    with pytest.raises(ConversionError, match=word):
        infer(tensors)


def test_every_family_is_recognised():
    for name, family in (("paella", "paella"), ("paella_variant", "paella"), ("vqgan", "vqgan"),
                         ("paella_clip_prior", "clip_prior")):  # fmt: skip
        assert recognise(tensors_of(name)).family == family
    assert recognise(["something.weight"]) is None


# --- run folders


@pytest.mark.parametrize("name", PAELLAS)
@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_paella_there_and_back(name, dtype, tmp_path, capsys):
    model = convert_paella(name, tmp_path / "run", "--dtype", dtype)
    shown = capsys.readouterr().out
    assert "from default: model.dropout=0.1, model.num_classes=0, model.num_segments=0" in shown
    assert f"the command line: model.num_heads={tuple(max(0, h) for h in model.num_heads)}" in shown
    assert "cannot draw yet" in shown and "--tokenizer VQGAN_RUN --text T5_FOLDER" in shown
    config = read_config(tmp_path / "run")
    for field in {*config.model} - {"dropout", "remat", "patterns", "depths", "num_heads"}:
        assert config.model[field] == getattr(model, field), field
    assert config.precision == ("bfloat16" if dtype == "bfloat16" else "float32")
    step, restored = restore_variables(tmp_path / "run")
    expected = RELEASED.names.load(tensors_of(name), model)
    if dtype == "bfloat16":
        expected = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), expected)
    assert step == 0
    same(restored, {"params": {"predictor": expected}, "model_state": {}})

    out = tmp_path / "back.safetensors"
    run("--export", "original", "--checkpoint", tmp_path / "run", "--out", out)
    original = tensors_of(name)
    if dtype == "bfloat16":
        original = {n: x.astype(ml_dtypes.bfloat16) for n, x in original.items()}
    golden.same_tensors(load_file(out), original)


@pytest.mark.parametrize("source", ["vqgan/weights.safetensors", "vqgan/diffusers"])
def test_vqgan_there_and_back(source, tmp_path):
    run("--family", "vqgan", "--weights", GOLDEN / source, "--out", tmp_path / "run")
    model = golden.vqgan_of(golden.config_of(GOLDEN / "vqgan")["constructor"])
    original = tensors_of("vqgan")
    _, loaded, variables = load_vqgan_run(tmp_path / "run")
    assert loaded == model
    same(variables, VQGAN_F4.names.load(original, model))
    # Trained on, no code is replaced as dead before it was watched.
    codes = restore_variables(tmp_path / "run")[1]["model_state"]["codes"]
    same(codes["usage"], np.ones(64, np.float32))
    assert codes.keys() == initial_code_state(64, 4).keys()

    kept = {n: x for n, x in original.items() if not n.endswith("num_batches_tracked")}
    run("--export", "original", "--checkpoint", tmp_path / "run", "--out",
        tmp_path / "back.safetensors")  # fmt: skip
    golden.same_tensors(load_file(tmp_path / "back.safetensors"), kept)
    run("--export", "diffusers", "--checkpoint", tmp_path / "run", "--out", tmp_path / "back")
    name = "diffusion_pytorch_model.safetensors"
    theirs = load_file(GOLDEN / "vqgan" / "diffusers" / name)
    kept = {n: x for n, x in theirs.items() if not n.endswith("num_batches_tracked")}
    golden.same_tensors(load_file(tmp_path / "back" / name), kept)
    ours = golden.config_of(tmp_path / "back")
    theirs = golden.config_of(GOLDEN / "vqgan" / "diffusers")
    assert ours == {n: value for n, value in theirs.items() if n != "_diffusers_version"}


def test_clip_prior_there_and_back(tmp_path):
    source = GOLDEN / "paella_clip_prior" / "weights.safetensors"
    run("--family", "clip_prior", "--weights", source, "--out", tmp_path / "run")
    tensors = load_file(source)
    model = ClipPrior(**infer_clip_prior(tensors))
    sampler = load_clip_prior(tmp_path / "run")
    assert sampler.model == model
    same(sampler.params, jax.tree.map(jnp.asarray, CLIP_PRIOR.names.load(tensors, model)))
    drawn = sampler(np.ones((2, model.clip_width)), jax.random.key(0), num_steps=2)
    assert np.isfinite(drawn).all()
    run("--export", "original", "--checkpoint", tmp_path / "run", "--out",
        tmp_path / "back.safetensors")  # fmt: skip
    golden.same_tensors(load_file(tmp_path / "back.safetensors"), tensors)


def test_a_new_family_is_one_record(tmp_path, monkeypatch):
    """Recognised, converted, told on its card and exported, by the engine as it is."""
    table = lambda model: [
        entry._replace(name=f"toy.{entry.name}") for entry in CLIP_PRIOR.names.table(model)
    ]
    bare = lambda tensors: {name.removeprefix("toy."): x for name, x in tensors.items()}
    toy = replace(
        CLIP_PRIOR, family="toy", title="Toy prior", marks=("toy.blocks.0.weight",),
        names=replace(CLIP_PRIOR.names, entries=table),
        infer=lambda tensors: infer_clip_prior(bare(tensors)),
    )  # fmt: skip
    for module in ("recognise", "export"):
        monkeypatch.setattr(f"paella_jax.convert.{module}.RECORDS", (toy,))
    monkeypatch.setattr("paella_jax.convert.recognise.FAMILIES", ("toy",))
    tensors = {f"toy.{name}": x for name, x in tensors_of("paella_clip_prior").items()}
    save_file(tensors, tmp_path / "toy.safetensors")
    run("--family", "toy", "--weights", tmp_path / "toy.safetensors", "--out", tmp_path / "run")
    assert "# Toy prior, converted" in (tmp_path / "run" / "README.md").read_text()
    out = tmp_path / "back.safetensors"
    run("--export", "original", "--checkpoint", tmp_path / "run", "--out", out)
    golden.same_tensors(load_file(out), tensors)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run folder of a small tokenizer with 64 codes."""
    folder = tmp_path_factory.mktemp("runs")
    config = small.small_vqgan(model__codebook_size=64)
    model = VQGAN(**config.model)
    generator = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: 0.1 * generator.random(x.shape, np.float32), VQGAN_F4.names.shapes(model)
    )
    state = {
        "params": {"vqgan": variables["params"]}, "ema_params": {},
        "model_state": {"vqgan": variables["batch_stats"]},
    }  # fmt: skip
    checkpointer = Checkpointer(prepare_workdir(folder / "vqgan", config))
    checkpointer.save(1, state)
    checkpointer.close()
    return folder / "vqgan"


@pytest.fixture(scope="module")
def complete(trained, tmp_path_factory):
    """A converted Paella with tokenizer and text encoder, and its original tensors."""
    folder, source = tmp_path_factory.mktemp("complete"), GOLDEN / "text_encoders" / "byt5"
    width = golden.config_of(source)["d_model"]
    model = Paella(codebook_size=64, token_width=16, time_width=8, cond_width=24, widths=(80,),
                   depths=(1,), num_heads=(1,), patterns=("CTA",))  # fmt: skip
    generator = np.random.default_rng(0)
    tensors = {
        n: 0.2 * generator.standard_normal(x.shape).astype(np.float32)
        for n, x in shapes_of(
            RELEASED.names.table(model), RELEASED.names.shapes(model, width, 12)
        ).items()
    }
    save_file(tensors, folder / "weights.safetensors")
    run("--family", "paella", "--weights", folder / "weights.safetensors", "--out", folder / "run",
        "--tokenizer", trained, "--text", source, "--config.data.image_size=32", "--dtype",
        "bfloat16", "--config.precision=float32")  # fmt: skip
    half = {n: x.astype(ml_dtypes.bfloat16) for n, x in tensors.items()}
    return folder / "run", RELEASED.names.load(half, model)


def test_a_converted_paella_draws(complete):
    folder, params = complete
    card = (folder / "README.md").read_text()
    assert "cannot draw yet" not in card and "byt5" not in card and "tokenizer" not in card
    assert "| `model.num_heads` | `(1,)` | default |" in card
    pipe = paella_jax.load(folder)
    images = pipe("a circle", num_steps=2, seed=0)
    assert np.asarray(images[0]).shape == (32, 32, 3)
    same(jax.tree.map(np.asarray, pipe.params["predictor"]), params)
    assert sorted(f.name for f in folder.iterdir()) == [
        "README.md", "config.json", "digests.json", "frozen", "weights.safetensors",
    ]  # fmt: skip


def test_fine_tuning_starts_with_the_converted_weights(complete, tmp_path):
    """In float32, whatever they are stored in; the CLIP layers stay behind without CLIP."""
    folder, params = complete
    config = small.config_of("paella:finetune", init_from=folder, data__source="shapes",
                             data__spec="tiny", log__preview_images=2)  # fmt: skip
    config = settle_config(config, tmp_path / "new")
    method = build_method(config, prepare_workdir(tmp_path / "new", config))
    assert (tmp_path / "new" / "frozen" / "vqgan.safetensors").is_file()
    checkpointer = Checkpointer(tmp_path / "new")
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        abstract, _ = abstract_state(config, method, mesh)
    state = checkpointer.restore(abstract)
    checkpointer.close()
    for leaf in jax.tree.leaves((state.params, state.ema_params)):
        assert leaf.dtype == np.float32
    start = dict(params, conditioning={"text": params["conditioning"]["text"]})
    start = {"predictor": jax.tree.map(lambda x: x.astype(np.float32), start)}
    same(jax.tree.map(np.asarray, state.params), start)


def test_the_model_card(tmp_path):
    convert_paella("paella", tmp_path / "run", "--dtype", "float16")
    card = (tmp_path / "run" / "README.md").read_text()
    source = GOLDEN / "paella" / "weights.safetensors"
    assert hashlib.sha256(source.read_bytes()).hexdigest() in card
    assert f"{source.stat().st_size:,} bytes" in card
    count = sum(x.size for x in tensors_of("paella").values())
    assert f"{count:,} parameters, stored as float16" in card
    assert "| `model.widths` | `(16, 32, 48)` | the weights |" in card
    assert "| `model.num_heads` | `(0, 4, 3)` | the command line |" in card
    assert "| `model.dropout` | `0.1` | default |" in card
    assert "cannot draw yet" in card and "## Licence" in card


def test_a_paella_without_clip_goes_there_and_back(tmp_path):
    tensors = {n: x for n, x in tensors_of("paella").items() if not n.startswith("clip_")}
    save_file(tensors, tmp_path / "weights.safetensors")
    run("--family", "paella", "--weights", tmp_path / "weights.safetensors", "--out",
        tmp_path / "run", "--config.model.num_heads=(0, 4, 3)")  # fmt: skip
    out = tmp_path / "back.safetensors"
    run("--export", "original", "--checkpoint", tmp_path / "run", "--out", out)
    golden.same_tensors(load_file(out), tensors)
    assert restore_variables(tmp_path / "run")[1]["params"]["predictor"]["conditioning"].keys() == {
        "text"
    }


def test_an_averaged_training_run_is_exported(tmp_path, capsys):
    """The averaged weights, and the text encoder that trained along under a name of its own."""
    model = reference("paella")
    params = RELEASED.names.load(tensors_of("paella"), model)
    config = small.small_paella()
    config.unlock()
    config.model.update(
        {f: getattr(model, f) for f in config.model if f != "dropout"} | {"num_heads": (0, 4, 3)}
    )
    zeros = jax.tree.map(np.zeros_like, params)
    state = {
        "params": {"predictor": zeros}, "model_state": {},
        "ema_params": {"predictor": params, "text_encoder": {"x": np.ones(3, np.float32)}},
    }  # fmt: skip
    checkpointer = Checkpointer(prepare_workdir(tmp_path / "run", config))
    checkpointer.save(1, state)
    checkpointer.close()
    out = tmp_path / "back.safetensors"
    run("--export", "original", "--checkpoint", tmp_path / "run", "--out", out)
    along = {"paella_jax.text_encoder/x": np.ones(3, np.float32)}
    golden.same_tensors(load_file(out), tensors_of("paella") | along)
    told = "not in the published network, under names that begin with paella_jax.: text_encoder"
    assert told in capsys.readouterr().out


# --- refusals


PAELLA = ["--family", "paella", "--weights", GOLDEN / "paella" / "weights.safetensors"]
HEADS_OPTION = "--config.model.num_heads=(0, 4, 3)"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (PAELLA, r"do not tell the number of attention heads.*\(16, 32, 48\)"),
        ([*PAELLA, "--config.model.num_heads=(0, 5, 3)"], "5 heads do not divide .* 32"),
        ([*PAELLA, HEADS_OPTION, "--config.model.widhts=(1,)"], "did you mean 'model.widths'"),
        ([*PAELLA, HEADS_OPTION, "--config.model.cond_width=25"],
         r"weights\.safetensors: .*\(\d+ problems\)(?s:.*)byt5_mapper.bias has shape \(24,\)"),
        ([*PAELLA, HEADS_OPTION, "--text", "t5"], "--text needs --tokenizer too"),
        ([*PAELLA, HEADS_OPTION, "--text", "t5", "--clip", "c"], "--text and --clip needs"),
        ([*PAELLA, HEADS_OPTION, "--tokenizer", "/nowhere"], "/nowhere is not a run folder"),
        (["--family", "paella", "--weights", GOLDEN / "vqgan" / "weights.safetensors"],
         "this looks like a vqgan file, you gave --family paella"),
        (["--family", "vqgan", "--weights", GOLDEN / "paella_clip_prior"],
         "this looks like a clip_prior file, you gave --family vqgan"),
        (["--family", "clip_prior", "--weights", GOLDEN / "text_encoders" / "byt5"],
         "it looks like a T5 text encoder; give its folder as --text"),
        (["--family", "vqgan", "--weights", GOLDEN / "torch_files" / "zip_float32.pt"],
         "not of any family known here .* its tensors are conv.weight"),
        (["--family", "vqgan", "--weights", "/nowhere.pt"], r"/nowhere\.pt does not exist"),
        (["--family", "vqgan", "--weights", GOLDEN / "vqgan" / "weights.safetensors", "--text",
          "t5"], "no options of vqgan"),
        (["--family", "vqgan"], "give --family with --weights, or --export"),
        (["--export", "original", "--checkpoint", "/nowhere"], "must be FILE.safetensors"),
        (["--export", "diffusers", "--checkpoint", "/nowhere"], "/nowhere is not a run folder"),
    ],
)  # fmt: skip
def test_refusals_leave_nothing_behind(arguments, words, tmp_path):
    with pytest.raises((ValueError, CheckpointError), match=words):
        run(*arguments, "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_frozen_networks_of_other_sizes(trained, tmp_path):
    options = [*PAELLA, HEADS_OPTION, "--out", tmp_path / "out", "--tokenizer"]
    with pytest.raises(ConversionError, match=r"byt5 has d_model \d+, the weights .* with 20"):
        run(*options, trained, "--text", GOLDEN / "text_encoders" / "byt5")
    with pytest.raises(ConversionError, match=r"--text: .*is not a folder"):
        run(*options, trained, "--text", "/nowhere")
    with pytest.raises(ConversionError, match=r"has projection_dim \d+, the weights .* with 12"):
        run(*options, trained, "--clip", GOLDEN / "text_encoders" / "clip_vision")
    other = prepare_workdir(tmp_path / "other", small.small_vqgan(model__codebook_size=32))
    with pytest.raises(ConversionError, match=r"is a vqgan with 32 codes, the weights need .* 64"):
        run(*options, other)
    foreign = prepare_workdir(tmp_path / "foreign", small.small_paella())
    with pytest.raises(ConversionError, match="is a paella with None codes"):
        run(*options, foreign)
    assert not (tmp_path / "out").exists()


def test_existing_output_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for options in ([*PAELLA, HEADS_OPTION], ["--export", "diffusers", "--checkpoint", "/x"]):
        with pytest.raises(ConversionError, match=r"not empty; choose a new --out"):
            run(*options, "--out", tmp_path)
    with pytest.raises(ConversionError, match=r"not empty; choose a new --out"):
        run(*PAELLA, HEADS_OPTION, "--out", tmp_path / "notes.txt")
    assert [f.read_text() for f in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    run(*PAELLA, HEADS_OPTION, "--out", tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_every_misfit_is_listed_and_nothing_written(tmp_path):
    tensors = tensors_of("vqgan")
    del tensors["out_block.0.bias"]
    tensors["surprise"] = np.zeros(3, np.float32)
    tensors["in_block.1.bias"] = tensors["in_block.1.bias"][:3]
    tensors["up_blocks.0.0.bias"] = tensors["up_blocks.0.0.bias"].astype(np.int32)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(ConversionError, match=r"bad\.safetensors: .*4 problems") as error:
        run("--family", "vqgan", "--weights", tmp_path / "bad.safetensors", "--out",
            tmp_path / "run")  # fmt: skip
    for name in ("out_block.0.bias", "surprise", "in_block.1.bias", "up_blocks.0.0.bias"):
        assert name in str(error.value)
    assert [f.name for f in tmp_path.iterdir()] == ["bad.safetensors"]


def test_a_value_too_large_leaves_no_folder(tmp_path):
    tensors = tensors_of("vqgan")
    tensors["out_block.0.bias"] = np.full_like(tensors["out_block.0.bias"], 1e6)
    save_file(tensors, tmp_path / "big.safetensors")
    with pytest.raises(ConversionError, match=r"not finite in float16"):
        run("--family", "vqgan", "--weights", tmp_path / "big.safetensors", "--out",
            tmp_path / "run", "--dtype", "float16")  # fmt: skip
    assert [f.name for f in tmp_path.iterdir()] == ["big.safetensors"]


def test_diffusers_config_of_another_class(tmp_path):
    shutil.copytree(GOLDEN / "vqgan" / "diffusers", tmp_path / "model")
    config = golden.config_of(tmp_path / "model")
    for change, words in (({"_class_name": "VQModel"}, "is of a 'VQModel'"),
                          ({"up_down_scale_factor": 4}, "up_down_scale_factor 4")):  # fmt: skip
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=words):
            run("--family", "vqgan", "--weights", tmp_path / "model", "--out", tmp_path / "run")
    del config["scale_factor"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=r"config\.json: has no field 'scale_factor'"):
        run("--family", "vqgan", "--weights", tmp_path / "model", "--out", tmp_path / "run")


def test_export_of_what_the_format_cannot_hold(trained, tmp_path):
    convert_paella("paella", tmp_path / "run")
    with pytest.raises(ConversionError, match="exists for vqgan, stage_b, stage_c, amused only"):
        run("--export", "diffusers", "--checkpoint", tmp_path / "run", "--out", tmp_path / "x")
    tree = restore_variables(tmp_path / "run")[1]
    tree["params"]["predictor"]["segment_table"] = np.zeros((5, 16), np.float32)
    save_tree(tmp_path / "run" / "weights.safetensors", tree)
    config = read_config(tmp_path / "run").unlock()
    config.model.num_segments = 5
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    note_files(tmp_path / "run", ["weights.safetensors", "config.json"])
    run("--export", "original", "--checkpoint", tmp_path / "run", "--out",
        tmp_path / "x.safetensors")  # fmt: skip
    run("--family", "paella", "--weights", tmp_path / "x.safetensors", "--out", tmp_path / "again")
    same(restore_variables(tmp_path / "again")[1], tree)
    file = tmp_path / "run" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is cut short"):
        restore_variables(tmp_path / "run")


# --- weights onto a mesh


@pytest.mark.devices(8)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_weights_are_placed_onto_a_mesh(dtype, tmp_path):
    generator = np.random.default_rng(0)
    tree = {
        "predictor": {
            "mlp": {"expand": {"kernel": generator.standard_normal((128, 512)).astype(dtype)}},
            "attention": {"out": {"kernel": generator.standard_normal((256, 128)).astype(dtype)}},
        },
        "small": generator.standard_normal(5).astype(dtype),
        "scalar": np.asarray(2.0, dtype),
    }
    file = tmp_path / "weights.safetensors"
    save_tree(file, tree)
    mesh = sharding.make_mesh(small.small_paella(mesh__data=2, mesh__fsdp=2, mesh__tensor=2).mesh)
    shardings = sharding.state_shardings(load_tree(file), mesh)
    placed = load_tree(file, shardings)
    same(placed, tree)
    jax.tree.map(lambda x, s: np.testing.assert_equal(x.sharding, s), placed, shardings)
    kernel = placed["predictor"]["mlp"]["expand"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(64, 256)}
    # The arrays are jax's own: donating them to a step must not write into the file.
    double = jax.jit(lambda t: jax.tree.map(lambda x: x * 2, t), donate_argnums=0)
    with contextlib.suppress(UserWarning):
        doubled = double(placed)
    same(jax.tree.map(np.asarray, doubled), jax.tree.map(lambda x: x * dtype(2), tree))
    same(load_tree(file), tree)


def test_shardings_of_another_tree(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_tree(file, {"a": np.ones(3, np.float32)})
    mesh = sharding.make_mesh(small.small_paella().mesh)
    with pytest.raises(CheckpointError, match="name different arrays: a, b"):
        load_tree(file, {"b": sharding.replicated(mesh)})
