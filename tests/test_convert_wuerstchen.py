"""`python -m paella_jax.convert` for Würstchen's stages, and runs made of other runs."""

from __future__ import annotations

import json

import golden
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import small
from converting import run, same
from safetensors.numpy import load_file, save_file
from small_clip import WIDTH, write_clip_folder
from small_torch import write_torch_file

import paella_jax
from paella_jax.convert.recognise import recognise
from paella_jax.convert.wuerstchen import STAGE_B, STAGE_C, infer_stage_b, infer_stage_c
from paella_jax.encoders.compressor_names import NAMES as COMPRESSOR_NAMES
from paella_jax.families.stage_b import make_compressor
from paella_jax.families.start import settle_config
from paella_jax.files.tensors import ConversionError
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC
from paella_jax.registry import build_method
from paella_jax.runs.checkpoint import Checkpointer, CheckpointError, restore_variables
from paella_jax.runs.derive import restore_trained
from paella_jax.runs.folder import prepare_workdir, read_config
from paella_jax.runs.lora import lora_init, lora_merge
from paella_jax.runs.weights import save_tree

GOLDEN = small.ROOT / "tests" / "golden"
PRIOR, DIFFNEXT, COMPRESSOR = (
    GOLDEN / f"wuerstchen_{name}" / "weights.safetensors"
    for name in ("prior", "diffnext", "compressor")
)
STAGES = tuple(map(tuple, golden.config_of(COMPRESSOR.parent)["stages"]))
HEADS_B, HEADS_C = "--config.model.num_heads=(0, 3, 5, 4)", "--config.model.num_heads=4"
STAGES_OPTION = f"--config.compressor.stages={STAGES}"
B_FROM = ["--family", "wuerstchen", "--weights", DIFFNEXT, HEADS_B]
C_FROM = ["--family", "wuerstchen", "--weights", PRIOR, HEADS_C]
WITH_COMPRESSOR = ["--compressor", COMPRESSOR, STAGES_OPTION]


def without_counters(tensors):
    return {n: x for n, x in tensors.items() if not n.endswith("num_batches_tracked")}


def random_like(shapes, seed, scale=0.2):
    generator = np.random.default_rng(seed)
    # Positive, so that they may be variances too.
    draw = lambda x: (0.05 + scale * generator.random(x.shape)).astype(np.float32)
    return jax.tree.map(draw, shapes)


# --- each stage alone


def test_every_stage_is_recognised():
    for file, family in ((DIFFNEXT, "stage_b"), (PRIOR, "stage_c"),
                         (GOLDEN / "vqgan" / "weights.safetensors", "vqgan")):  # fmt: skip
        assert recognise(load_file(file)).family == family


@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_stage_c_there_and_back(dtype, tmp_path, capsys):
    run(*C_FROM, "--out", tmp_path / "run", "--dtype", dtype)
    shown = capsys.readouterr().out
    assert "stage_c" in shown and "--stage_b STAGE_B_RUN --text CLIP_FOLDER" in shown
    assert "data.image_size=1024" in shown
    tensors = load_file(PRIOR)
    if dtype == "bfloat16":
        tensors = {n: x.astype(ml_dtypes.bfloat16) for n, x in tensors.items()}
    model = golden.stage_c_of(golden.config_of(PRIOR.parent)["constructor"])
    config = read_config(tmp_path / "run")
    assert StageC(**config.model) == model.clone(remat=True)
    assert (config.method, config.text.kind) == ("stage_c", "clip")
    expected = {"params": {"stage_c": STAGE_C.names.load(tensors, model)}, "model_state": {}}
    same(restore_variables(tmp_path / "run")[1], expected)
    out = tmp_path / "back.safetensors"
    run("--export", "original", "--checkpoint", tmp_path / "run", "--out", out)
    golden.same_tensors(load_file(out), tensors)

    run("--export", "diffusers", "--checkpoint", tmp_path / "run", "--out", tmp_path / "prior")
    theirs = golden.config_of(tmp_path / "prior")
    constructor = golden.config_of(PRIOR.parent)["constructor"]
    assert {n: x for n, x in constructor.items() if theirs[n] != x} == {"latent_size": [12, 12]}
    assert theirs["_class_name"] == "WuerstchenPrior"
    # The folder tells the heads, so that no option is needed.
    run("--family", "wuerstchen", "--weights", tmp_path / "prior", "--out", tmp_path / "again")
    same(restore_variables(tmp_path / "again")[1], expected)
    assert StageC(**read_config(tmp_path / "again").model) == model.clone(remat=True)


