"""What is compiled: a preset's train step, or its sampler, as shapes with shardings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.families import abstract
from paella_jax.families.cells import sampler_fields
from paella_jax.families.text_side import TextSide
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.objectives.inputs import EMPTY
from paella_jax.pipelines.batches import Numbered
from paella_jax.pipelines.geometry import Sizes
from paella_jax.pipelines.narrow import narrow
from paella_jax.pipelines.prompts import Condition, build_inputs
from paella_jax.pipelines.request import Form, Request, draw_request
from paella_jax.pipelines.wuerstchen_programs import (
    StageRequest,
    draw_stage,
    plan_b,
    plan_c,
    stage_b_settings,
    stage_c_settings,
)
from paella_jax.registry import abstract_method
from paella_jax.sampling.diffusion_settings import DDPMSettings
from paella_jax.sampling.guidance import runs_jointly
from paella_jax.sampling.token_sampler import token_settings
from paella_jax.training.compiled_step import abstract_pace, first_batch, jitted_step
from paella_jax.training.from_encoded import encoding_of
from paella_jax.training.loop import abstract_state
from paella_jax.training.method import Encoding, Method
from paella_jax.training.placing import batch_sharding
from paella_jax.training.sharding import replicated
from paella_jax.typing import Tree

PROGRAMS = ("train", "encoded", "sample")  # train steps from images and from encoded data


@dataclasses.dataclass(frozen=True)
class Program:
    """One call, ready to be traced.

    Attributes:
      function: under `jax.jit`.
      arguments: shapes with shardings.
      held: what a device holds meanwhile, by name, whether or not the program reads it.
      images: made or learned from in one call, on all devices.
      trained: the parameters that are trained; empty for a sampler.
      frozen: those that are not.
    """

    function: Any
    arguments: tuple[Any, ...]
    held: dict[str, Tree]
    images: int
    trained: Tree
    frozen: Tree


def train_program(config: ConfigDict, mesh: Mesh, encoded: bool = False) -> Program:
    """One update; to be traced under `jax.set_mesh(mesh)`.

    Args:
      config: a preset's.
      mesh: of devices, which need not be there.
      encoded: as from `data.encoded`: what frozen networks make of a sample is in the batch.

    Raises:
      ConfigError: `encoded`, of a method that has nothing to encode.
    """
    method = abstract_method(config)  # makes small arrays: not for devices that are not there
    if encoded:
        method = from_arrays(encoding_of(config, method), method)
    key_type = jax.random.key(0).dtype
    with jax.set_mesh(mesh):
        return _train_program(config, method, mesh, key_type)


def _train_program(config: ConfigDict, method: Method, mesh: Mesh, key_type: Any) -> Program:
    state, _ = abstract_state(config, method, mesh)
    frozen = abstract.abstract_frozen(method.frozen, mesh)
    key = jax.ShapeDtypeStruct((), key_type, sharding=replicated(mesh))
    batch = first_batch(config, method, mesh)
    held = {
        "parameters": state.params,
        "averages": state.ema_params,
        "optimizer": state.opt_state,
        **{f"frozen {name}": tree for name, tree in frozen.items()},
        "batch": batch,
    }
    arguments = (state, frozen, batch, key, abstract_pace(config, mesh))
    function = jitted_step(config, method, state, mesh)
    return Program(function, arguments, held, config.batch_size, state.params, frozen)


def from_arrays(encoding: Encoding, method: Method) -> Method:
    """A method as it trains from what `encode` made, of shapes alone (training/from_encoded.py)."""
    sample = method.transform(method.source[0])
    batch = {
        n: jax.ShapeDtypeStruct((1, *np.shape(x)), np.asarray(x).dtype) for n, x in sample.items()
    }
    stored = jax.eval_shape(encoding.arrays, method.frozen, batch)
    blank = {name: np.zeros(x.shape[1:], x.dtype) for name, x in stored.items()}
    empty = {name: blank[name] for name in ("text_states", "text_pooled") if name in blank}
    shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in empty.items()}
    kept = {name: tree for name, tree in method.frozen.items() if name not in encoding.networks}
    frozen = kept | ({EMPTY: shapes} if shapes else {})
    return dataclasses.replace(method, frozen=frozen, source=[blank], transform=lambda x: x)


def sample_program(config: ConfigDict, mesh: Mesh, images: int) -> Program:
    """Drawing a batch as a pipeline does: whole weights on every device, images spread over them.

    Raises:
      ConfigError: the method draws nothing from a text.
    """
    of_tokens = partial(_token_sampler, devices=mesh.size)
    samplers: dict[str, Callable[..., Any]]
    samplers = {"tokens": of_tokens, "stage_b": _stage_sampler, "stage_c": _stage_sampler}
    if config.method not in samplers:
        raise ConfigError(
            f"--program sample draws with {', '.join(samplers)}; {config.method!r} has no sampler "
            "of its own: give --program train"
        )
    draw, params, frozen, request = samplers[config.method](config, images)
    read = lambda weights, request: draw(*weights, request)
    params, frozen = narrow((params, frozen), (read, (request,)))  # as a pipeline holds them
    place = lambda sharding: lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    params, frozen = jax.tree.map(place(replicated(mesh)), (params, frozen))
    request = jax.tree.map(place(batch_sharding(mesh)), request)
    held = {"parameters": params, "request": request}
    held |= {f"frozen {name}": tree for name, tree in frozen.items()}
    return Program(jax.jit(draw), (params, frozen, request), held, images, {}, {**params, **frozen})


class TokenSampling(NamedTuple):
    """What a token pipeline's programs are given: networks, and shapes of everything else."""

    networks: TokenNetworks
    params: Tree
    frozen: Tree
    request: Request
    course: Any
    form: Form


