"""The Paella family: predictor, text encoder and tokenizer, built from a config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.convert.t5 import load_t5_folder
from paella_jax.data.build import make_source
from paella_jax.data.loader import CaptionedImageTransform
from paella_jax.encoders.t5 import T5Encoder, t5_from_hf_config
from paella_jax.encoders.text import Tokenizer, joint_text_encoder, make_tokenizer
from paella_jax.families.vqgan import carry_tokenizer, load_carried_tokenizer
from paella_jax.models.conditioning import Conditioning
from paella_jax.models.paella import Paella
from paella_jax.models.vqgan import VQGAN
from paella_jax.objectives.paella import paella_objective
from paella_jax.training.method import Method
from paella_jax.training.state import TrainState
from paella_jax.training.weights import load_tree, save_tree

Array = jax.Array
Tree = Any
TEXT_CONFIG = "text_encoder.json"
TEXT_WEIGHTS = "text_encoder.safetensors"
TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json",
                   "special_tokens_map.json", "added_tokens.json")  # fmt: skip


@dataclass(frozen=True)
class PaellaNetworks:
    """The three networks of a run and the calls between them.

    Parameters come in two trees: `params` (trained: "predictor", and "text_encoder" when joint) and
    `frozen` ("vqgan", and "text_encoder" when frozen).
    """

    predictor: Paella
    text_encoder: T5Encoder
    text_tokenizer: Tokenizer
    vqgan: VQGAN
    text_is_joint: bool

    def encode_text(
        self, params: Tree, frozen: Tree, ids: Array, mask: Array, key: Array | None = None
    ) -> Conditioning:
        """Token ids [batch, length] -> conditioning. `key` switches dropout on (joint only)."""
        weights = (params if self.text_is_joint else frozen)["text_encoder"]
        train = key is not None and self.text_is_joint
        states = self.text_encoder.apply(
            {"params": weights},
            ids,
            mask,
            deterministic=not train,
            rngs={"dropout": key} if train else None,
        )
        if not self.text_is_joint:
            states = jax.lax.stop_gradient(states)
        return Conditioning(text=states, text_mask=mask)

    def features(
        self, params: Tree, tokens: Array, t: Array, cond: Conditioning, key: Array
    ) -> Array:
        """The predictor's classifier input, with dropout."""
        return self.predictor.apply(
            {"params": params["predictor"]},
            tokens,
            t,
            cond,
            deterministic=False,
            return_features=True,
            rngs={"dropout": key},
        )

    def logits(self, params: Tree, tokens: Array, t: Array, cond: Conditioning) -> Array:
        """float32 [batch, h, w, codes]."""
        return self.predictor.apply({"params": params["predictor"]}, tokens, t, cond)

    def encode_images(self, frozen: Tree, images: Array) -> Array:
        """Images in [0, 1] -> tokens."""
        return self.vqgan.apply(frozen["vqgan"], images, method="encode_tokens")

    def decode_tokens(self, frozen: Tree, tokens: Array) -> Array:
        """Tokens -> images in [0, 1]."""
        return self.vqgan.apply(frozen["vqgan"], tokens, method="decode_tokens")

    def init(self, key: Array, grid: int) -> Tree:
        """Fresh trainable parameters."""
        text_key, predictor_key = jax.random.split(key)
        ids = jnp.zeros((1, 4), jnp.int32)
        variables = self.text_encoder.init(text_key, ids)
        text = self.text_encoder.apply(variables, ids)
        tokens, t = jnp.zeros((1, grid, grid), jnp.int32), jnp.zeros((1,))
        cond = Conditioning(text=text)
        params = {"predictor": self.predictor.init(predictor_key, tokens, t, cond)["params"]}
        if self.text_is_joint:
            params["text_encoder"] = variables["params"]
        return params


def prepare_frozen(config: ConfigDict, workdir: Path) -> None:
    """Puts the frozen networks a run needs into its folder, once.

    Raises:
      ConfigError, CheckpointError: no tokenizer given, not a tokenizer, or unreadable weights.
    """
    if not (workdir / "frozen" / "vqgan.json").is_file():
        if not config.tokenizer:
            raise ConfigError(
                "Paella needs a trained tokenizer: give --config.tokenizer=RUN, the run folder of "
                "configs/vqgan.py"
            )
        carry_tokenizer(config.tokenizer, workdir)
    target = workdir / "frozen" / TEXT_CONFIG
    if config.text.folder and not target.is_file():
        folder = Path(config.text.folder)
        _, params = load_t5_folder(folder)
        save_tree(workdir / "frozen" / TEXT_WEIGHTS, params)
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copy(folder / name, workdir / "frozen" / name)
        shutil.copy(folder / "config.json", target)


def load_networks(config: ConfigDict, workdir: Path) -> tuple[PaellaNetworks, Tree]:
    """Networks and frozen parameters of a prepared run folder.

    Raises:
      ConfigError: tokenizer and predictor do not belong together, or sizes do not divide.
    """
    dtype = jnp.dtype(config.precision)
    predictor = Paella(**config.model, dtype=dtype)
    vqgan, variables = load_carried_tokenizer(workdir)
    if vqgan.codebook_size != predictor.codebook_size:
        raise ConfigError(
            f"model.codebook_size {predictor.codebook_size} differs from the tokenizer's "
            f"{vqgan.codebook_size}; set --config.model.codebook_size={vqgan.codebook_size}"
        )
    divisor = vqgan.downsampling * predictor.grid_divisor
    if config.data.image_size % divisor:
        raise ConfigError(
            f"data.image_size {config.data.image_size} must be divisible by {divisor} (tokenizer "
            f"{vqgan.downsampling} x predictor {predictor.grid_divisor})"
        )
    frozen = {"vqgan": variables}
    file = workdir / "frozen" / TEXT_CONFIG
    if not file.is_file():
        encoder = joint_text_encoder(config.text, config.precision)
    else:
        encoder = t5_from_hf_config(json.loads(file.read_text())).clone(dtype=dtype)
        frozen["text_encoder"] = load_tree(workdir / "frozen" / TEXT_WEIGHTS)
    tokenizer = make_tokenizer(encoder.vocab_size, workdir / "frozen", config.text.max_length)
    networks = PaellaNetworks(predictor, encoder, tokenizer, vqgan, not file.is_file())
    return networks, frozen


def paella_method(
    config: ConfigDict,
    workdir: Path,
    preview: Callable[[TrainState, Tree, Path], dict[str, float]] | None = None,
) -> Method:
    """Training of configs/paella.py in a prepared run folder."""
    networks, frozen = load_networks(config, workdir)
    grid = config.data.image_size // networks.vqgan.downsampling
    text = config.text
    tokenize = make_tokenizer(
        networks.text_encoder.vocab_size,
        workdir / "frozen",
        min(text.pad_to, text.max_length),
        truncate=True,
    )
    return Method(
        title="paella",
        init=lambda key: (networks.init(key, grid), {}),
        objective=paella_objective(
            networks.features,
            networks.encode_text,
            networks.encode_images,
            config.objective,
            networks.predictor.codebook_size,
        ),
        frozen=frozen,
        source=make_source(config.data, "train", config.seed),
        transform=CaptionedImageTransform(tokenize, min(text.pad_to, text.max_length)),
        preview=preview,
    )


def parameter_count(params: Tree) -> int:
    """Number of scalars in a tree."""
    return sum(x.size for x in jax.tree.leaves(params))
