"""Images and scores that a run writes while it trains: samples of validation captions.

They are drawn on the mesh that the weights lie on, by all processes together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from paella_jax.data.loader import Source
from paella_jax.encoders.byte_tokenizer import ByteTokenizer
from paella_jax.encoders.words import WordTokenizer
from paella_jax.evaluation.oracle import score_images
from paella_jax.families.clip_prior import ClipPriorSampler, mean_cosine
from paella_jax.families.stage_b import make_stage_b
from paella_jax.families.tokens import load_networks
from paella_jax.families.vqgan import make_vqgan
from paella_jax.images.write import save_grid
from paella_jax.objectives.inputs import images_from_batch
from paella_jax.pipelines.load import load_stage_c_pipeline
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.pipelines.wuerstchen import WuerstchenPipeline
from paella_jax.runs.frozen import COMPRESSOR, load_carried, variables_of
from paella_jax.training.placing import fetch
from paella_jax.training.state import TrainState, mesh_of
from paella_jax.typing import Array, Tree

Preview = Callable[[TrainState, Tree, Path], dict[str, float]]
Held = Callable[[], Source]  # makes the source of held-back samples
SHOWN = 16


def token_preview(config: ConfigDict, workdir: Path, held: Held) -> Preview:
    """Samples captions that are held back; super-resolution enlarges their small images."""
    samples = drawable(config, held())
    pipelines: list[TokenPipeline] = []

    def draw(state: TrainState, frozen: Tree, captions: list[str]) -> np.ndarray:
        if not pipelines:
            networks, _ = load_networks(config, workdir)
            weights = (state.eval_params, frozen)
            pipelines.append(TokenPipeline(networks, *weights, config, mesh_of(state)))
        pipelines[0].set_params(state.eval_params, frozen)
        low: dict[str, Any] = {}
        if "low_tokens" in pipelines[0].networks.takes:
            images = np.stack([sample["image"] for sample in samples])
            low["low_tokens"] = pipelines[0].encode_low(images)
        texts = [pipelines[0].cut_text(text) for text in captions]
        return pipelines[0].generate(texts, seed=list(range(len(texts))), **low).images

    return _captioned(config, samples, draw)


def stage_c_preview(config: ConfigDict, workdir: Path, held: Held) -> Preview:
    """Samples captions through all three stages."""
    pipelines: list[WuerstchenPipeline] = []

    def draw(state: TrainState, frozen: Tree, captions: list[str]) -> np.ndarray:
        texts = {name: tree for name, tree in frozen.items() if name != COMPRESSOR}
        weights = (state.eval_params, texts)
        if not pipelines:
            mesh = mesh_of(state)
            pipelines.append(load_stage_c_pipeline(config, workdir, weights, mesh=mesh))
        pipelines[0].set_weights("stage_c", weights)
        cut = [pipelines[0].cut_text(text) for text in captions]
        return pipelines[0].generate(cut, seed=list(range(len(cut)))).images

    return _captioned(config, drawable(config, held()), draw)


def _captioned(
    config: ConfigDict,
    samples: list[dict[str, Any]],
    draw: Callable[[TrainState, Tree, list[str]], np.ndarray],
) -> Preview:
    """A grid of images drawn from samples' captions; scores them where the oracle can."""
    captions = [sample["caption"] for sample in samples]

    def preview(state: TrainState, frozen: Tree, file: Path) -> dict[str, float]:
        if not captions:
            return {}
        images = draw(state, frozen, captions)
        return _show(config, images, captions, file)

    return preview


