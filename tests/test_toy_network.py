"""A new token network is one file in models/, one record and one config block: here is a toy."""

from __future__ import annotations

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import paella_jax
from paella_jax import train
from paella_jax.config import ConfigError, load_config
from paella_jax.families.cells import check_cell
from paella_jax.families.networks import NETWORKS, Network, common_fields
from paella_jax.families.start import settle_config
from paella_jax.registry import abstract_method
from paella_jax.runs.folder import read_metrics

# --- models/toy.py


class Toy(nn.Module):
    """Every token by itself, beside the mean of the text and the noise level."""

    codebook_size: int
    width: int
    mask_row: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens, t, cond, *, deterministic=True, return_features=False):
        x = nn.Embed(self.codebook_size + self.mask_row, self.width, dtype=self.dtype)(tokens)
        text = nn.Dense(self.width, dtype=self.dtype)(cond.text.mean(1))
        x = nn.Dense(self.width, dtype=self.dtype)(nn.gelu(x + (text + t[:, None])[:, None, None]))
        shape = (self.width, self.codebook_size)
        classifier = self.param("classifier", nn.initializers.normal(0.1), shape)
        return x if return_features else x.astype(jnp.float32) @ classifier

    @property
    def mask_token(self):
        return self.codebook_size if self.mask_row else None

    grid_divisor = 1
    knows_noise_level = True


# --- the record, for families/networks.py

RECORD = Network(
    block="toy",
    make=lambda config, around: Toy(**config.toy, **common_fields(config)),
)

# --- the block, for configs/cells.py; the rest is what any small run of one says

CONFIG = """
from ml_collections import ConfigDict
from paella_jax.config import CONFIGS, load_module

def get_config(preset):
    config = load_module(CONFIGS / "paella.py").get_config("tiny" if preset == "toy" else preset)
    config.toy = ConfigDict()
    config.toy.width = 8 if preset == "toy" else None
    config.cell.network = "toy"
    return config
"""
SMALL = {
    "batch_size": 8, "num_steps": 2, "model.codebook_size": 32, "text.width": 8,
    "text.num_heads": 1, "text.num_layers": 1, "text.hidden_dim": 8, "checkpoint.every": 2,
    "log.every": 1, "log.preview_images": 1, "sampler.num_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A run of the command line's, and what it was started with."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.py").write_text(CONFIG)
    overrides = [f"--config.{name}={value}" for name, value in SMALL.items()]
    small.carry_random_tokenizer(folder / "run")
    first = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: first)
        patch.setitem(NETWORKS, "toy", RECORD)
        patch.setattr(train, "setup_jax", lambda: None)
        command = ["train", "--config", f"{folder}/toy.py:toy", "--workdir", f"{folder}/run"]
        patch.setattr("sys.argv", [*command, *overrides])
        assert train.main() == 0
        config = load_config(f"{folder}/toy.py:toy", overrides)
        yield SimpleNamespace(folder=folder, run=folder / "run", config=config)


def test_it_trains_and_samples(toy):
    rows = [row for row in read_metrics(toy.run / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2] and np.isfinite(rows[-1]["loss"])
    assert list((toy.run / "samples").glob("*.png"))
    pipe = paella_jax.load(toy.run)
    assert pipe("a red circle")[0].size == (32, 32)
    tokens = pipe.generate(["a red circle", "a blue circle"], seed=1, num_steps=2).tokens
    assert tokens.shape == (2, 8, 8) and tokens.min() >= 0 and tokens.max() < 32


def test_it_needs_no_files_to_be_looked_at(toy):
    """As `compile` and `compare` do."""
    shapes = jax.eval_shape(abstract_method(toy.config).init, jax.random.key(0))[0]
    assert shapes["predictor"]["classifier"].shape == (8, 32)
    masked = toy.config.copy_and_resolve_references()
    masked.cell.corruption = "mask"
    shapes = jax.eval_shape(abstract_method(masked).init, jax.random.key(0))[0]
    assert shapes["predictor"]["Embed_0"]["embedding"].shape == (33, 8)


def test_its_fields_are_those_of_a_network(toy):
    """They are taken over by a run that trains on, or must be the same."""
    finetune = f"{toy.folder}/toy.py:finetune"
    start = f"--config.init_from={toy.run}"
    taken = settle_config(load_config(finetune, [start]), toy.folder / "new")
    assert taken.toy.width == 8 and taken.cell.network == "toy"
    other = load_config(finetune, [start, "--config.toy.width=16"])
    with pytest.raises(ConfigError, match=r"toy\.width: 8 -> 16"):
        settle_config(other, toy.folder / "new")


def test_what_it_does_not_take_is_refused(toy):
    config = toy.config.copy_and_resolve_references()
    config.model.num_classes = 3
    with pytest.raises(ConfigError, match=r"only cell\.network=unet .* not toy"):
        check_cell(config)
    config.model.num_classes = 0
    config.text.empty_is_absent = True
    with pytest.raises(ConfigError, match="toy has none"):
        check_cell(config)
