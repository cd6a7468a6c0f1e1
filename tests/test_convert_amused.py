"""`python -m paella_jax.convert` for folders of aMUSEd, and for diffusers' VQModel alone."""

from __future__ import annotations

import json
import shutil

import golden
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import small
import small_clip
from converting import run, same
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from small_amused import (
    CODES,
    GOLDEN,
    MASK,
    POOLED,
    TEXT_WIDTH,
    TOKENIZER,
    UVIT,
    WEIGHTS,
    random_like,
    write_amused,
    write_vqvae,
)

import paella_jax
from paella_jax.config import to_json
from paella_jax.convert.amused import AMUSED, make_uvit
from paella_jax.convert.plan import plan_conversion
from paella_jax.convert.recognise import Parts, recognise
from paella_jax.convert.vqgan import VQGAN as VQGAN_F4
from paella_jax.convert.vqgan import VQMODEL
from paella_jax.encoders.published import TEXT, load_clip_text_folder
from paella_jax.families.start import carry_frozen, settle_config
from paella_jax.families.token_training import token_method
from paella_jax.families.vqgan import load_carried_tokenizer, load_vqgan_run
from paella_jax.files.tensors import ConversionError, Weights, to_theirs
from paella_jax.files.weights_file import open_weights
from paella_jax.models.uvit import UViT
from paella_jax.models.vqgan import VQGAN
from paella_jax.models.vqmodel import VQModel
from paella_jax.runs.checkpoint import CheckpointError, restore_variables
from paella_jax.runs.digests import note_files, write_noted
from paella_jax.runs.folder import read_config
from paella_jax.runs.weights import save_tree
from paella_jax.sampling.parallel_decode import ParallelDecodeSettings

FILES = {
    "transformer": WEIGHTS, "vqvae": WEIGHTS, "text_encoder": "model.safetensors",
}  # fmt: skip
SIZE = 16  # pixels: 8 tokens, two pixels each


def json_of(file):
    content = json.loads(file.read_text())
    return {name: value for name, value in content.items() if not name.endswith("_version")}


def change_json(file, **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({n: x for n, x in content.items() if x is not None}))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of both towers, narrower than the recorded U-ViT's."""
    return small_clip.write_clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def amused(clip, tmp_path_factory):
    return write_amused(tmp_path_factory.mktemp("amused") / "amused", clip)


