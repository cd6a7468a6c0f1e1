"""NaN and infinity are refused where they enter: weights, checkpoints, embeddings, masks."""

from __future__ import annotations

from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
import small

import paella_jax
from paella_jax.config import CheckpointError
from paella_jax.data.encoded_format import Stored, pack
from paella_jax.files import finite
from paella_jax.files.finite import describe_not_finite, is_finite
from paella_jax.files.safetensors_file import write_safetensors
from paella_jax.files.tensors import ConversionError
from paella_jax.images.decode import ImageError
from paella_jax.images.read import read_mask
from paella_jax.runs.average import read_raw
from paella_jax.runs.checkpoint import Checkpointer, restore_variables
from paella_jax.runs.weights import load_tree, save_tree

BAD = (np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_number_is_looked_at(dtype, monkeypatch):
    """The largest ones pass, and what is NaN in the last piece does not."""
    monkeypatch.setattr(finite, "CHUNK", 5)
    most = ml_dtypes.finfo(dtype).max
    sound = np.array([0.0, -0.0, most, -most, 1e-7, *np.linspace(-3, 3, 8)]).astype(dtype)
    assert is_finite(sound) and is_finite(sound.reshape(1, -1)[:, ::2]) and is_finite(sound[:0])
    for place in range(len(sound)):
        for value in BAD:
            broken = sound.copy()
            broken[place] = value
            assert not is_finite(broken)
    assert not is_finite(np.asarray(np.nan, dtype))


def test_what_is_not_finite_is_named():
    arrays = {name: np.full(2, np.nan if name != "b" else 0.0) for name in "abcde"}
    assert describe_not_finite(arrays) == "a, c, d and 1 more"
    assert (
        describe_not_finite({"b": arrays["b"], "ids": np.arange(3), "is": np.ones(2, bool)}) == ""
    )


@pytest.mark.parametrize("value", BAD)
def test_weights(tmp_path, value, monkeypatch):
    """Neither written nor, from elsewhere, read."""
    tree = {"net": {"kernel": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)}}
    tree["net"]["bias"][1] = value
    with pytest.raises(ConversionError, match=r"net/bias holds NaN or infinity: .*weights\.saf"):
        save_tree(tmp_path / "weights.safetensors", tree)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("paella_jax.files.safetensors_file.is_finite", lambda array: True)
    save_tree(tmp_path / "weights.safetensors", tree)
    with pytest.raises(CheckpointError, match="holds NaN or infinity in net/bias, and was written"):
        load_tree(tmp_path / "weights.safetensors")
    write_safetensors(tmp_path / "old.safetensors", {"a": tree["net"]["bias"]})  # no digests
    with pytest.raises(CheckpointError, match="holds NaN or infinity in a,"):
        load_tree(tmp_path / "old.safetensors")


def test_checkpoints(tmp_path):
    """To resume, to sample, to average: of the arrays that are read."""
    state = {
        "step": jax.numpy.int32(2), "params": {"kernel": jax.numpy.ones((4, 3))},
        "ema_params": {"kernel": jax.numpy.ones((4, 3))}, "model_state": {},
        "opt_state": {"mu": jax.numpy.array([1.0, np.inf])},
    }  # fmt: skip
    checkpointer = Checkpointer(tmp_path, None)
    checkpointer.save(2, state)
    abstract = jax.eval_shape(lambda: state)
    with pytest.raises(CheckpointError, match="checkpoints/2 cannot be read: it holds NaN or "
                       "infinity in opt_state/mu, and was written so"):  # fmt: skip
        checkpointer.wait()
        checkpointer.restore(abstract)
    assert restore_variables(tmp_path)[0] == 2, "sampling reads no such array"
    ema = {"kernel": state["ema_params"]["kernel"].at[0, 0].set(np.nan)}
    checkpointer.save(4, state | {"step": jax.numpy.int32(4), "ema_params": ema})
    checkpointer.close()
    with pytest.raises(CheckpointError, match="infinity in ema_params/kernel"):
        restore_variables(tmp_path)
    assert set(read_raw(tmp_path, 4)) >= {"params"}, "an average reads the parameters alone"


def test_what_a_call_is_given(tmp_path):
    pipe = paella_jax.load(small.untrained(tmp_path, small.small_paella(**small.TINY_TRANSFORMER)))
    embeds = pipe.embed("a red circle")
    condition, other = embeds.parts[""]
    text = condition.text.copy()
    text[0, 1, 2] = np.nan
    broken = replace(embeds, parts={"": (replace(condition, text=text), other)})
    with pytest.raises(ValueError, match=r"prompt_embeds hold NaN or infinity in \[0\]\.text;"):
        pipe(prompt_embeds=broken)
    mask = np.zeros((32, 32), np.float32)
    mask[0, 0] = np.inf
    with pytest.raises(ImageError, match="a mask array is empty, or holds NaN"):
        read_mask(mask)
    image = np.full((32, 32, 3), np.nan, np.float32)
    with pytest.raises(ImageError, match=r"float in \[0, 1\]"):
        pipe("a red circle", image=image)


def test_encoded_records():
    field = {"text": Stored("float16", (2,), "float32")}
    with pytest.raises(ValueError, match="text is not finite as float16"):
        pack({"text": np.array([1.0, 1e6], np.float32)}, "a caption", field)
