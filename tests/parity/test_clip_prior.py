"""The CLIP prior against the reference implementation's recorded outputs."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.convert.paella import CLIP_PRIOR, infer_clip_prior
from paella_jax.files.tensors import ConversionError
from paella_jax.models.clip_prior import ClipPrior
from paella_jax.models.layers import timestep_embedding

pytestmark = pytest.mark.usefixtures("highest_precision")


def pytest_generate_tests(metafunc):
    golden.parametrize(metafunc, "folder", golden.is_model("clip_prior"))


@pytest.fixture(scope="module")
def case(folder):
    tensors = golden.weights_of(folder)
    model = ClipPrior(**infer_clip_prior(tensors))
    return folder.name, model, tensors, golden.arrays_of(folder)


def test_sizes_are_read_from_the_shapes(case, folder):
    _, model, _, _ = case
    constructor = golden.config_of(folder)["constructor"]
    assert (model.clip_width, model.width, model.time_width, model.num_blocks) == tuple(
        constructor[name] for name in ("clip_r", "c_hidden", "c_r", "num_blocks")
    )


def test_output_and_every_block(case):
    label, model, tensors, arrays = case
    params = golden.as_jax(CLIP_PRIOR.names.load(tensors, model))
    x, t, text = (jnp.asarray(arrays[f"in.{name}"]) for name in ("x", "r", "c"))
    embedding = timestep_embedding(t, model.time_width)
    golden.check_close(f"{label} r_embed", embedding, arrays["r_embed"])
    run = jax.jit(
        lambda *inputs: model.apply(
            {"params": params}, *inputs, capture_intermediates=True, mutable=["intermediates"]
        )
    )
    out, captured = run(x, t, text)
    seen = captured["intermediates"]
    names = ["input", *(f"block_{i}" for i in range(model.num_blocks)), "output"]
    for index, name in enumerate(names):
        ours = seen[name]["__call__"][0]
        golden.check_close(f"{label} mid.block{index}", ours, arrays[f"mid.block{index}"])
    assert f"mid.block{len(names)}" not in arrays
    golden.check_close(f"{label} out", out, arrays["out"])
    golden.check_close(f"{label} out_f64", out, arrays["out_f64"])


def test_round_trip_is_bitwise(case):
    _, model, tensors, _ = case
    back = CLIP_PRIOR.names.save(CLIP_PRIOR.names.load(tensors, model), model)
    golden.same_tensors(back, tensors)


def test_misfits_are_listed_together(case):
    _, model, tensors, _ = case
    broken = dict(tensors)
    del broken["blocks.1.4.bias"]
    broken["surprise"] = np.zeros(3, np.float32)
    broken["blocks.0.bias"] = broken["blocks.0.bias"][:3]
    with pytest.raises(ConversionError, match=r"missing tensor blocks\.1\.4\.bias") as error:
        CLIP_PRIOR.names.load(broken, model)
    assert "blocks.0.bias has shape (3,)" in str(error.value) and "surprise" in str(error.value)


def test_other_networks_are_refused(case):
    _, model, tensors, _ = case
    with pytest.raises(ConversionError, match=r"not a CLIP prior: blocks\.0\.weight and"):
        infer_clip_prior({"clf.1.weight": np.zeros((2, 2), np.float32)})
    narrow = dict(tensors) | {"blocks.1.0.weight": tensors["blocks.1.0.weight"][:, : model.width]}
    with pytest.raises(ConversionError, match=r"blocks\.1\.0\.weight must take"):
        infer_clip_prior(narrow)