@pytest.fixture(scope="module")
def converted(amused, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "run"
    run("--family", "amused", "--weights", amused, "--out", out)
    return out


@pytest.fixture(scope="module")
def tokenizer_run(amused, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer") / "run"
    run("--family", "vqgan", "--weights", amused / "vqvae", "--out", out)
    return out


@pytest.fixture
def copy(amused, tmp_path):
    """The folder, to be damaged."""
    return shutil.copytree(amused, tmp_path / "amused")


# --- the whole folder


def test_a_folder_becomes_a_run(amused, converted):
    config = read_config(converted)
    cell = (config.cell.corruption, config.cell.network, config.cell.sampler)
    assert cell == ("mask", "uvit", "confidence")
    model = AMUSED.foreign.read(golden.config_of(UVIT))
    assert make_uvit(config, TEXT_WIDTH, POOLED) == model
    assert (config.text.kind, config.data.image_size, config.precision) == ("clip", SIZE, "float32")
    expected = {"predictor": AMUSED.names.load(load_file(UVIT / WEIGHTS), model)}
    same(restore_variables(converted)[1], {"params": expected, "model_state": {}})

    tokenizer, variables = load_carried_tokenizer(converted)
    assert tokenizer == TOKENIZER
    same(
        variables, {"params": VQMODEL.names.load(load_file(amused / "vqvae" / WEIGHTS), TOKENIZER)}
    )
    carried, source = (load_clip_text_folder(f)[1] for f in (
        converted / "frozen" / "clip", amused / "text_encoder"))  # fmt: skip
    same(carried, source)
    card = (converted / "README.md").read_text()
    assert card.count("SHA-256") == 3 and "cannot draw yet" not in card
    assert "| `uvit.conv_heads` | `5` | its config.json |" in card
    assert "| `sampler.schedule` | `cosine` | its scheduler |" in card
    assert "--export diffusers --checkpoint run --out FOLDER" in card


def test_a_folder_loads_as_it_is(amused, converted, tmp_path, monkeypatch):
    monkeypatch.setattr("paella_jax.convert.published.kept_folder", lambda: tmp_path)
    direct = paella_jax.load(amused)
    same(restore_variables(direct.origin.folder), restore_variables(converted))
    assert read_config(direct.origin.folder) == read_config(converted)
    assert direct.networks.vqgan == TOKENIZER and direct.networks.clip_tokenizer is not None
    with pytest.raises(ConversionError, match="has no use for prior; it takes none"):
        paella_jax.load(amused, prior="x")


def check_same_folder(ours, theirs):
    """The same files with the same tensors and settings."""
    files = lambda folder: sorted(str(f.relative_to(folder)) for f in folder.rglob("*.*"))
    assert files(ours) == files(theirs)
    for part, name in FILES.items():
        golden.same_tensors(load_file(ours / part / name), load_file(theirs / part / name))
    for name in files(theirs):
        if name.endswith(".json"):
            assert json_of(ours / name) == json_of(theirs / name), name
        elif name.endswith(".txt"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_and_a_folder_again(amused, converted, tmp_path):
    run("--export", "diffusers", "--checkpoint", converted, "--out", tmp_path / "back")
    check_same_folder(tmp_path / "back", amused)
    with pytest.raises(ConversionError, match=r"is an amused, which has diffusers' names only"):
        run("--export", "original", "--checkpoint", converted, "--out", tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(copy, dtype, tmp_path):
    for part, name in FILES.items():
        tensors = {n: x.astype(dtype) for n, x in load_file(copy / part / name).items()}
        save_file(tensors, copy / part / name)
    # Repositories have other precisions beside the main file.
    (copy / "transformer" / "diffusion_pytorch_model.fp16.safetensors").write_text("unread")
    name = np.dtype(dtype).name
    run("--family", "amused", "--weights", copy, "--out", tmp_path / "run")
    run("--family", "amused", "--weights", copy, "--out", tmp_path / "wide", "--dtype", "float32")
    assert read_config(tmp_path / "run").precision == (
        "bfloat16" if dtype == ml_dtypes.bfloat16 else "float32"
    )
    stored, wide = (restore_variables(tmp_path / name)[1]["params"] for name in ("run", "wide"))
    assert {x.dtype for x in jax.tree.leaves(stored)} == {np.dtype(dtype)}
    same(wide, jax.tree.map(lambda x: x.astype(np.float32), stored))
    (copy / "transformer" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    run("--export", "diffusers", "--checkpoint", tmp_path / "run", "--out", tmp_path / "back")
    check_same_folder(tmp_path / "back", copy)
    run("--export", "diffusers", "--checkpoint", tmp_path / "wide", "--out", tmp_path / "again",
        "--dtype", name)  # fmt: skip
    check_same_folder(tmp_path / "again", copy)


def test_the_pipelines_defaults(converted):
    """Those of diffusers' AmusedPipeline and of its scheduler (docs/models/muse.md 2.6, 2.7)."""
    settings = paella_jax.load(converted).settings()
    assert settings == ParallelDecodeSettings(
        num_steps=12, schedule="cosine", choice_temperature=(2.0, 0.0), temperature=(1.0, 1.0),
        guidance_scale=(10.0, 10.0),
    )  # fmt: skip


def test_a_converted_run_draws_what_the_networks_say(converted):
    """One cold, unguided step is the U-ViT's best guess for the text and the image's size."""
    pipe = paella_jax.load(converted)
    height, width = 8, 16
    result = pipe.generate("a cat", height=height, width=width, num_steps=1, temperature=1e-4,
                           guidance_scale=1.0)  # fmt: skip
    assert result.images.shape == (1, height, width, 3) and np.isfinite(result.images).all()
    module, clip_params = load_clip_text_folder(converted / "frozen" / "clip")
    model = AMUSED.foreign.read(golden.config_of(UVIT))
    params = AMUSED.names.load(load_file(UVIT / WEIGHTS), model)
    tokens = jnp.full((1, height // 2, width // 2), MASK)
    numbers = jnp.array([[width, height, 0.0, 0.0, 6.0]])

    @jax.jit
    def expect(clip_params, params, ids):
        text = module.apply({"params": clip_params}, ids)
        states = text.penultimate_hidden_state
        return model.apply({"params": params}, tokens, states, text.embedding, numbers)

    logits = expect(clip_params, params, pipe.networks.clip_tokenizer(["a cat"])[0])
    np.testing.assert_array_equal(result.tokens, logits.argmax(-1))


def test_another_schedule(copy, tmp_path):
    change_json(copy / "scheduler" / "scheduler_config.json", masking_schedule="linear")
    run("--family", "amused", "--weights", copy, "--out", tmp_path / "run")
    assert read_config(tmp_path / "run").sampler.schedule == "linear"
    run("--export", "diffusers", "--checkpoint", tmp_path / "run", "--out", tmp_path / "back")
    check_same_folder(tmp_path / "back", copy)


# --- its parts


def test_a_vqmodel_there_and_back(amused, tokenizer_run, tmp_path):
    config, model, variables = load_vqgan_run(tokenizer_run)
    assert (config.method, config.architecture, model) == ("vqgan", "resnet", TOKENIZER)
    tensors = load_file(amused / "vqvae" / WEIGHTS)
    same(variables, {"params": VQMODEL.names.load(tensors, TOKENIZER)})
    codes = restore_variables(tokenizer_run)[1]["model_state"]["codes"]
    same(codes["usage"], np.ones(CODES, np.float32))
    run("--export", "diffusers", "--checkpoint", tokenizer_run, "--out", tmp_path / "back")
    golden.same_tensors(load_file(tmp_path / "back" / WEIGHTS), tensors)
    theirs = json_of(amused / "vqvae" / "config.json")
    assert json_of(tmp_path / "back" / "config.json") == theirs
    assert "--export diffusers" in (tokenizer_run / "README.md").read_text()
    with pytest.raises(ConversionError, match="'resnet', which has diffusers' names only"):
        run("--export", "original", "--checkpoint", tokenizer_run, "--out",
            tmp_path / "x.safetensors")  # fmt: skip

    # Without its config.json the weights tell all but the norm's groups.
    alone = tmp_path / "alone.safetensors"
    shutil.copy(amused / "vqvae" / WEIGHTS, alone)
    run("--family", "vqgan", "--weights", alone, "--out", tmp_path / "again",
        "--config.model.norm_groups=4")  # fmt: skip
    assert load_vqgan_run(tmp_path / "again")[1] == TOKENIZER


def test_a_transformer_with_networks_from_elsewhere(
    amused, converted, tokenizer_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(small_clip, "WIDTH", TEXT_WIDTH)
    clip = small_clip.write_clip_folder(tmp_path / "clip")
    run("--family", "amused", "--weights", amused / "transformer", "--tokenizer", tokenizer_run,
        "--clip", clip, "--out", tmp_path / "run")  # fmt: skip
    config = read_config(tmp_path / "run").copy_and_resolve_references().unlock()
    config.tokenizer = config.clip.folder = ""
    assert config.to_dict() == read_config(converted).to_dict()
    assert paella_jax.load(tmp_path / "run").networks.vqgan == TOKENIZER
    # A CLIP of two towers leaves its text tower.
    run("--export", "diffusers", "--checkpoint", tmp_path / "run", "--out", tmp_path / "back")
    module, params = load_clip_text_folder(clip)
    out = tmp_path / "back" / "text_encoder"
    assert load_clip_text_folder(out)[0] == module
    same(TEXT.load(load_file(out / "model.safetensors"), module), params)
    run("--family", "amused", "--weights", tmp_path / "back", "--out", tmp_path / "again")
    assert read_config(tmp_path / "again") == read_config(converted)


def test_a_transformer_alone(amused, tmp_path, capsys):
    shutil.copy(amused / "transformer" / WEIGHTS, tmp_path / "x.safetensors")
    options = ["--family", "amused", "--weights", tmp_path / "x.safetensors"]
    micro, heads = "--config.uvit.micro_width=16", "--config.uvit.num_heads=4"
    with pytest.raises(ConversionError, match=r"width 48 does not .* --config\.uvit\.num_heads=N"):
        run(*options, "--out", tmp_path / "run")
    with pytest.raises(ConversionError, match=r"conv_width 40 does .*\.uvit\.conv_heads=N"):
        run(*options, heads, "--out", tmp_path / "run")
    heads = [heads, "--config.uvit.conv_heads=5"]
    with pytest.raises(ConversionError, match=r"takes 92 inputs, but 5 micro-cond.* width 256"):
        run(*options, *heads, "--out", tmp_path / "run")
    run(*options, *heads, micro, "--out", tmp_path / "run")
    shown = capsys.readouterr().out
    assert "cannot draw yet" in shown and "--tokenizer VQGAN_RUN --clip CLIP_FOLDER" in shown
    config = read_config(tmp_path / "run")
    model = AMUSED.foreign.read(golden.config_of(UVIT))
    assert make_uvit(config, TEXT_WIDTH, POOLED) == model
    with pytest.raises(CheckpointError, match="carries no tokenizer"):
        paella_jax.load(tmp_path / "run")
    run("--export", "diffusers", "--checkpoint", tmp_path / "run", "--out", tmp_path / "back")
    assert "not in the folder: vqvae, text_encoder, tokenizer" in capsys.readouterr().out
    assert sorted(f.name for f in (tmp_path / "back").iterdir()) == ["scheduler", "transformer"]
    golden.same_tensors(load_file(tmp_path / "back" / "transformer" / WEIGHTS),
                        load_file(UVIT / WEIGHTS))  # fmt: skip


def shapes_of(entries, abstract, folder):
    """A state dict without memory behind it."""
    flat = flatten_dict(abstract)
    empty = lambda shape: np.broadcast_to(np.float32(0), shape)
    tensors = {e.name: to_theirs(empty(flat[e.path].shape), e.layout) for e in entries}
    return Weights(tensors, "shapes", [folder / WEIGHTS])


@pytest.mark.parametrize("preset, count", [("amused_256", 474), ("amused_512", 478)])
def test_released_sizes(preset, count, tmp_path):
    """What is inferred is the presets' network."""
    known = small.config_of(f"muse:{preset}")
    model = make_uvit(known, 768, 768)
    assert model == UViT(downsample=count == 478, upsample=count == 478)
    weights = shapes_of(AMUSED.names.table(model), AMUSED.names.shapes(model), tmp_path)
    assert len(weights) == count
    plan = plan_conversion(Parts(AMUSED, weights))
    assert plan.config.uvit.to_dict() == known.uvit.to_dict()
    assert plan.config.data.image_size == known.data.image_size


def test_the_released_tokenizers_size(tmp_path):
    weights = shapes_of(VQMODEL.names.table(VQModel()), VQMODEL.names.shapes(VQModel()), tmp_path)
    plan = plan_conversion(Parts(VQMODEL, weights))
    assert VQModel(**plan.config.model) == VQModel()
    assert plan.parameter_count() == 146_244_675


def test_a_file_that_begins_like_a_pickle(tmp_path):
    """A safetensors header may be of any length, so that its first byte may be a pickle's mark."""
    file, tensors = tmp_path / "x.safetensors", {"w": np.ones(3, np.float32)}
    for size in range(256):
        save_file(tensors, file, metadata={"note": "x" * size})
        if file.read_bytes()[0] == 0x80:
            break
    assert file.read_bytes()[0] == 0x80
    golden.same_tensors(open_weights(file), tensors)


def test_fine_tuning_fits_the_converted_weights(converted, tmp_path):
    """With the carried tokenizer and text encoder."""
    changes = {"source": "shapes", "spec": "tiny", "image_size": 32}
    changes = {f"data__{name}": value for name, value in changes.items()}
    config = small.config_of("muse:finetune", init_from=converted, **changes)
    config = settle_config(config, tmp_path / "new")
    carry_frozen(config, tmp_path / "new")
    wanted, state = jax.eval_shape(token_method(config, tmp_path / "new").init, jax.random.key(0))
    params = restore_variables(converted)[1]["params"]
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    assert (shapes(params), state) == (shapes(wanted), {})


# --- refusals


def test_both_networks_are_recognised(amused):
    assert recognise(load_file(UVIT / WEIGHTS)) is AMUSED
    assert recognise(load_file(amused / "vqvae" / WEIGHTS)) is VQMODEL


@pytest.mark.parametrize(
    "missing",
    [
        ["model_index.json"],
        ["vqvae/config.json"],
        ["tokenizer", "scheduler/scheduler_config.json"],
        ["text_encoder/config.json"],
        ["transformer/config.json"],
    ],
)
def test_a_folder_without_all_parts(copy, missing, tmp_path):
    for name in missing:
        file = copy / name
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    with pytest.raises(ConversionError, match=f"lacks {', '.join(missing)} of an AmusedPipeline"):
        run("--family", "amused", "--weights", copy, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_weights(copy, tmp_path):
    arguments = ["--family", "amused", "--weights", copy, "--out", tmp_path / "out"]
    (copy / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"text_encoder has no weights \(model.safetensors"):
        run(*arguments)
    (copy / "vqvae" / WEIGHTS).unlink()
    with pytest.raises(ConversionError, match=r"vqvae must hold one weights file"):
        run(*arguments)


@pytest.mark.parametrize(
    "part, changes, words",
    [
        ("scheduler", {"masking_schedule": "cubic"},
         r"masking_schedule 'cubic' is not known here, only cosine, linear"),
        ("scheduler", {"_class_name": "DDPM"}, "is of a 'DDPM', not of an AmusedScheduler"),
        ("scheduler", {"mask_token_id": None}, "has no field 'mask_token_id'"),
        ("scheduler", {"mask_token_id": 55}, "mask_token_id is 55, the transformer's last .* 71"),
        ("text_encoder", {"hidden_size": 16},
         "text_encoder has hidden_size 16, the weights were trained with 20"),
        ("text_encoder", {"projection_dim": 9},
         "text_encoder has projection_dim 9, the weights were trained with 12"),
        ("text_encoder", {"num_hidden_layers": 3}, r"text_encoder: .*\n? .*missing tensor"),
        ("transformer", {"_class_name": "Other"}, "is of a 'Other', not of a UVit2DModel"),
        ("transformer", {"micro_cond_embed_dim": 81}, r"config\.json: micro_cond_embed_dim 81"),
        ("transformer", {"micro_cond_embed_dim": 96}, "has room for 6 micro-conditions"),
        ("transformer", {"sample_size": 7}, r"image_size 14 must be a multiple of 4 .*=4"),
        ("vqvae", {"_class_name": "Other"}, "is of a 'Other', not of a VQModel"),
        ("vqvae", {"norm_type": "spatial"}, r"config\.json: norm_type 'spatial' is not supported"),
        ("vqvae", {"norm_num_groups": 3}, "3 norm groups do not divide"),
        ("vqvae", {"latent_channels": None}, "has no field 'latent_channels'"),
    ],
)  # fmt: skip
def test_parts_with_other_settings(copy, part, changes, words, tmp_path):
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    change_json(copy / part / name, **changes)
    with pytest.raises(ValueError, match=rf"(?s){words}"):
        run("--family", "amused", "--weights", copy, "--out", tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["amused"]


def test_networks_of_other_sizes(copy, tmp_path):
    shutil.rmtree(copy / "vqvae")
    write_vqvae(copy / "vqvae", TOKENIZER.clone(codebook_size=48))
    with pytest.raises(ConversionError, match=r"its vqvae has 48 codes, its transformer 64; they"):
        run("--family", "amused", "--weights", copy, "--out", tmp_path / "out")


@pytest.mark.parametrize("part", ["transformer", "vqvae"])
def test_every_misfit_is_listed(copy, part, tmp_path):
    file = copy / part / WEIGHTS
    tensors = load_file(file)
    lost = {
        "transformer": ("transformer_layers.2.", "mlm_layer.conv1.weight"),
        "vqvae": ("decoder.up_blocks.1.", "quant_conv.weight"),
    }[part]
    tensors = {n: x for n, x in tensors.items() if not n.startswith(lost)} | {
        "surprise": np.zeros(3, np.float32)
    }
    removed = load_file(file).keys() - tensors.keys()
    assert len(removed) > 5
    save_file(tensors, file)
    with pytest.raises(ConversionError, match=r"safetensors: .* problems") as error:
        run("--family", "amused", "--weights", copy, "--out", tmp_path / "out")
    for name in (*removed, "unknown tensor surprise"):
        assert name in str(error.value)


def test_weights_of_another_family(amused, converted, tokenizer_run, tmp_path):
    out = ["--out", tmp_path / "out"]
    paella = GOLDEN / "paella" / "weights.safetensors"
    for family, weights, words in (
        ("amused", paella, "looks like a paella file, you gave --family amused"),
        ("amused", GOLDEN / "vqgan" / "diffusers", "looks like a vqgan file"),
        ("amused", amused / "vqvae", "looks like a vqgan file, you gave --family amused"),
        ("amused", amused / "text_encoder", "looks like a CLIP model; give its folder as --clip"),
        ("paella", amused / "transformer", "looks like an amused file, you gave --family paella"),
        ("paella", amused, "looks like an amused file, you gave --family paella"),
        ("vqgan", amused / "transformer", "looks like an amused file, you gave --family vqgan"),
    ):
        with pytest.raises(ConversionError, match=words):
            run("--family", family, "--weights", weights, *out)
    assert not list(tmp_path.iterdir())


def test_options_that_do_not_fit(amused, clip, converted, tokenizer_run, tmp_path):
    out = ["--out", tmp_path / "out"]
    whole = ["--family", "amused", "--weights", amused]
    transformer = ["--family", "amused", "--weights", amused / "transformer"]
    for arguments, words in (
        ([*whole, "--tokenizer", tokenizer_run], "its own networks; leave out --tokenizer, or"),
        ([*whole, "--key", "x"], "is a pipeline folder, which has no entries; leave out --key"),
        ([*whole, "--text", "x"], "--text are no options of amused"),
        ([*whole, "--config.cell.corruption=uniform"], "needs a network that is told"),
        ([*transformer, "--clip", clip], "--clip needs --tokenizer too"),
        ([*transformer, "--tokenizer", converted], "is an amused with None codes, the"),
        ([*transformer, "--tokenizer", tokenizer_run, "--clip", clip],
         "clip.* has hidden_size 16, the weights were trained with 20"),
        ([*transformer, "--tokenizer", tokenizer_run, "--clip", "/nowhere"],
         "--clip: /nowhere is not a folder"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            run(*arguments, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"uvit": {"micro_conds": 6, "micro_width": 12}}, "uvit.micro_conds is 6, it has 5 only"),
        ({"cell": {"corruption": "uniform"}}, "cell.corruption is 'uniform', it has 'mask' only"),
        ({"text": {"kind": "t5"}}, "text.kind is 't5', it has 'clip' only"),
        ({"sampler": {"schedule": "power"}}, "schedule is 'power', AmusedScheduler has cosine and"),
        ({"cell": {"network": "transformer"}}, "is a 'transformer', which has no published"),
    ],
)
def test_runs_that_no_pipeline_is(converted, changes, words, tmp_path):
    shutil.copytree(converted, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    for block, fields in changes.items():
        config[block] |= fields
    write_noted(file.parent, file.name, json.dumps(config))
    with pytest.raises(ConversionError, match=words):
        run("--export", "diffusers", "--checkpoint", tmp_path / "run", "--out", tmp_path / "out")


def test_a_run_with_paellas_tokenizer(converted, tmp_path):
    shutil.copytree(converted, tmp_path / "run")
    config = small.small_vqgan()
    variables = random_like(VQGAN_F4.names.shapes(VQGAN(**config.model)), 3)
    save_tree(tmp_path / "run" / "frozen" / "vqgan.safetensors", variables)
    write_noted(tmp_path / "run", "frozen/vqgan.json", to_json(config))
    note_files(tmp_path / "run", ["frozen/vqgan.safetensors"])
    with pytest.raises(ConversionError, match=r"tokenizer of architecture 'paella', diffusers'"):
        run("--export", "diffusers", "--checkpoint", tmp_path / "run", "--out", tmp_path / "out")


def test_a_stage_b_needs_paellas_tokenizer(tokenizer_run, tmp_path):
    weights = GOLDEN / "wuerstchen_diffnext" / "weights.safetensors"
    compressor = GOLDEN / "wuerstchen_compressor"
    stages = tuple(map(tuple, golden.config_of(compressor)["stages"]))
    with pytest.raises(ConversionError, match="'resnet'; Stage B works on the latents of a 'pae"):
        run("--family", "stage_b", "--weights", weights, "--tokenizer", tokenizer_run,
            "--compressor", compressor / "weights.safetensors",
            f"--config.compressor.stages={stages}", "--config.model.num_heads=(0, 3, 5, 4)",
            "--out", tmp_path / "out")  # fmt: skip


def test_a_masked_paella_is_not_exported(tmp_path):
    run("--family", "paella", "--weights", GOLDEN / "paella" / "weights.safetensors",
        "--config.model.num_heads=(0, 4, 3)", "--out", tmp_path / "run")  # fmt: skip
    change = json.loads((tmp_path / "run" / "config.json").read_text())
    change["cell"]["corruption"] = "mask"
    write_noted(tmp_path / "run", "config.json", json.dumps(change))
    with pytest.raises(ConversionError, match="the original Paella has no mask"):
        run("--export", "original", "--checkpoint", tmp_path / "run", "--out",
            tmp_path / "x.safetensors")  # fmt: skip