def stage_b_preview(config: ConfigDict, workdir: Path, held: Held) -> Preview:
    """Sends held-back images through the compressor, Stage B and Stage A."""
    if config.data.get("captions", True):
        samples = drawable(config, held())
    else:
        samples = [held()[n] for n in range(min(len(held()), config.log.preview_images))]
    captions = [sample["caption"] for sample in samples]
    pipelines: list[WuerstchenPipeline] = []

    def preview(state: TrainState, frozen: Tree, file: Path) -> dict[str, float]:
        if not samples:
            return {}
        params = dict(state.eval_params)
        compressor = frozen.get(COMPRESSOR)
        if compressor is None:
            statistics = state.model_state[COMPRESSOR]
            compressor = {"params": params.pop(COMPRESSOR), "batch_stats": statistics}
        encoder = {n: tree for n, tree in frozen.items() if n not in ("vqgan", COMPRESSOR)}
        weights = {"stage_b": (params, encoder), "compressor": compressor}
        if not pipelines:
            networks, _ = make_stage_b(config, workdir)
            start = weights | {"vqgan": load_carried("tokenizer", workdir)[1]}
            configs, mesh = {"stage_b": config}, mesh_of(state)
            pipelines.append(WuerstchenPipeline(networks, None, start, configs, mesh=mesh))
        for name, tree in weights.items():
            pipelines[0].set_weights(name, tree)
        images = np.stack([sample["image"] for sample in samples]).astype(np.float32) / 255.0
        seeds = list(range(len(images)))
        texts = [pipelines[0].cut_text(text) for text in captions]
        rebuilt = pipelines[0].reconstruct(images, prompt=texts, seed=seeds).images
        error = float(np.square(rebuilt - images).mean())
        return {"validation_mse": error} | _show(config, rebuilt, captions, file)

    return preview


def vqgan_preview(config: ConfigDict, workdir: Path, held: Held) -> Preview:
    """Held-back images beside their reconstructions."""
    model = make_vqgan(config)
    source = held()
    count = min(config.log.preview_images, len(source))
    samples = np.stack([source[i]["image"] for i in range(count)])

    @jax.jit
    def round_trip(variables: Tree, images: Array) -> Array:
        tokens = model.apply(variables, images, method="encode_tokens")
        return model.apply(variables, tokens, method="decode_tokens")

    def preview(state: TrainState, frozen: Tree, file: Path) -> dict[str, float]:
        images = np.asarray(images_from_batch({"image": jnp.asarray(samples)}))
        rebuilt = fetch(round_trip(variables_of(state.eval_params, state.model_state), images))
        _write_grid(file, np.concatenate([images, rebuilt], axis=2))
        return {"validation_mse": float(np.square(rebuilt - images).mean())}

    return preview


def clip_prior_preview(config: ConfigDict, workdir: Path, held: Held) -> Preview:
    """Samples held-back texts; the score is the mean cosine with their images' embeddings."""
    source = held()
    pairs = [source[i] for i in range(min(config.log.preview_images, len(source)))]
    samplers: list[ClipPriorSampler] = []

    def preview(state: TrainState, frozen: Tree, file: Path) -> dict[str, float]:
        if not samplers:
            samplers.append(ClipPriorSampler(config, state.eval_params))
        samplers[0].set_params(state.eval_params)
        texts, images = (np.stack([pair[name] for pair in pairs]) for name in pairs[0])
        drawn = samplers[0](texts, jax.random.key(0))
        return {"preview_cosine": mean_cosine(fetch(drawn), images)}

    return preview


def _write_grid(file: Path, images: np.ndarray, *labels: Any) -> None:
    """Of several processes, which all have the images, the first writes them."""
    if jax.process_index() == 0:
        save_grid(file, images, *labels)


def drawable(config: ConfigDict, source: Source) -> list[dict[str, Any]]:
    """Samples with a caption that can be drawn: not blank, cut to the text's limit."""
    cut = _caption_cutter(config)
    samples: list[dict[str, Any]] = []
    for index in range(min(len(source), 2 * config.log.preview_images)):
        sample = dict(source[index])
        text = cut(sample["caption"])
        if text.strip() and len(samples) < config.log.preview_images:
            samples.append(sample | {"caption": text})
    return samples


def _caption_cutter(config: ConfigDict) -> Callable[[str], str]:
    """What cuts a caption to about what a run reads; its pipeline cuts the rest."""
    # A frozen encoder's own units are no longer than bytes.
    words = config.text.get("units") == "words" and not config.text.folder
    return (WordTokenizer if words else ByteTokenizer)(config.text.max_length).cut


def _show(
    config: ConfigDict, images: np.ndarray, captions: list[str], file: Path
) -> dict[str, float]:
    if config.data.source != "shapes":
        _write_grid(file, images[:SHOWN], captions[:SHOWN])
        return {}
    score = score_images(images, captions, config.data.spec)
    ticks = np.asarray(score.exact_images)[:SHOWN].tolist()
    _write_grid(file, images[:SHOWN], captions[:SHOWN], ticks)
    return {"preview_exact": float(score.exact)}
