"""What launch/peer_*.py compute, beside ours; where torch is installed."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from test_speed import config_of

from paella_jax.families.vqgan import make_vqgan
from paella_jax.speed.arrays import filled
from paella_jax.speed.peers import load_peer

torch = pytest.importorskip("torch", reason="peers are of torch")
TORCH = small.ROOT / "launch" / "peer_paella_torch.py"
VQGAN = small.ROOT / "launch" / "peer_vqgan_torch.py"


def module_of(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_torch_vqgan_is_ours():
    """Latents, tokens and images, with our weights."""
    theirs, config = module_of(VQGAN), small.small_vqgan(model__bottleneck_blocks=2)
    ours, given = make_vqgan(config), jnp.zeros((1, 4, 4, 3))
    shapes = jax.eval_shape(ours.init, jax.random.key(0), given)
    variables = jax.tree.map(lambda x: 10 * x, filled(shapes))
    variables["batch_stats"]["latent_norm"]["var"] = jnp.array([0.5, 1.0, 2.0, 3.0])
    images = np.random.default_rng(1).random((2, 16, 16, 3), np.float32)
    vqgan = theirs.sized(config).eval()
    theirs.load_ours(vqgan, jax.tree.map(np.array, variables))
    first = lambda x: torch.as_tensor(np.moveaxis(np.array(x), -1, 1))
    call = lambda method, x: np.asarray(ours.apply(variables, x, method=method))
    with torch.no_grad():
        latents = call("encode", images)
        assert np.abs(latents).max() > 0.1
        np.testing.assert_allclose(first(latents), vqgan.encode(first(images)), atol=1e-5)
        tokens = call("encode_tokens", images)
        assert np.array_equal(tokens, vqgan.encode_tokens(first(images)))
        drawn = call("decode_tokens", tokens)
        assert drawn.std() > 0.01
        decoded = vqgan.decode_tokens(torch.as_tensor(np.array(tokens, np.int64)))
        np.testing.assert_allclose(first(drawn), decoded, atol=1e-5)


@pytest.mark.parametrize(
    "file, preset, works",
    [
        (TORCH, "paella:tiny", {"forward", "3 guided steps", "train step, encoded data"}),
        (VQGAN, "paella:tiny", {"tokenizer: encode", "tokenizer: decode", "decode tokens"}),
        (VQGAN, "vqgan:tiny", {"tokenizer: encode", "tokenizer: decode", "decode tokens"}),
        (VQGAN, "resnet_vqgan:tiny", set()),
        (TORCH, "clip_prior:tiny", set()),
    ],
    ids=lambda x: getattr(x, "stem", None),
)
def test_the_work_that_a_peer_has(file, preset, works):
    made = {"paella:tiny": config_of, "vqgan:tiny": small.small_vqgan}
    config = made.get(preset, lambda: small.config_of(preset))()
    peer = load_peer(str(file))
    every = ["forward", "3 guided steps", "train step, encoded data", "tokenizer: encode"]
    every += ["tokenizer: decode", "decode tokens", "train step", "CLIP prior: 3 guided steps"]
    calls = {work: peer.make(config, work, 1) for work in every}
    assert {work for work, call in calls.items() if call} == works
    for work in works & {"forward", "tokenizer: encode", "tokenizer: decode"}:
        calls[work]()
