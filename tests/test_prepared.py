"""What a sampler's steps have in common is computed before them, and only there."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.interpreters import partial_eval

from paella_jax.models.conditioning import Conditioning
from paella_jax.models.muse import MuseTransformer
from paella_jax.models.muse_super_resolution import SuperResolution
from paella_jax.models.paella import Paella
from paella_jax.models.prepared import COLLECTION, prepare
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC
from paella_jax.models.uvit import UViT
from paella_jax.models.uvit_predictor import UViTPredictor

TOKENS, LATENTS = jnp.arange(32).reshape(2, 4, 4) % 16, jnp.linspace(-1, 1, 128).reshape(2, 4, 4, 4)
TEXT = jax.random.normal(jax.random.key(5), (2, 5, 12))
COND = Conditioning(text=TEXT, text_mask=jnp.arange(5)[None] < jnp.array([[5], [3]]))
UNET = {"widths": (16, 16), "depths": (1, 3), "num_heads": (0, 2), "patterns": ("CT", "CTA"),
        "cond_width": 16, "patch_size": 1}  # fmt: skip
MUSE = {"codebook_size": 16, "grid": 4, "width": 16, "depth": 3, "num_heads": 2,
        "feed_forward_width": 24}  # fmt: skip
UVIT = {"vocabulary_size": 17, "codebook_size": 16, "token_width": 16, "conv_width": 16,
        "conv_blocks": 1, "conv_heads": 2, "width": 24, "depth": 1, "num_heads": 2,
        "feed_forward_width": 24, "text_width": 12, "pooled_width": 12}  # fmt: skip
NETWORKS = {
    "unet": (Paella(codebook_size=16, token_width=8, **UNET), TOKENS, COND),
    "unet in a loop": (Paella(codebook_size=16, token_width=8, **UNET, loop=True), TOKENS, COND),
    "unet with values of their own": (
        Paella(codebook_size=16, token_width=8, **UNET),
        TOKENS,
        replace(COND, text_values=TEXT[:, ::-1]),
    ),
    "transformer": (MuseTransformer(**MUSE), TOKENS, COND),
    "transformer in a loop": (MuseTransformer(**MUSE, loop=True), TOKENS, COND),
    "super-resolution": (
        SuperResolution(**MUSE, low_grid=2, low_depth=2, low_codebook_size=16, block_size=2),
        TOKENS,
        replace(COND, low_tokens=jnp.arange(8).reshape(2, 2, 2)),
    ),
    "uvit": (UViTPredictor(UViT(**UVIT)), TOKENS, replace(COND, micro_conds=jnp.ones((2, 5)))),
    "stage B": (
        StageB(**UNET, inject=(False, True)),
        LATENTS,
        replace(COND, guide=jnp.linspace(0, 1, 2 * 3 * 3 * 16).reshape(2, 3, 3, 16)),
    ),
    "stage C": (StageC(channels=4, width=16, depth=3, num_heads=2, loop=True), LATENTS, COND),
}  # fmt: skip


def made(name):
    network, given, cond = NETWORKS[name]
    t = jnp.array([0.3, 0.8])
    shapes = jax.eval_shape(network.init, jax.random.key(0), given, t, cond)
    params = small.random_values(shapes["params"], seed=3)
    return network, given, t, cond, params


def reads(function, *given) -> set[str]:
    """Paths of the inputs that a function's results depend on."""
    paths, _ = jax.tree_util.tree_flatten_with_path(given)
    jaxpr = jax.make_jaxpr(function)(*given).jaxpr
    used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    return {name for name, read in zip(names, used, strict=True) if read}


@pytest.mark.parametrize("name", NETWORKS)
def test_prepared_networks_predict_the_same_and_read_no_text(name):
    network, given, t, cond, params = made(name)
    ready = jax.jit(lambda p, c: prepare(network.apply, p, jnp.zeros_like(given), 0 * t, c))(
        params, cond
    )
    assert jax.tree.leaves(ready[COLLECTION])
    plain = jax.jit(network.apply)({"params": params}, given, t, cond)
    prepared = jax.jit(network.apply)(ready, given, t, cond)
    np.testing.assert_allclose(prepared, plain, rtol=1e-6, atol=1e-6)

    read = reads(lambda v, c: network.apply(v, given, t, c), {"params": params}, cond)
    left = reads(lambda v, c: network.apply(v, given, t, c), ready, cond)
    of_condition = {path for path in read if path.startswith("[1]")}
    still = {path for path in left if path.startswith("[1]")}
    assert "[1].text" in of_condition and still <= {"[1].text_mask"}
    # What only the condition goes through is read in the preparation alone.
    gone = {path for path in read - left if path.startswith("[0]")}
    assert any("kv_mapper" in path or "'key'" in path or "text" in path for path in gone), gone


def test_a_uvit_that_is_told_the_level_hears_it_in_every_step():
    network = UViTPredictor(UViT(**UVIT, micro_conds=6))
    cond = replace(COND, micro_conds=jnp.ones((2, 5)))
    shapes = jax.eval_shape(network.init, jax.random.key(0), TOKENS, jnp.zeros(2), cond)
    params = small.random_values(shapes["params"], seed=3)
    ready = prepare(network.apply, params, TOKENS, jnp.zeros(2), cond)
    for level in (0.2, 0.9):
        t = jnp.full((2,), level)
        plain = network.apply({"params": params}, TOKENS, t, cond)
        np.testing.assert_allclose(network.apply(ready, TOKENS, t, cond), plain, atol=1e-5)


def test_training_and_initialisation_keep_nothing():
    network, given, t, cond, params = made("unet in a loop")
    variables = network.init(jax.random.key(0), given, t, cond)
    assert set(variables) == {"params"}
    rngs = {"dropout": jax.random.key(1)}
    out = network.apply({"params": params}, given, t, cond, deterministic=False, rngs=rngs)
    assert out.shape == (2, 4, 4, 16)