def test_stage_b_there_and_back(tmp_path, capsys):
    run(*B_FROM, *WITH_COMPRESSOR, "--out", tmp_path / "run")
    shown = capsys.readouterr().out
    assert "--tokenizer VQGAN_RUN --text CLIP_FOLDER" in shown
    tensors, effnet = load_file(DIFFNEXT), load_file(COMPRESSOR)
    model = golden.stage_b_of(golden.config_of(DIFFNEXT.parent)["constructor"])
    config = read_config(tmp_path / "run")
    assert StageB(**config.model) == model.clone(remat=True)
    variables = COMPRESSOR_NAMES.load(effnet, make_compressor(config))
    params = {"stage_b": STAGE_B.names.load(tensors, model), "compressor": variables["params"]}
    state = {"compressor": variables["batch_stats"]}
    same(restore_variables(tmp_path / "run")[1], {"params": params, "model_state": state})
    card = (tmp_path / "run" / "README.md").read_text()
    assert card.count("weights.safetensors`, ") == 2 and "and the compressor from a" in card

    out, effnet_out = tmp_path / "back.safetensors", tmp_path / "effnet.safetensors"
    capsys.readouterr()
    run("--export", "original", "--checkpoint", tmp_path / "run", "--out", out)
    assert "write the compressor with --export compressor" in capsys.readouterr().out
    golden.same_tensors(load_file(out), tensors)
    run("--export", "compressor", "--checkpoint", tmp_path / "run", "--out", effnet_out)
    golden.same_tensors(load_file(effnet_out), without_counters(effnet))

    run("--export", "diffusers", "--checkpoint", tmp_path / "run", "--out", tmp_path / "decoder")
    theirs = golden.config_of(tmp_path / "decoder")
    constructor = golden.config_of(DIFFNEXT.parent)["constructor"]
    assert {n for n, x in constructor.items() if theirs.get(n) != x} == {"self_attn"}
    diffusers = ["--family", "stage_b", "--weights", tmp_path / "decoder"]
    run(*diffusers, "--compressor", effnet_out, STAGES_OPTION, "--out", tmp_path / "again")
    same(restore_variables(tmp_path / "again")[1], {"params": params, "model_state": state})
    capsys.readouterr()
    run(*diffusers, "--out", tmp_path / "alone")
    assert "It has no compressor" in capsys.readouterr().out
    assert "It has no compressor" in (tmp_path / "alone" / "README.md").read_text()
    same(restore_variables(tmp_path / "alone")[1]["params"], {"stage_b": params["stage_b"]})
    assert not read_config(tmp_path / "alone").compressor.train
    with pytest.raises(CheckpointError, match=r"carries no compressor .* --compressor FILE"):
        run("--export", "compressor", "--checkpoint", tmp_path / "alone", "--out",
            tmp_path / "no.safetensors")  # fmt: skip
    (tmp_path / "decoder" / "config.json").write_text(json.dumps(theirs | {"_class_name": "Other"}))
    with pytest.raises(ConversionError, match="is of a 'Other', not of a WuerstchenDiffNeXt"):
        run(*diffusers, "--compressor", effnet_out, STAGES_OPTION, "--out", tmp_path / "x")
    del theirs["nhead"]
    (tmp_path / "decoder" / "config.json").write_text(json.dumps(theirs))
    with pytest.raises(ConversionError, match=r"config\.json: has no field 'nhead'"):
        run(*diffusers, "--compressor", effnet_out, STAGES_OPTION, "--out", tmp_path / "x")


# --- all stages


MODEL_B = StageB(latent_channels=4, patch_size=2, time_width=8, cond_width=16, widths=(64,),
                 depths=(1,), num_heads=(1,), patterns=("CTA",), inject=(True,), guide_channels=4,
                 dropout=0.1, remat=True)  # fmt: skip
