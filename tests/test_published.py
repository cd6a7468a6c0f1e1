"""Folders as they are published load as they are: converted on the fly, kept, and told apart."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
import small
import small_clip
from safetensors.numpy import save_file
from small_torch import write_torch_file

import paella_jax
from paella_jax.convert import published
from paella_jax.convert.paella import PAELLA
from paella_jax.convert.published import needed_files, recognise_folder
from paella_jax.convert.vqgan import VQGAN as STAGE_A
from paella_jax.convert.wuerstchen import STAGE_B, STAGE_C
from paella_jax.encoders.clip_text import clip_text_from_hf_config
from paella_jax.encoders.published import T5_NAMES, TEXT
from paella_jax.encoders.t5 import t5_from_hf_config
from paella_jax.files.tensors import ConversionError
from paella_jax.models.paella import Paella
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC
from paella_jax.models.vqgan import VQGAN
from paella_jax.runs.folder import read_config
from paella_jax.sharing.hub import HubError

pytestmark = pytest.mark.devices(8)
WEIGHTS = "diffusion_pytorch_model.safetensors"
TEXT_WIDTH, CODES = 16, 32
# Heads are 64 and 80 wide, as the released ones.
MODEL_A = VQGAN(levels=2, bottleneck_blocks=1, width=16, latent_channels=4, codebook_size=CODES,
                scale_factor=0.5)  # fmt: skip
MODEL_B = StageB(latent_channels=4, patch_size=2, time_width=8, cond_width=16, widths=(64,),
                 depths=(1,), num_heads=(1,), patterns=("CTA",), inject=(True,), guide_channels=4,
                 dropout=0.1)  # fmt: skip
MODEL_C = StageC(channels=4, width=64, depth=1, num_heads=1, time_width=8, dropout=0.1)
PAELLA_MODEL = Paella(codebook_size=CODES, token_width=8, cond_width=16, patch_size=1, widths=(80,),
                      depths=(1,), patterns=("CTA",), num_heads=(1,), clip_tokens=2)  # fmt: skip


def tensors_of(record, model, *widths, seed=0, **options):
    """A published state dict of random weights."""
    return record.names.save(
        random_like(record.names.shapes(model, *widths), seed), model, **options
    )


def random_like(shapes, seed):
    return small.random_values(shapes, seed)


def write_network(folder, record, model, *widths, seed=0, **told):
    """A diffusers network's folder."""
    folder.mkdir(parents=True)
    save_file(tensors_of(record, model, *widths, seed=seed, diffusers=True), folder / WEIGHTS)
    config = record.foreign.write(model, **told)
    (folder / "config.json").write_text(json.dumps(config))


def write_text(folder, clip, prefix="", seed=0):
    """A text tower and its tokenizer in two folders."""
    encoder, tokenizer = folder / f"{prefix}text_encoder", folder / f"{prefix}tokenizer"
    encoder.mkdir(parents=True)
    tokenizer.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(clip / name, tokenizer / name)
    config = json.loads((clip / "config.json").read_text())["text_config"]
    config |= {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}
    module = clip_text_from_hf_config(config)
    save_file(
        TEXT.save(random_like(TEXT.shapes(module), seed), module), encoder / "model.safetensors"
    )
    (encoder / "config.json").write_text(json.dumps(config))


def write_index(folder, kind):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return small_clip.write_clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def wuerstchen(clip, tmp_path_factory):
    """Diffusers' two pipelines, as they lie beside each other when downloaded."""
    folder = tmp_path_factory.mktemp("hub") / "wuerstchen"
    write_network(folder / "vqgan", STAGE_A, MODEL_A)
    write_network(folder / "decoder", STAGE_B, MODEL_B, TEXT_WIDTH, seed=1, text_width=TEXT_WIDTH)
    write_text(folder, clip, seed=2)
    write_index(folder, "WuerstchenDecoderPipeline")
    prior = folder.with_name("wuerstchen-prior")
    write_network(prior / "prior", STAGE_C, MODEL_C, TEXT_WIDTH, seed=3, text_width=TEXT_WIDTH)
    write_text(prior, clip, seed=4)
    write_index(prior, "WuerstchenPriorPipeline")
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def cache(kept, monkeypatch):
    """Conversions of these tests, and a hub that has nothing."""

    def nothing(name, **options):
        raise HubError(f"{name} is not in the hub's cache")

    monkeypatch.setattr(published, "kept_folder", lambda: kept)
    monkeypatch.setattr(published, "download", nothing)


