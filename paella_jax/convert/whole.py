"""One file of original names that comes back whole.

What a run trained that the published network does not have, as a text encoder or layers for class
labels, has names of ours that begin with `paella_jax.`; the config is a note in the file's header.
A run without such things gives a file with exactly the published names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePath, PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from paella_jax.config import check_fields, flatten_config, from_json, to_json
from paella_jax.convert.recognise import run_family
from paella_jax.convert.released import Released, article
from paella_jax.encoders.text import joint_text_encoder
from paella_jax.families.image_encoder import JOINT, joint_image_encoder
from paella_jax.fields.table import is_path
from paella_jax.files.tensors import ConversionError, Names, Weights
from paella_jax.models.conditioning import Conditioning
from paella_jax.outside import listed, shortened
from paella_jax.runs.known_fields import unknown_fields
from paella_jax.sharing.portable import NAMED, portable
from paella_jax.typing import Tensors, Tree

NOTE = "paella_jax"  # in the header
PREFIX = f"{NOTE}."
ORIGIN = "its own config"  # where a value is from


def divide(tree: Tree, names: Names, module: Any) -> tuple[Tree, Tree]:
    """A network's parameters that have published names, and the others."""
    flat, known = flatten_dict(dict(tree)), {entry.path for entry in names.table(module)}
    published = {path: array for path, array in flat.items() if path in known}
    others = {path: array for path, array in flat.items() if path not in known}
    return unflatten_dict(published), unflatten_dict(others)


def unpublished(params: Mapping[str, Tree]) -> Tensors:
    """Parameters under our names."""
    flat = flatten_dict(dict(params), sep="/")
    return {f"{PREFIX}{path}": np.asarray(array) for path, array in flat.items()}


def joined_trees(first: Tree, second: Tree) -> Tree:
    """Two trees without a leaf in common as one."""
    return unflatten_dict(flatten_dict(dict(first)) | flatten_dict(dict(second)))


def notes_of(config: ConfigDict) -> dict[str, str]:
    """What the header says of a run: its config, without the folders of this machine."""
    return {NOTE: to_json(portable(config))}


def config_of(weights: Weights, record: Released) -> ConfigDict | None:
    """The config of a run that a file was exported from, without paths; None for files of others.

    Raises:
      ConversionError: it is damaged, says what no config of a run does, or is another family's.
    """
    if NOTE not in weights.notes:
        return None
    try:
        config = from_json(weights.notes[NOTE])
        if not isinstance(config.get("method"), str):
            raise ValueError("it names no method")
        if unknown := unknown_fields(config):
            raise ValueError(f"it has fields that are not known here: {listed(unknown)}")
        check_fields(config, left_open=True)
    except ValueError as error:
        raise ConversionError(
            f"{weights.files[0]}: the config in its header is damaged; export it again ({error})"
        ) from error
    if not record.is_of(config):
        raise ConversionError(
            f"{weights.files[0]}: its tensors are {article(record.family)}'s, the config in its "
            f"header is {article(run_family(config))}'s; export it again"
        )
    return _without_paths(portable(config)).unlock()


def _without_paths(config: ConfigDict) -> ConfigDict:
    """The last names of paths alone, also of those that are relative or begin with `~`."""
    last = lambda value: PurePath(value).name if isinstance(value, str) else value
    with config.unlocked():
        for name, value in flatten_config(config).items():
            if is_path(name) or name in NAMED:
                *blocks, field = name.split(".")
                block = config[blocks[0]] if blocks else config
                block[field] = tuple(map(last, value)) if isinstance(value, tuple) else last(value)
    return config


@contextmanager
def config_named(weights: Weights) -> Iterator[None]:
    """Names the file whose config lacks a field that its networks need, or contradicts itself.

    Raises:
      ConversionError: in place of what a ConfigDict or a network raises then.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ArithmeticError) as error:
        if NOTE not in weights.notes:
            raise
        raise ConversionError(
            f"{weights.files[0]}: the config in its header makes no network ({shortened(error)}); "
            "export it again"
        ) from error


def check_unpublished(own: Tree, along: Mapping[str, Tree], possible: Tree) -> None:
    """Whether parameters under our names are those that a run of the file's config has.

    Args:
      own: of the published network itself.
      along: of the networks that trained along with it.
      possible: shapes as `parameters_of` tells them.

    Raises:
      ConversionError: others are there, or of other shapes; all are named.
    """
    found = flatten_dict({"": own, **along}, sep="/")
    known = flatten_dict({name: possible.get(name, {}) for name in ("", *along)}, sep="/")
    # What the network has beside is among the published tensors.
    names = dict.fromkeys((*found, *(name for name in known if not name.startswith("/"))))
    shape = lambda tree, name: tuple(tree[name].shape) if name in tree else "none"
    if wrong := [name for name in names if shape(found, name) != shape(known, name)]:
        told = (f"{n} ({shape(found, n)}, a run has {shape(known, n)})" for n in wrong)
        raise ConversionError(
            f"under names of {PREFIX}* are not the parameters that a run of its config has: "
            f"{listed(told)}; export it again"
        )


def parameters_of(names: Names, module: Any, weights: Weights, config: ConfigDict) -> Tree:
    """Shapes of all that a run of a config can train: the published network's at the name "".

    The published names know fewer conditions than our network has layers for.
    """
    found: dict[str, Tree] = {}
    inputs = [
        _with_ours(x, module, config) if isinstance(x, Conditioning) else x
        for x in names.inputs(module, *names.widths(weights))
    ]
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    found[""] = variables if names.whole else variables["params"]
    text, images = config.get("text"), config.get("image_encoder")
    if text is not None and text.get("kind") not in ("clip", "none"):
        encoder, ids = joint_text_encoder(text, config.precision), jnp.zeros((1, 4), jnp.int32)
        init = lambda: encoder.init(jax.random.key(0), ids)["params"]
        found["text_encoder"] = jax.eval_shape(init)
    if images is not None and images.get("kind") in JOINT:
        tower = joint_image_encoder(images, config.data.image_size, config.precision)
        found["image_encoder"] = jax.eval_shape(lambda: tower.init(jax.random.key(0)))
    return found


def _with_ours(cond: Conditioning, module: Any, config: ConfigDict) -> Conditioning:
    """A published network's conditions with those that ours has beside."""
    if config.get("text", {}).get("values_from") == "words":
        cond = replace(cond, text_values=cond.text)
    if getattr(module, "num_classes", 0):
        cond = replace(cond, labels=jnp.zeros((1,), jnp.int32))
    if getattr(module, "num_segments", 0):
        side = module.grid_divisor
        cond = replace(cond, segmentation=jnp.zeros((1, side, side), jnp.int32))
    return cond


def split(weights: Weights) -> tuple[Weights, Tree]:
    """A file's published tensors, and the parameters that have none of their names.

    Raises:
      ConversionError: a name of ours is no path of a parameter, or leads through another one.
    """
    own = {name: array for name, array in weights.items() if name.startswith(PREFIX)}
    published = {name: array for name, array in weights.items() if name not in own}
    for name in own:
        above = [str(place) for place in PurePosixPath(name).parents]
        if "/" not in name or not own.keys().isdisjoint(above):
            raise ConversionError(f"{weights.files[0]}: {name} is no parameter; export it again")
    beside = unflatten_dict({n.removeprefix(PREFIX): x for n, x in own.items()}, sep="/")
    kept = Weights(published, weights.source, weights.files, weights.entries, weights.notes)
    return kept, beside