MODEL_C = StageC(channels=4, width=64, depth=1, num_heads=1, time_width=8, dropout=0.1, remat=True)
SMALL_STAGES = (("fused", 1, 3, 1, 8, 8, 1), ("fused", 2, 3, 2, 8, 8, 1), ("mb", 2, 3, 2, 8, 16, 1))
SMALL_SIZES = [f"--config.compressor.stages={SMALL_STAGES}", "--config.compressor.ratio=1.0",
               "--config.data.image_size=32"]  # fmt: skip


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Random weights in the files of a release: torch files, CLIP and a converted Stage A."""
    folder = tmp_path_factory.mktemp("released")
    config = small.config_of("stage_b:v2", compressor__stages=SMALL_STAGES,
                             compressor__head_channels=16, model__guide_channels=4)  # fmt: skip
    compressor = make_compressor(config)
    params_b = random_like(STAGE_B.names.shapes(MODEL_B, WIDTH), 0)
    params_c = random_like(STAGE_C.names.shapes(MODEL_C, WIDTH), 1)
    zeros = jax.tree.map(np.zeros_like, params_c)
    variables = random_like(COMPRESSOR_NAMES.shapes(compressor), 2)
    write_torch_file(folder / "model_v2_stage_b.pt", {
        "state_dict": STAGE_B.names.save(params_b, MODEL_B),
        "effnet_state_dict": COMPRESSOR_NAMES.save(variables, compressor),
    })  # fmt: skip
    write_torch_file(folder / "model_v2_stage_c.pt", {
        "state_dict": STAGE_C.names.save(zeros, MODEL_C),
        "ema_state_dict": STAGE_C.names.save(params_c, MODEL_C),
    })  # fmt: skip
    write_clip_folder(folder / "clip")
    run("--family", "wuerstchen", "--weights", GOLDEN / "vqgan" / "weights.safetensors",
        "--out", folder / "stage_a")  # fmt: skip
    tree = {"stage_b": params_b, "compressor": variables["params"]}
    return folder, tree, {"compressor": variables["batch_stats"]}, {"stage_c": params_c}


@pytest.fixture(scope="module")
def stage_b(released):
    folder, params, state, _ = released
    run("--family", "wuerstchen", "--weights", folder / "model_v2_stage_b.pt", "--tokenizer",
        folder / "stage_a", "--text", folder / "clip", "--out", folder / "stage_b",
        *SMALL_SIZES)  # fmt: skip
    same(restore_variables(folder / "stage_b")[1], {"params": params, "model_state": state})
    return folder / "stage_b"


@pytest.fixture(scope="module")
def stage_c(released, stage_b):
    folder, *_ = released
    run("--family", "wuerstchen", "--weights", folder / "model_v2_stage_c.pt", "--stage_b", stage_b,
        "--text", folder / "clip", "--out", folder / "stage_c")  # fmt: skip
    return folder / "stage_c"


def test_all_stages_draw(released, stage_c):
    assert restore_variables(stage_c)[1]["model_state"] == {}
    same(restore_variables(stage_c)[1]["params"], released[3])  # the averaged ones
    card = (stage_c / "README.md").read_text()
    assert "'ema_state_dict' (also 'state_dict'): the averaged weights are taken" in card
    assert "cannot draw yet" not in card and str(released[0]) not in card
    assert "| `data.image_size` | `32` | Stage B's run |" in card
    assert "| `model.num_heads` | `1` | default |" in card
    result = paella_jax.load(stage_c).generate("a cat", num_steps=1, stage_b_num_steps=1)
    assert result.images.shape == (1, 32, 32, 3) and np.isfinite(result.images).all()
    assert result.latents_c.shape == (1, 4, 4, 4)
    # Text reaches the drawing, through the carried encoder.
    other = paella_jax.load(stage_c).generate("zzz!", num_steps=1, stage_b_num_steps=1)
    assert np.abs(other.latents_c - result.latents_c).max() > 0


def test_a_converted_stage_b_reconstructs(stage_b):
    images = np.full((1, 32, 32, 3), 0.5, np.float32)
    result = paella_jax.load(stage_b).reconstruct(images, num_steps=1)
    assert result.images.shape == images.shape and np.isfinite(result.images).all()


def test_fine_tuning_starts_with_the_converted_weights(stage_c, tmp_path):
    """With the carried networks, and none of the folders they came from."""
    config = read_config(stage_c).copy_and_resolve_references().unlock()
    config.update({"init_from": str(stage_c), "stage_b": "", "batch_size": 8})
    config.data.update({"source": "shapes", "spec": "tiny"})
    config.mesh.update({"data": -1, "fsdp": 1})
    config.log.preview_images = 2
    config = settle_config(config.lock(), tmp_path / "new")
    build_method(config, prepare_workdir(tmp_path / "new", config))
    step, variables = restore_variables(tmp_path / "new")
    assert step == 0
    same(variables, restore_variables(stage_c)[1])


def test_the_plain_weights_on_request(released, tmp_path):
    run("--family", "stage_c", "--weights", released[0] / "model_v2_stage_c.pt", "--key",
        "state_dict", "--out", tmp_path / "run")  # fmt: skip
    params = restore_variables(tmp_path / "run")[1]["params"]
    same(params, jax.tree.map(np.zeros_like, released[3]))


def test_a_stage_b_file_gives_the_compressor_too(released, tmp_path):
    """As diffusers' decoder needs it: the original file, of which only the compressor is read."""
    folder, params, state, _ = released
    save_file(STAGE_B.names.save(params["stage_b"], MODEL_B), tmp_path / "decoder.safetensors")
    run("--family", "stage_b", "--weights", tmp_path / "decoder.safetensors", "--compressor",
        folder / "model_v2_stage_b.pt", "--out", tmp_path / "run", *SMALL_SIZES)  # fmt: skip
    same(restore_variables(tmp_path / "run")[1], {"params": params, "model_state": state})