def test_diffusers_wuerstchen_draws_from_text_without_its_compressor(wuerstchen, kept, capsys):
    pipe = paella_jax.load(wuerstchen)
    assert "converting" in capsys.readouterr().err
    draw = {"height": 128, "width": 128, "num_steps": 1, "stage_b_num_steps": 1}
    result = pipe.generate("a cat", **draw)
    assert result.images.shape == (1, 128, 128, 3) and np.isfinite(result.images).all()
    assert not pipe.can_encode
    other = pipe.generate("zzz!", **draw)
    assert np.abs(other.latents_c - result.latents_c).max() > 0
    for work in (pipe.reconstruct, pipe.encode):
        with pytest.raises(
            ValueError, match=r"no compressor, .* draws from text, but cannot encode"
        ):
            work(np.zeros((1, 128, 128, 3), np.float32))
    # What was converted is kept, and none of the places it came from is in it.
    (folder,) = kept.iterdir()
    paella_jax.load(wuerstchen)
    assert [folder] == list(kept.iterdir()) and "converting" not in capsys.readouterr().err
    assert read_config(folder).stage_b == read_config(folder).text.folder == ""
    assert str(wuerstchen) not in (folder / "config.json").read_text()


def test_it_is_saved_and_comes_back(wuerstchen, tmp_path):
    pipe = paella_jax.load(wuerstchen)
    again = paella_jax.load(pipe.save(tmp_path / "mine"))
    weights = [jax.tree.leaves(p._weights["stage_b"]) for p in (pipe, again)]
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert again._weights["compressor"] is None


