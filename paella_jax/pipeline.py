"""Prompt -> text encoder -> sampler -> VQGAN decoder -> images: what `paella_jax.load` returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from paella_jax.encoders.byte_tokenizer import bucket_length, check_prompts
from paella_jax.evaluation.pictures import to_uint8
from paella_jax.families.paella import PaellaNetworks, load_networks
from paella_jax.models.conditioning import Conditioning
from paella_jax.sampling.guidance import guide, guide_jointly
from paella_jax.sampling.renoise import RenoiseSettings, sample
from paella_jax.training.checkpoint import CheckpointError, read_config, restore_variables
from paella_jax.training.sharding import batch_sharding, make_mesh, replicated

Array = jax.Array
Tree = Any


class Generation(NamedTuple):
    """Images with the tokens behind them.

    Attributes:
      images: float32 [count, height, width, 3] in [0, 1].
      tokens: int32 [count, h, w].
      trace: int32 [num_steps, count, h, w], tokens after every step; None unless asked for.
    """

    images: np.ndarray
    tokens: np.ndarray
    trace: np.ndarray | None


class PaellaPipeline:
    """Text-to-image with one trained run. Calls with the same shapes reuse one compiled program."""

    def __init__(self, networks: PaellaNetworks, params: Tree, frozen: Tree, config: ConfigDict):
        self.networks = networks
        self.config = config
        self.mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
        self.set_params(params, frozen)
        # Made once: a new jit of a bound method at every call would trace and compile again.
        self._decode = jax.jit(networks.decode_tokens)
        self._encode = jax.jit(networks.encode_images)
        self._generate = jax.jit(
            partial(_generate, networks), static_argnames=("settings", "grid", "joint", "trace")
        )

    def set_params(self, params: Tree, frozen: Tree) -> None:
        """Replaces the weights; nothing is compiled again."""
        self.params, self.frozen = jax.device_put((params, frozen), replicated(self.mesh))

    def settings(self, **changes: Any) -> RenoiseSettings:
        """The run's sampler settings with the given ones replaced; None keeps the run's.

        Temperature and guidance take one number or a (first, last) pair.
        """
        base = {k: v for k, v in self.config.sampler.items() if k != "joint_guidance"}
        pair = lambda v: (
            tuple(float(x) for x in v) if isinstance(v, tuple | list) else (float(v),) * 2
        )
        chosen = {k: v for k, v in changes.items() if v is not None}
        for name in ("temperature", "guidance_scale"):
            if name in chosen:
                chosen[name] = pair(chosen[name])
        settings = replace(RenoiseSettings(**base), **chosen)
        settings.check()
        return settings

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_steps: int | None = None,
        guidance_scale: float | tuple[float, float] | None = None,
        temperature: float | tuple[float, float] | None = None,
        seed: int | Sequence[int] = 0,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        callback: Callable[[int, np.ndarray], None] | None = None,
        **sampler: Any,
    ) -> list[Image.Image] | np.ndarray:
        """Generates images.

        Args:
          prompt: one text or several.
          negative_prompt: what to steer away from; one text, or one per prompt.
          height: pixels; default the training size. So is width.
          width: pixels.
          num_steps: predictions; fewer is faster.
          guidance_scale: 1 switches guidance off; a pair ramps from the first to the last step.
          temperature: of the draw; a pair ramps.
          seed: one seed, or one per prompt. An image depends on its prompt, its seed and its number
            among the prompt's images, not on the rest of the call.
          num_images_per_prompt: images of each prompt; they follow one another in the result.
          output_type: "pil" or "array" (float32 [count, height, width, 3] in [0, 1]).
          callback: called as (step, images so far) for every step once sampling is done.
          **sampler: further fields of `RenoiseSettings`.

        Raises:
          PromptError, ValueError: naming the value and the fix, before anything is compiled.
        """
        if output_type not in ("pil", "array"):
            raise ValueError(f"output_type must be 'pil' or 'array', got {output_type!r}")
        result = self.generate(
            prompt,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            seed=seed,
            num_images_per_prompt=num_images_per_prompt,
            trace=callback is not None,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            temperature=temperature,
            **sampler,
        )
        if callback is not None and result.trace is not None:
            for step, tokens in enumerate(result.trace):
                callback(step, self.decode(tokens))
        if output_type == "array":
            return result.images
        return [Image.fromarray(image) for image in to_uint8(result.images)]

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [count, h, w] -> images float32 [count, H, W, 3] in [0, 1]."""
        return np.asarray(self._decode(self.frozen, jnp.asarray(tokens)))

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images float [count, H, W, 3] in [0, 1] -> tokens."""
        return np.asarray(self._encode(self.frozen, jnp.asarray(images)))

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        seed: int | Sequence[int] = 0,
        num_images_per_prompt: int = 1,
        batch_size: int = 64,
        trace: bool = False,
        **sampler: Any,
    ) -> Generation:
        """As calling the pipeline, with the tokens. `batch_size` bounds the images per program."""
        limit = self.networks.text_tokenizer.max_length
        prompts = check_prompts(prompt, limit)
        negatives = check_prompts(negative_prompt, limit, allow_empty=True)
        negatives = _one_per_prompt(negatives, len(prompts), "negative_prompt")
        seeds = _one_per_prompt(
            [seed] if isinstance(seed, int) else list(seed), len(prompts), "seed"
        )
        if num_images_per_prompt < 1:
            raise ValueError(
                f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}"
            )
        grid = self._grid(height, width)
        settings = self.settings(**sampler)

        copies = num_images_per_prompt
        repeated = lambda values: [v for v in values for _ in range(copies)]
        prompts, negatives, seeds = repeated(prompts), repeated(negatives), repeated(seeds)
        keys = jax.vmap(lambda s, i: jax.random.fold_in(jax.random.key(s), i))(
            jnp.asarray(seeds), jnp.tile(jnp.arange(copies), len(prompts) // copies)
        )
        text, negative = self._tokenize(prompts), self._tokenize(negatives)
        devices = self.mesh.size
        size = min(batch_size, len(prompts))
        size = -(-size // devices) * devices
        parts = []
        for start in range(0, len(prompts), size):
            # The last batch is filled up with repeats, so that one program serves all of them.
            rows = np.arange(start, start + size) % len(prompts)
            put = lambda x, rows=rows: jax.device_put(x[rows], batch_sharding(self.mesh))
            inputs = (*map(put, text), *map(put, negative), put(keys))
            joint = bool(self.config.sampler.get("joint_guidance", False))
            out = self._generate(
                self.params, self.frozen, *inputs,
                settings=settings, grid=grid, joint=joint, trace=trace,
            )  # fmt: skip
            keep = min(size, len(prompts) - start)
            parts.append(jax.tree.map(lambda x, n=keep: np.asarray(x)[..., :n, :, :], out[1:]))
            parts[-1] = (np.asarray(out[0])[:keep], *parts[-1])
        images, tokens = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
        history = np.concatenate([p[2] for p in parts], axis=1) if trace else None
        return Generation(images, tokens, history)

    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask, padded to the training length where they fit, so that one shape serves."""
        tokenizer = self.networks.text_tokenizer
        _, mask = tokenizer(texts)
        longest = int(mask.sum(1).max())
        usual = min(self.config.text.pad_to, tokenizer.max_length)
        pad_to = usual if longest <= usual else bucket_length(longest, tokenizer.max_length)
        return tokenizer(texts, pad_to)

    def _grid(self, height: int | None, width: int | None) -> tuple[int, int]:
        pixels = self.networks.vqgan.downsampling
        divisor = pixels * self.networks.predictor.grid_divisor
        default = self.config.data.image_size
        size = [default if side is None else side for side in (height, width)]
        for name, side in zip(("height", "width"), size, strict=True):
            if side < divisor or side % divisor:
                nearest = max(divisor, round(side / divisor) * divisor)
                raise ValueError(
                    f"{name} {side} must be a positive multiple of {divisor}; use {nearest}"
                )
        return size[0] // pixels, size[1] // pixels