def test_released_sizes():
    """What is inferred is the presets' network."""
    model = StageB(**small.config_of("stage_b:v2").model)
    shapes = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape),
                          STAGE_B.names.shapes(model, 1024))  # fmt: skip
    tensors = STAGE_B.names.save(shapes, model, copy=False)
    assert len(tensors) == 814
    assert StageB(**infer_stage_b(tensors)).clone(remat=True, loop=True) == model
    model = StageC(**small.config_of("stage_c:v2").model)
    shapes = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape),
                          STAGE_C.names.shapes(model, 1280))  # fmt: skip
    tensors = STAGE_C.names.save(shapes, model, copy=False)
    assert len(tensors) == 520
    assert StageC(**infer_stage_c(tensors)).clone(remat=True, loop=True) == model


# --- refusals


@pytest.mark.parametrize(
    "arguments, words",
    [
        (C_FROM[:-1], r"heads, and width 48 does not divide into heads of 64"),
        (["--family", "stage_b", "--weights", DIFFNEXT, *WITH_COMPRESSOR],
         r"heads, and widths \(16, 24, 40, 32\) of levels"),
        ([*B_FROM, "--compressor", COMPRESSOR], "compressor.*neither EfficientNetV2-S nor -L"),
        ([*B_FROM, "--compressor", PRIOR, STAGES_OPTION], "not a compressor"),
        ([*B_FROM, *WITH_COMPRESSOR, "--config.model.guide_channels=5"],
         r"diffnext.*problems(?s:.*)effnet_mappers"),
        ([*B_FROM, *WITH_COMPRESSOR, "--clip", "x"], "--clip are no options of stage_b"),
        ([*B_FROM, *WITH_COMPRESSOR, "--stage_b", "x"], "--stage_b are no options of stage_b"),
        ([*B_FROM, *WITH_COMPRESSOR, "--tokenizer", "/nowhere"], "/nowhere is not a run folder"),
        ([*B_FROM, *WITH_COMPRESSOR, "--text", "/nowhere"], "--text: /nowhere is not a folder"),
        ([*C_FROM, "--stage_b", "/nowhere"], "/nowhere is not a run folder"),
        ([*C_FROM, "--tokenizer", "x"], "--tokenizer are no options of stage_c"),
        ([*C_FROM, "--compressor", COMPRESSOR], "--compressor is no option of stage_c"),
        (["--family", "stage_c", "--weights", DIFFNEXT], "looks like a stage_b file"),
        (["--family", "wuerstchen", "--weights", GOLDEN / "paella" / "weights.safetensors"],
         "looks like a paella file, you gave --family wuerstchen"),
        (["--family", "wuerstchen", "--weights", COMPRESSOR],
         "it looks like Würstchen's compressor; give it as --compressor"),
        (["--export", "compressor", "--checkpoint", "/nowhere"], "must be FILE.safetensors"),
        (["--interpolate", "/a", "/b"], "/a is not a run folder"),
        (["--interpolate", "/a", "/b", "--share", "1.5"], r"--share must be in \[0, 1\], got 1.5"),
        (["--interpolate", "/a", "/b", "--dtype", "float32"], "--dtype is no option of"),
        (["--merge", "/a"], "/a is not a run folder"),
        (["--merge", "/a", "--interpolate", "/a", "/b"], "give --family with --weights, or"),
        (["--merge", "/a", "--config.seed=1"], "fields with --family only"),
    ],
)  # fmt: skip
def test_refusals_leave_nothing_behind(arguments, words, tmp_path):
    with pytest.raises((ValueError, CheckpointError), match=words):
        run(*arguments, "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_token_model_of_the_first_release(tmp_path):
    tensors = load_file(GOLDEN / "paella" / "weights.safetensors")
    tensors["effnet_mappers.1.weight"] = np.ones((4, 4, 1, 1), np.float32)
    save_file(tensors, tmp_path / "v1.safetensors")
    for family in ("wuerstchen", "stage_b"):
        with pytest.raises(ConversionError, match="this Stage B works on tokens"):
            run("--family", family, "--weights", tmp_path / "v1.safetensors", "--out",
                tmp_path / "out")  # fmt: skip


def test_stages_that_do_not_belong_together(released, stage_b, stage_c, tmp_path):
    folder, out = released[0], ["--out", tmp_path / "out"]
    width = rf"clip has hidden_size {WIDTH}, the weights were trained with 20"
    with pytest.raises(ConversionError, match=width):
        run(*C_FROM, "--stage_b", stage_b, "--text", folder / "clip", *out)
    with pytest.raises(ConversionError, match=width.replace("20", "18")):
        run(*B_FROM, *WITH_COMPRESSOR, "--text", folder / "clip", *out)
    with pytest.raises(ConversionError, match="is a run of method 'stage_c', not stage_b"):
        run(*C_FROM, "--stage_b", stage_c, *out)
    with pytest.raises(ConversionError, match="is a stage_b with None latent channels"):
        run(*B_FROM, *WITH_COMPRESSOR, "--tokenizer", stage_b, *out)
    with pytest.raises(ConversionError, match=r"image_size 40 must be a multiple of 64 .*=64"):
        run(*B_FROM, *WITH_COMPRESSOR, "--tokenizer", folder / "stage_a",
            "--config.data.image_size=40", *out)  # fmt: skip

    wider = MODEL_C.clone(channels=6)
    params = random_like(STAGE_C.names.shapes(wider, WIDTH), 1)
    save_file(STAGE_C.names.save(params, wider), tmp_path / "wider.safetensors")
    with pytest.raises(ConversionError, match=r"takes 4 channels from Stage C, .* make 6; the st"):
        run("--family", "stage_c", "--weights", tmp_path / "wider.safetensors", "--stage_b",
            stage_b, *out)  # fmt: skip
    wider = MODEL_B.clone(guide_channels=6)
    params = random_like(STAGE_B.names.shapes(wider, WIDTH), 1)
    save_file(STAGE_B.names.save(params, wider), tmp_path / "wider.safetensors")
    with pytest.raises(ConversionError, match=r"_b\.pt: this compressor makes 4 .* takes 6; they"):
        run("--family", "stage_b", "--weights", tmp_path / "wider.safetensors", "--compressor",
            folder / "model_v2_stage_b.pt", *SMALL_SIZES, *out)  # fmt: skip


def test_a_clip_folder_without_a_tokenizer(released, tmp_path):
    clip = write_clip_folder(tmp_path / "clip")
    (clip / "merges.txt").unlink()
    with pytest.raises(ConversionError, match="diffusers repositories keep them in the folder"):
        run("--family", "stage_c", "--weights", released[0] / "model_v2_stage_c.pt", "--text",
            clip, "--out", tmp_path / "out")  # fmt: skip


def test_exports_that_do_not_exist(stage_c, tmp_path):
    with pytest.raises(ConversionError, match=r"for a stage_b only, .* is a stage_c"):
        run("--export", "compressor", "--checkpoint", stage_c, "--out", tmp_path / "x.safetensors")
    run(*C_FROM, "--config.model.self_attention=False", "--out", tmp_path / "run")
    with pytest.raises(ConversionError, match="self_attention is False, diffusers' Wuerstchen"):
        run("--export", "diffusers", "--checkpoint", tmp_path / "run", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


# --- folders without the networks they need


def test_incomplete_folders_say_what_they_lack(released, tmp_path):
    folder = released[0]
    weights = ["--family", "wuerstchen", "--weights"]
    run(*weights, folder / "model_v2_stage_c.pt", "--out", tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"carries no Stage B .* --stage_b STAGE_B_RUN"):
        paella_jax.load(tmp_path / "c")
    stage_b = [*weights, folder / "model_v2_stage_b.pt", *SMALL_SIZES]
    run(*stage_b, "--out", tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"carries no tokenizer .* --tokenizer VQGAN_RUN"):
        paella_jax.load(tmp_path / "b")
    run(*stage_b, "--tokenizer", folder / "stage_a", "--out", tmp_path / "b2")
    with pytest.raises(CheckpointError, match=r"carries no text encoder .* --text CLIP_FOLDER"):
        paella_jax.load(tmp_path / "b2")
    for name, missing in (("b", "--tokenizer VQGAN_RUN --text CLIP"), ("b2", "with --text CLIP")):
        with pytest.raises(ConversionError, match=f"lacks frozen networks; .*{missing}"):
            run(*weights, folder / "model_v2_stage_c.pt", "--stage_b", tmp_path / name, "--out",
                tmp_path / "c2")  # fmt: skip


def test_a_stage_c_without_text(released, stage_b, tmp_path):
    run("--family", "wuerstchen", "--weights", released[0] / "model_v2_stage_c.pt", "--stage_b",
        stage_b, "--out", tmp_path / "c")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"carries no text encoder .* --text CLIP_FOLDER"):
        paella_jax.load(tmp_path / "c")


def test_a_paella_without_text(released, tmp_path):
    run("--family", "paella", "--weights", GOLDEN / "paella" / "weights.safetensors", "--tokenizer",
        released[0] / "stage_a", "--config.model.num_heads=(0, 4, 3)",
        "--config.data.image_size=32", "--out", tmp_path / "run")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"without a text encoder; .* --text T5_FOLDER"):
        paella_jax.load(tmp_path / "run")