def test_both_pipelines_in_one_folder(wuerstchen, tmp_path):
    folder = shutil.copytree(wuerstchen, tmp_path / "combined")
    prior = wuerstchen.with_name("wuerstchen-prior")
    for part in ("prior", "text_encoder", "tokenizer"):
        shutil.copytree(prior / part, folder / f"prior_{part}")
    write_index(folder, "WuerstchenCombinedPipeline")
    pipe, other = paella_jax.load(folder), paella_jax.load(wuerstchen)
    for ours, theirs in zip(
        jax.tree.leaves(pipe._weights["stage_c"]),
        jax.tree.leaves(other._weights["stage_c"]),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def original(clip, tmp_path_factory):
    """Würstchen's and Paella's torch files as their authors put them on the hub."""
    folder = tmp_path_factory.mktemp("original")
    stage_a = {"state_dict": tensors_of(STAGE_A, MODEL_A)}
    (folder / "wuerstchen").mkdir()
    write_torch_file(folder / "wuerstchen" / "vqgan_f4_v1_500k.pt", stage_a)
    stages = (("model_v2_stage_b.pt", STAGE_B, MODEL_B), ("model_v2_stage_c.pt", STAGE_C, MODEL_C))
    for name, record, model in stages:
        tensors = tensors_of(record, model, TEXT_WIDTH, seed=1)
        write_torch_file(folder / "wuerstchen" / name, {"state_dict": tensors})
    (folder / "paella").mkdir()
    write_torch_file(folder / "paella" / "vqgan_f4.pt", stage_a["state_dict"])
    tensors = tensors_of(PAELLA, PAELLA_MODEL, TEXT_WIDTH, small_clip.PROJECTION)
    write_torch_file(folder / "paella" / "paella_v3.pt", tensors)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A ByT5 encoder with few weights."""
    folder = tmp_path_factory.mktemp("byt5")
    config = json.loads((small.ROOT / "tests/golden/text_encoders/byt5/config.json").read_text())
    config |= {"d_model": TEXT_WIDTH}
    module = t5_from_hf_config(config)
    save_file(T5_NAMES.save(random_like(T5_NAMES.shapes(module), 5), module),
              folder / "model.safetensors")  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_paella_s_files_load_with_the_encoders_that_are_given(original, t5, clip):
    pipe = paella_jax.load(original / "paella", text=t5, clip=clip)
    images = pipe("a cat", num_steps=1, height=32, width=32, output_type="array")
    assert images.shape == (1, 32, 32, 3) and np.isfinite(images).all()
    assert pipe.config.image_encoder.kind == "clip" and pipe.config.text.folder == ""


def test_paella_draws_without_clip(original, t5, capsys):
    assert paella_jax.load(original / "paella", text=t5).networks.clip_text is None
    assert "is loaded without CLIP ViT-H/14: give clip=FOLDER" in capsys.readouterr().err


def test_wuerstchen_s_files_load(original, clip):
    pipe = paella_jax.load(original / "wuerstchen", clip=clip, prior_text=clip)
    assert pipe.stage_c is not None and pipe.config.data.image_size == 1024


def test_an_encoder_beside_the_folder_is_found(original, t5, clip, tmp_path):
    folder = shutil.copytree(original / "paella", tmp_path / "paella")
    shutil.copytree(t5, tmp_path / "paella-text")
    shutil.copytree(clip, tmp_path / "paella-clip")
    assert paella_jax.load(folder).networks.image_encoder is not None


def test_what_is_missing_is_named(original, wuerstchen, t5, tmp_path):
    load = paella_jax.load
    with pytest.raises(ConversionError, match=r"no ByT5-XL, .*; give text=FOLDER \(google/byt5-xl"):
        load(original / "paella")
    with pytest.raises(ConversionError, match=r"brings no CLIP ViT-H/14; give clip=FOLDER"):
        load(original / "wuerstchen")
    with pytest.raises(ConversionError, match="text=/nowhere is not a folder"):
        load(original / "paella", text="/nowhere")
    with pytest.raises(ConversionError, match="has no use for prior; it takes text, clip"):
        load(original / "paella", prior=t5)
    alone = shutil.copytree(wuerstchen, tmp_path / "alone")
    with pytest.raises(ConversionError, match=r"brings no Würstchen's prior .*give prior=FOLDER"):
        load(alone)
    with pytest.raises(ConversionError, match="prior alone; load the decoder's folder"):
        load(wuerstchen.with_name("wuerstchen-prior"))
    shutil.rmtree(alone / "vqgan")
    with pytest.raises(ConversionError, match=r"vqgan is missing; download the whole folder"):
        load(alone, prior=wuerstchen.with_name("wuerstchen-prior"))
    write_index(alone, "StableDiffusionPipeline")
    with pytest.raises(ConversionError, match="holds a StableDiffusionPipeline, which is not supp"):
        load(alone)
    (tmp_path / "half").mkdir()
    shutil.copy(original / "paella" / "paella_v3.pt", tmp_path / "half")
    with pytest.raises(ConversionError, match=r"found only paella_v3\.pt\. Download the others"):
        load(tmp_path / "half")


def test_a_damaged_file_leaves_nothing_behind(original, t5, clip, kept, tmp_path):
    folder = shutil.copytree(original / "paella", tmp_path / "paella")
    file = folder / "paella_v3.pt"
    file.write_bytes(file.read_bytes()[:-100])
    before = sorted(kept.iterdir())
    with pytest.raises(ConversionError, match=r"paella_v3\.pt"):
        paella_jax.load(folder, text=t5, clip=clip)
    assert sorted(kept.iterdir()) == before


def test_kinds_are_told_apart(original, wuerstchen):
    kinds = {recognise_folder(f).kind for f in (*original.iterdir(), wuerstchen)}
    assert kinds == {"paella", "wuerstchen", "diffusers"}


AMUSED = [
    "README.md", "model_index.json", "scheduler/scheduler_config.json",
    "text_encoder/config.json", "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors", "tokenizer/merges.txt", "tokenizer/vocab.json",
    "transformer/config.json", "transformer/diffusion_pytorch_model.fp16.safetensors",
    "transformer/diffusion_pytorch_model.safetensors", "vqvae/config.json",
    "vqvae/diffusion_pytorch_model.safetensors",
]  # fmt: skip


@pytest.mark.parametrize(
    "names, left",
    [
        (AMUSED, {"README.md", "text_encoder/model.fp16.safetensors",
                  "transformer/diffusion_pytorch_model.fp16.safetensors"}),
        (["config.json", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"],
         {"tf_model.h5", "flax_model.msgpack"}),
        (["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
          "model-00002-of-00002.safetensors", "pytorch_model.bin"], {"pytorch_model.bin"}),
        (["paella_v3.pt", "vqgan_f4.pt", "prior_v1.pt", "paella_v2.pt"],
         {"prior_v1.pt", "paella_v2.pt"}),
        (["model_v2_stage_b.pt", "model_v2_stage_c.pt", "vqgan_f4_v1_500k.pt", "model_stage_b.pt"],
         {"model_stage_b.pt"}),
    ],
)  # fmt: skip
def test_only_the_files_that_are_read_are_downloaded(names, left):
    assert set(names) - set(needed_files(names)) == left