def _one_per_prompt(values: list[Any], count: int, name: str) -> list[Any]:
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise ValueError(f"{len(values)} values of {name} for {count} prompts; give one or {count}")
    return values


def _generate(
    networks: PaellaNetworks,
    params: Tree,
    frozen: Tree,
    ids: Array,
    mask: Array,
    negative_ids: Array,
    negative_mask: Array,
    keys: Array,
    *,
    settings: RenoiseSettings,
    grid: tuple[int, int],
    joint: bool,
    trace: bool,
) -> tuple[Array, ...]:
    """One compiled program: encode, sample, decode. Returns (images, tokens[, trace])."""
    cond = networks.encode_text(params, frozen, ids, mask)
    uncond = networks.encode_text(params, frozen, negative_ids, negative_mask)
    predict = lambda c: lambda tokens, t: networks.logits(params, tokens, t, c)
    if joint and ids.shape == negative_ids.shape:
        both: Conditioning = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, uncond)
        denoise = guide_jointly(predict(cond), predict(both))
    else:
        denoise = guide(predict(cond), predict(uncond))
    out = sample(
        denoise,
        keys,
        (ids.shape[0], *grid),
        settings,
        codebook_size=networks.predictor.codebook_size,
        codebook=frozen["vqgan"]["params"]["codebook"],
        trace=trace,
    )
    tokens, history = out if trace else (out, None)
    images = networks.decode_tokens(frozen, tokens)
    return (images, tokens, *([history] if trace else []))


def load(directory: str | Path) -> PaellaPipeline:
    """Loads a run folder's newest checkpoint as a pipeline.

    Raises:
      CheckpointError: no run there, of another kind, or damaged.
    """
    workdir = Path(directory)
    config = read_config(workdir)
    if config.method != "paella":
        raise CheckpointError(
            f"{workdir} holds a run of method {config.method!r}, which draws no images from text; "
            "give the run folder of configs/paella.py"
        )
    networks, frozen = load_networks(config, workdir)
    _, restored = restore_variables(workdir)
    return PaellaPipeline(networks, restored["params"], frozen, config)