# --- runs into runs


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """A Stage C with random weights and one with other ones, in bfloat16."""
    folder = tmp_path_factory.mktemp("two")
    for name, seed, dtype in (("a", 1, "keep"), ("b", 2, "bfloat16")):
        params = random_like(STAGE_C.names.shapes(MODEL_C, WIDTH), seed)
        save_file(STAGE_C.names.save(params, MODEL_C), folder / f"{name}.safetensors")
        run("--family", "stage_c", "--weights", folder / f"{name}.safetensors", "--out",
            folder / name, "--dtype", dtype, "--config.precision=float32")  # fmt: skip
    return folder


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_interpolation(share, two_runs, tmp_path):
    a, b = (restore_variables(two_runs / name)[1]["params"] for name in "ab")
    run("--interpolate", two_runs / "a", two_runs / "b", "--share", share, "--out", tmp_path / "x")
    mixed = restore_variables(tmp_path / "x")[1]["params"]
    mean = lambda x, y: (1 - share) * x.astype(np.float64) + share * y.astype(np.float64)
    for x, y in zip(jax.tree.leaves(mixed), jax.tree.leaves(jax.tree.map(mean, a, b)), strict=True):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, y, atol=1e-7)
    if share in (0.0, 1.0):
        same(mixed, jax.tree.map(lambda x: x.astype(np.float32), b if share else a))
    assert read_config(tmp_path / "x") == read_config(two_runs / "a")
    assert f"{share:g} of `b`" in (tmp_path / "x" / "README.md").read_text()


