"""A run with frozen CLIP towers: training, loading, image conditions, and the CLIP prior."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import small
from safetensors.numpy import load_file
from small_clip import PROJECTION, write_clip_folder
from small_torch import write_torch_file

import paella_jax
from paella_jax.config import ConfigError
from paella_jax.data.sources import ShapesSource
from paella_jax.encoders.published import load_clip_text_folder
from paella_jax.families.clip_prior import ClipPriorSampler, make_clip_prior
from paella_jax.families.image_encoder import ImageEncoder
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.noise.tokens import sample_keys
from paella_jax.objectives.inputs import StepInputs
from paella_jax.ops.by_need import PARTS
from paella_jax.pipelines import variations
from paella_jax.pipelines.prompts import Condition
from paella_jax.registry import build_method
from paella_jax.runs.folder import prepare_workdir
from paella_jax.runs.frozen import carry_clip
from paella_jax.training.loop import train

pytestmark = pytest.mark.devices(8)
PROMPT = "a large red circle at the top left"


def clip_config(folder, **overrides):
    return small.small_paella(
        image_encoder__kind="clip", clip__folder=folder, sampler__num_steps=2, num_steps=2,
        objective__clip_text_drop=0.5, objective__image_drop=0.5, log__preview_images=1,
        **overrides,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    base = tmp_path_factory.mktemp("clip")
    folder, workdir = write_clip_folder(base / "clip"), base / "run"
    config = clip_config(folder)
    prepare_workdir(workdir, config)
    small.carry_random_tokenizer(workdir)
    with small.devices_shown():
        train(config, workdir, build_method(config, workdir))
    (folder / "model.safetensors").unlink()  # the run carries what it needs
    return paella_jax.load(workdir)


def prior_sampler(width):
    config = small.config_of("clip_prior:tiny", model__clip_width=width, sampler__num_steps=3)
    model = make_clip_prior(config)
    zeros = np.zeros((1, width), np.float32)
    params = small.random_variables(model, zeros, np.zeros(1, np.float32), zeros)["params"]
    return ClipPriorSampler(config, {"prior": params})


def test_frozen_towers_are_not_trained(pipe):
    assert set(pipe.params) == {"text_encoder", "predictor"}
    assert {"clip_text", "image_encoder"} <= set(pipe.frozen)


def test_clip_text_and_images_reach_the_picture(pipe):
    """Captions and images have embeddings of their own; an image and its embedding say the same."""
    texts = pipe.embed_texts([PROMPT, "a small blue square", PROMPT])
    assert texts.shape == (3, PROJECTION)
    np.testing.assert_array_equal(texts[0], texts[2])
    assert np.abs(texts[0] - texts[1]).max() > 1e-4
    picture = ShapesSource("tiny")[0]["image"].astype(np.float32) / 255.0
    embedded = pipe.embed_images(picture[None])
    assert embedded.shape == (1, PROJECTION)
    given = pipe.generate([Condition(PROMPT, images=(picture,))])
    same = pipe.generate([Condition(PROMPT, images=(embedded[0],))])
    np.testing.assert_array_equal(given.tokens, same.tokens)


def test_the_prior_stands_in_for_an_image(pipe):
    sampler = prior_sampler(PROJECTION)
    conditions = variations.with_prior(pipe, sampler, [PROMPT, PROMPT], seed=[3, 4])
    assert [c.prompt for c in conditions] == [PROMPT, PROMPT]
    first, second = (np.asarray(c.images[0]) for c in conditions)
    assert first.shape == (PROJECTION,) and np.abs(first - second).max() > 1e-3
    again = variations.with_prior(pipe, sampler, [Condition(PROMPT, label=None)], seed=4)
    # Alone or in a batch: the same draw, up to the rounding of a product of another size.
    np.testing.assert_allclose(second, again[0].images[0], rtol=1e-4, atol=1e-5)
    assert pipe.generate(conditions).images.shape == (2, 32, 32, 3)


def test_what_does_not_belong_together_is_named(pipe, tmp_path):
    with pytest.raises(ValueError, match=f"needs \\[batch, {PROJECTION + 1}\\]"):
        variations.with_prior(pipe, prior_sampler(PROJECTION + 1), [PROMPT])
    for folder, words in (("", "needs --config.clip.folder"), (tmp_path, "not a model folder")):
        workdir = tmp_path / f"run{len(words)}"
        config = clip_config(folder)
        prepare_workdir(workdir, config)
        small.carry_random_tokenizer(workdir)
        with pytest.raises(ConfigError, match=words):
            build_method(config, workdir)


def test_a_folder_is_carried_only_if_it_can_be_read(tmp_path):
    """What was refused leaves nothing behind, so that the corrected folder is copied."""
    folder, target = write_clip_folder(tmp_path / "clip"), tmp_path / "run" / "clip"
    tensors = load_file(folder / "model.safetensors")
    for name, words in (
        ("config.json", "has no config.json"),
        ("model.safetensors", r"has no weights .* CLIPTextModelWithProjection"),
        ("merges.txt", "neither tokenizer.json nor vocab.json and merges.txt"),
    ):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(ConfigError, match=words):
            carry_clip(folder, target)
        assert not target.exists()
        (folder / name).write_bytes(content)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ConfigError, match=r"cannot read .*model\.safetensors"):
        carry_clip(folder, target)
    (folder / "model.safetensors").unlink()
    _, expected = load_clip_text_folder(write_clip_folder(tmp_path / "same"))
    write_torch_file(folder / "pytorch_model.bin", tensors)  # the only form of some models
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"another layout")
    carry_clip(folder, target)
    _, carried = load_clip_text_folder(target)
    jax.tree.map(np.testing.assert_array_equal, carried, expected)
    assert not (target / "open_clip_pytorch_model.bin").exists()


def test_frozen_towers_see_a_part_of_images_and_texts(tmp_path, monkeypatch):
    """Of a training step, where most are dropped: test_encode.py has that its loss is the same."""
    config = clip_config(write_clip_folder(tmp_path / "clip"), batch_size=32)
    prepare_workdir(tmp_path / "run", config)
    small.carry_random_tokenizer(tmp_path / "run")
    method, seen, embed = build_method(config, tmp_path / "run"), [], ImageEncoder.__call__
    read, texts = TokenNetworks.embed_texts, []

    def note(encoder, params, frozen, images):
        seen.append(len(images))
        return embed(encoder, params, frozen, images)

    def note_texts(networks, frozen, ids):
        texts.append(len(ids))
        return read(networks, frozen, ids)

    monkeypatch.setattr(ImageEncoder, "__call__", note)
    monkeypatch.setattr(TokenNetworks, "embed_texts", note_texts)
    batch = jax.tree.map(lambda x: np.stack([x] * 32), method.transform(method.source[0]))
    keys = sample_keys(jax.random.key(0), np.arange(32))
    params, _ = jax.eval_shape(method.init, jax.random.key(0))
    jax.eval_shape(method.objective, params, StepInputs(batch, keys, 0, {}, method.frozen))
    assert seen == [32 // PARTS]
    assert texts == [1, 32 // PARTS]  # the empty text once
