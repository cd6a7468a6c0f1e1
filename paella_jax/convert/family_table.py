"""How the weights of each family are taken in: sizes, names, and the config they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from paella_jax.convert import amused as amused_names
from paella_jax.convert import paella as paella_names
from paella_jax.convert import wuerstchen as wuerstchen_names
from paella_jax.convert.amused import import_uvit
from paella_jax.convert.amused_config import (
    is_vqmodel,
    make_uvit,
    text_widths,
    uvit_fields,
    vqmodel_fields,
)
from paella_jax.convert.clip_prior import import_clip_prior, infer_clip_prior
from paella_jax.convert.paella import import_paella, infer_paella
from paella_jax.convert.vqgan import has_diffusers_names, import_vqgan, infer_vqgan
from paella_jax.convert.vqmodel import import_vqmodel
from paella_jax.convert.wuerstchen import (
    import_stage_b,
    import_stage_c,
    infer_stage_b,
    infer_stage_c,
)
from paella_jax.files.tensors import Weights
from paella_jax.models.clip_prior import ClipPrior
from paella_jax.models.paella import Paella
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC
from paella_jax.models.vqgan import VQGAN
from paella_jax.models.vqmodel import VQModel
from paella_jax.typing import Tree

Config = Mapping[str, Any]


class Family(NamedTuple):
    """How weights of one kind are taken in.

    Attributes:
      file: of configs/ that it belongs to.
      preset: of the released network, whose fields stand where the weights do not tell.
      infer: tensors -> fields of the network.
      build: tensors and config -> the run folder's tree.
      block: of the config, which the network's fields fill; `codebook_size` is always in `model`.
      head_width: of the released network's attention; 0 without attention.
      heads: fields with numbers of heads.
    """

    file: str
    preset: str
    infer: Callable[[Weights], dict[str, Any]]
    build: Callable[[Weights, Config], Tree]
    block: str = "model"
    head_width: int = 0
    heads: tuple[str, ...] = ("num_heads",)

    def field(self, name: str) -> str:
        """The config's name of a network's field."""
        return f"model.{name}" if name == "codebook_size" else f"{self.block}.{name}"


def family_of(name: str, weights: Weights) -> Family:
    """How these weights are taken in; `name` is a key of infer.MARKS."""
    return RESNET_VQGAN if name == "vqgan" and is_vqmodel(weights) else FAMILIES[name]


def _paella_tree(weights: Weights, config: Config) -> Tree:
    params = import_paella(weights, Paella(**config["model"]))
    return {"params": {"predictor": params}, "model_state": {}}


def _amused_tree(weights: Weights, config: Config) -> Tree:
    params = import_uvit(weights, make_uvit(config, *text_widths(weights, config)))
    return {"params": {"predictor": params}, "model_state": {}}


def _clip_prior_tree(weights: Weights, config: Config) -> Tree:
    params = import_clip_prior(weights, ClipPrior(**config["model"]))
    return {"params": {"prior": params}, "model_state": {}}


def _stage_b_tree(weights: Weights, config: Config) -> Tree:
    params = import_stage_b(weights, StageB(**config["model"]))
    return {"params": {"stage_b": params}, "model_state": {}}


def _stage_c_tree(weights: Weights, config: Config) -> Tree:
    params = import_stage_c(weights, StageC(**config["model"]))
    return {"params": {"stage_c": params}, "model_state": {}}


def _vqgan_tree(weights: Weights, config: Config) -> Tree:
    variables = import_vqgan(weights, VQGAN(**config["model"]), has_diffusers_names(weights))
    state = {"vqgan": variables["batch_stats"], "codes": _code_state(variables["params"])}
    return {"params": {"vqgan": variables["params"]}, "model_state": state}


def _resnet_vqgan_tree(weights: Weights, config: Config) -> Tree:
    model = VQModel(**config["model"])
    model.check()
    params = import_vqmodel(weights, model)
    return {"params": {"vqgan": params}, "model_state": {"codes": _code_state(params)}}


def _code_state(params: Tree) -> Tree:
    """In further training no code counts as dead before it has been watched for a while."""
    codebook = params["codebook"]
    return {
        "usage": np.ones(len(codebook), np.float32),
        "candidates": np.zeros_like(codebook, np.float32),
    }


FAMILIES = {
    "paella": Family(
        "paella", "1b", infer_paella, _paella_tree,
        head_width=paella_names.RELEASED_HEAD_WIDTH,
    ),
    "amused": Family(
        "muse", "amused_256", uvit_fields, _amused_tree,
        block="uvit", head_width=amused_names.RELEASED_HEAD_WIDTH,
        heads=("num_heads", "conv_heads"),
    ),
    "vqgan": Family("vqgan", "f4", infer_vqgan, _vqgan_tree),
    "clip_prior": Family(
        "clip_prior", "released", infer_clip_prior, _clip_prior_tree
    ),
    "stage_b": Family(
        "stage_b", "v2", infer_stage_b, _stage_b_tree,
        head_width=wuerstchen_names.RELEASED_HEAD_WIDTH,
    ),
    "stage_c": Family(
        "stage_c", "v2", infer_stage_c, _stage_c_tree,
        head_width=wuerstchen_names.RELEASED_HEAD_WIDTH,
    ),
}  # fmt: skip
# A vqgan of the other architecture.
RESNET_VQGAN = Family("resnet_vqgan", "f16", vqmodel_fields, _resnet_vqgan_tree)