def test_interpolation_keeps_the_first_runs_dtype_and_networks(released, stage_c, two_runs,
                                                               tmp_path):  # fmt: skip
    run("--interpolate", two_runs / "b", two_runs / "a", "--out", tmp_path / "half")
    for leaf in jax.tree.leaves(restore_variables(tmp_path / "half")[1]):
        assert leaf.dtype == ml_dtypes.bfloat16
    run("--interpolate", stage_c, two_runs / "a", "--out", tmp_path / "whole")
    pipe = paella_jax.load(tmp_path / "whole")
    assert pipe.stage_c is not None and pipe.stage_c.text.encoder is not None


def test_interpolation_of_trained_runs_mixes_statistics(tmp_path):
    """Averaged weights, BatchNorm's statistics, and counts of the first."""
    config = small.small_vqgan()
    for name, value in (("a", 1.0), ("b", 3.0)):
        state = {
            "params": {"vqgan": {"w": np.full(3, 9, np.float32)}},
            "ema_params": {"vqgan": {"w": np.full(3, value, np.float32)}},
            "model_state": {"vqgan": {"mean": np.full(2, value, np.float32)},
                            "count": np.full(2, int(value), np.int32)},
        }  # fmt: skip
        checkpointer = Checkpointer(prepare_workdir(tmp_path / name, config))
        checkpointer.save(1, state)
        checkpointer.close()
    run("--interpolate", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "x")
    tree = restore_variables(tmp_path / "x")[1]
    expected = {"vqgan": {"mean": np.full(2, 2, np.float32)}, "count": np.full(2, 1, np.int32)}
    same(tree["params"], {"vqgan": {"w": np.full(3, 2, np.float32)}})
    same(tree["model_state"], expected)