def token_sampling(config: ConfigDict, images: int, devices: int = 1) -> TokenSampling:
    """A batch of a token predictor's preset, as its pipeline on some devices is asked for it."""
    networks, frozen = abstract.token_networks(config)
    grid = Sizes.of(networks, config).grid(None, None)
    params = jax.eval_shape(lambda: networks.init(jax.random.key(0), grid[0]))
    cell = config.cell
    settings: Any = token_settings(cell.corruption, cell.sampler, sampler_fields(config), {})
    no_images = lambda images: np.zeros((0,))
    inputs = build_inputs(networks, config, [Condition("")] * images, grid, no_images)
    if networks.low_vqgan is not None:
        low = np.zeros((images, networks.low_grid, networks.low_grid), np.int32)
        inputs = dataclasses.replace(inputs, low_tokens=low)
    if "micro_conds" in networks.takes:
        inputs = dataclasses.replace(inputs, micro_conds=np.zeros((images, 5), np.float32))
    request = canonical(Request((inputs,), inputs, None, _numbered(images)))
    joint = runs_jointly(config.sampler.joint_guidance, images * grid[0] * grid[1] / devices)
    form = Form(settings.program(), grid, joint)
    return TokenSampling(networks, params, frozen, request, settings.course(), form)


def _token_sampler(
    config: ConfigDict, images: int, devices: int
) -> tuple[Callable, Tree, Tree, Any]:
    networks, params, frozen, request, course, form = token_sampling(config, images, devices)
    draw = lambda p, f, r: draw_request(networks, p, f, r, course, form)
    return draw, params, frozen, request


class StageSampling(NamedTuple):
    """The same of one of Würstchen's stages."""

    networks: Any
    plan: Callable[..., Any]
    params: Tree
    frozen: Tree
    request: StageRequest
    settings: DDPMSettings
    shape: tuple[int, int, int]


def stage_sampling(config: ConfigDict, images: int) -> StageSampling:
    """A batch of a preset of Stage B or Stage C, as its pipeline would be asked for it."""
    make = {"stage_b": _stage_b_sampling, "stage_c": _stage_c_sampling}
    return make[config.method](config, images)


def _stage_b_sampling(config: ConfigDict, images: int) -> StageSampling:
    networks, frozen = abstract.stage_b_networks(config)
    side = config.data.image_size
    params, _ = jax.eval_shape(lambda: networks.init(jax.random.key(0), side))
    latents = networks.latent_side(side)
    shape = (latents, latents, networks.vqgan.latent_channels)
    guide = networks.guide_side(side)
    latents_c = np.zeros((images, guide, guide, networks.stage_b.guide_channels), np.float32)
    request = StageRequest(_numbered(images), *_texts(networks.text, images), guide=latents_c)
    plan, own = partial(plan_b, networks), {"stage_b": params["stage_b"]}
    settings = stage_b_settings(config.sampler)
    return StageSampling(networks, plan, own, frozen, canonical(request), settings, shape)


def _stage_c_sampling(config: ConfigDict, images: int) -> StageSampling:
    networks, stage_b, frozen = abstract.stage_c_networks(config)
    side = stage_b.guide_side(config.data.image_size)
    params = jax.eval_shape(lambda: networks.init(jax.random.key(0), side))
    shape = (side, side, networks.stage_c.channels)
    plan = partial(plan_c, networks, stage_b)
    request = StageRequest(_numbered(images), *_texts(networks.text, images))
    settings = stage_c_settings(config.sampler)
    return StageSampling(networks, plan, params, frozen, canonical(request), settings, shape)


def _stage_sampler(config: ConfigDict, images: int) -> tuple[Callable, Tree, Tree, Any]:
    networks, plan, params, frozen, request, settings, shape = stage_sampling(config, images)
    draw = lambda p, f, r: draw_stage(plan, networks, (p, f), r, settings, shape)
    unread = ("vqgan", abstract.COMPRESSOR)
    texts = {name: tree for name, tree in frozen.items() if name not in unread}
    return draw, params, texts, request


def _texts(text: TextSide, images: int) -> tuple[Any, Any]:
    ids = text.ids(["a"] * images)
    return ids, ids


def _numbered(images: int) -> Numbered:
    return Numbered(np.zeros(images, np.uint32), np.zeros(images, np.int32))


def canonical(request: Any) -> Any:
    """Shapes of host arrays, as JAX would hold them."""
    dtype = lambda x: x.dtype if isinstance(x, jax.ShapeDtypeStruct) else jnp.result_type(x)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype(x)), request)
