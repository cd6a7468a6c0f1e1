"""Training from an encoded data set: the same method, with stored arrays in place of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.data.encoded import EncodedSource, read_empty
from paella_jax.data.encoded_format import Manifest, tokenizer_digest, tree_digest
from paella_jax.objectives.inputs import EMPTY
from paella_jax.training.method import TEXT_LENGTH, Encoding, Method
from paella_jax.training.placing import place
from paella_jax.training.sharding import frozen_shardings
from paella_jax.training.state import TrainState, mesh_of
from paella_jax.typing import Tree

NOTHING = ("vqgan", "direct_decoder", "clip_prior")  # methods without an encoding
Preview = Callable[[TrainState, Tree, Path], dict[str, float]]


def from_encoded(config: ConfigDict, method: Method) -> Method:
    """The method on the arrays of `data.encoded`; unchanged where that is empty.

    The networks that made them are not placed on the devices, but for previews.

    Raises:
      ConfigError: the method trains from images alone, or other networks, texts or sizes made them.
      EncodedDataError: a file is damaged.
    """
    if not config.data.get("encoded"):
        return method
    encoding, source = encoding_of(config, method), method.source
    assert isinstance(source, EncodedSource)
    manifest = source.manifest
    differences = differing(manifest, config.method, encoding)
    if differences:
        raise ConfigError(
            f"data.encoded {source.folder} was not encoded for this run (there -> here); encode "
            "the data with this config, or train with that one:\n  " + "\n  ".join(differences)
        )
    fields = manifest.splits["train"].fields
    empty = read_empty(source.folder, manifest)
    kept = {name: tree for name, tree in method.frozen.items() if name not in encoding.networks}
    used = {name: method.frozen[name] for name in encoding.networks}
    preview = method.preview
    return replace(
        method,
        frozen=kept | ({EMPTY: empty} if empty else {}),
        transform=lambda sample: {name: sample[name] for name in fields},
        preview=None if preview is None else _with_networks(preview, used),
    )


def encoding_of(config: ConfigDict, method: Method) -> Encoding:
    """What can be encoded for a method. Raises ConfigError where nothing can."""
    if method.encoding is None:
        raise nothing_to_encode(config)
    return method.encoding


def nothing_to_encode(config: ConfigDict) -> ConfigError:
    """The error about a method that has no use for encoded data."""
    return ConfigError(
        f"method {config.method!r} trains from images or from its own files; encoded data is for "
        "methods 'tokens', 'stage_b' and 'stage_c'"
    )


def differing(manifest: Manifest, method: str, encoding: Encoding) -> list[str]:
    """What a method's encoding has otherwise than a manifest, "name: there -> here"."""
    if manifest.method != method:
        return [f"method: {manifest.method!r} -> {method!r}"]
    shown = lambda digest: digest[:12] if isinstance(digest, str) else "none"
    pairs: list[tuple[str, Any, Any]] = []
    digests = [("weights of", manifest.networks, network_digests(encoding))]
    if manifest.settings.get(TEXT_LENGTH) == encoding.settings.get(TEXT_LENGTH):
        ours = tokenizer_digests(encoding)  # which ids of another length would change too
        digests.append(("ids of the tokenizer of", manifest.tokenizers, ours))
    for kind, theirs, ours in digests:
        for name in sorted(theirs.keys() | ours.keys()):
            pairs.append((f"{kind} {name}", shown(theirs.get(name)), shown(ours.get(name))))
    for name in sorted(manifest.settings.keys() | encoding.settings.keys()):
        pairs.append((name, manifest.settings.get(name), encoding.settings.get(name)))
    return [f"{name}: {there} -> {here}" for name, there, here in pairs if there != here]


def network_digests(encoding: Encoding) -> dict[str, str]:
    """A digest of each network's weights."""
    leaves = lambda tree: jax.tree_util.tree_flatten_with_path(tree)[0]
    named = lambda tree: {jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves(tree)}
    return {name: tree_digest(named(tree)) for name, tree in encoding.networks.items()}


def tokenizer_digests(encoding: Encoding) -> dict[str, str]:
    """A digest of what each tokenizer of texts does."""
    return {name: tokenizer_digest(of) for name, of in encoding.tokenizers.items()}


def _with_networks(preview: Preview, networks: Tree) -> Preview:
    """A preview that is given the networks that steps do without."""

    def shown(state: TrainState, frozen: Tree, file: Path) -> dict[str, float]:
        own = {name: tree for name, tree in frozen.items() if name != EMPTY}
        placed = place(networks, frozen_shardings(networks, mesh_of(state)))
        return preview(state, {**own, **placed}, file)

    return shown