def test_runs_that_cannot_be_interpolated(released, two_runs, tmp_path):
    other = MODEL_C.clone(depth=2, time_width=16)
    params = random_like(STAGE_C.names.shapes(other, WIDTH), 1)
    save_file(STAGE_C.names.save(params, other), tmp_path / "other.safetensors")
    run("--family", "stage_c", "--weights", tmp_path / "other.safetensors", "--out",
        tmp_path / "other")  # fmt: skip
    with pytest.raises(ConversionError, match="hold other networks") as error:
        run("--interpolate", two_runs / "a", tmp_path / "other", "--out", tmp_path / "x")
    assert "model.depth: 1 -> 2" in str(error.value)
    assert "model.time_width: 8 -> 16" in str(error.value)
    for name, ratio in (("b1", 0.75), ("b2", 1.0)):
        run(*B_FROM, *WITH_COMPRESSOR, f"--config.compressor.ratio={ratio}", "--out",
            tmp_path / name)  # fmt: skip
    with pytest.raises(ConversionError, match=r"compressor.ratio: 0.75 -> 1.0"):
        run("--interpolate", tmp_path / "b1", tmp_path / "b2", "--out", tmp_path / "x")
    # The config does not tell the text's width; the arrays do.
    params = random_like(STAGE_C.names.shapes(MODEL_C, WIDTH + 1), 1)
    save_file(STAGE_C.names.save(params, MODEL_C), tmp_path / "text.safetensors")
    run("--family", "stage_c", "--weights", tmp_path / "text.safetensors", "--out",
        tmp_path / "text")  # fmt: skip
    with pytest.raises(ConversionError, match=r"text_in/kernel: \[16, 64\] -> \[17, 64\]"):
        run("--interpolate", two_runs / "a", tmp_path / "text", "--out", tmp_path / "x")
    with pytest.raises(ConversionError, match="method: 'stage_c' -> 'vqgan'"):
        run("--interpolate", two_runs / "a", released[0] / "stage_a", "--out", tmp_path / "x")
    with pytest.raises(ConversionError, match="not empty; choose a new --out"):
        run("--interpolate", two_runs / "a", two_runs / "b", "--out", two_runs / "b")
    assert not (tmp_path / "x").exists()


def test_merging_adapters(two_runs, tmp_path, capsys):
    base = {"predictor": {"kv_mapper": {"kernel": np.ones((8, 8), np.float32)}}}
    config = small.small_paella(lora__rank=2, lora__pattern="kv_mapper")
    adapters = lora_init(jax.random.key(0), base, config.lora.pattern, 2)
    adapters = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.5), adapters)
    workdir = prepare_workdir(tmp_path / "lora", config)
    save_tree(workdir / "frozen" / "base.safetensors", base)
    save_tree(workdir / "frozen" / "other.safetensors", {"x": np.ones(1, np.float32)})
    checkpointer = Checkpointer(workdir)
    checkpointer.save(3, {"params": adapters, "ema_params": {}, "model_state": {}})
    checkpointer.close()
    run("--merge", workdir, "--out", tmp_path / "merged")
    assert "adapters of rank 2 merged" in capsys.readouterr().out
    merged = restore_trained(tmp_path / "merged", read_config(tmp_path / "merged"))
    expected = lora_merge(base, adapters, config.lora.alpha)
    same(merged, jax.tree.map(np.asarray, expected))
    assert np.abs(jnp.asarray(merged["predictor"]["kv_mapper"]["kernel"]) - 1).max() > 0.1
    assert [f.name for f in (tmp_path / "merged" / "frozen").iterdir()] == ["other.safetensors"]
    assert read_config(tmp_path / "merged").lora.rank == 0
    with pytest.raises(ConversionError, match="not empty; choose a new --out"):
        run("--merge", workdir, "--out", two_runs / "a")
    run("--merge", two_runs / "a", "--out", tmp_path / "plain")
    assert "no adapters to merge" in capsys.readouterr().out
