"""Small configs and run folders that several tests share."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.config import load_config, to_json
from paella_jax.families.vqgan import make_vqgan
from paella_jax.registry import build_method
from paella_jax.runs.folder import WEIGHTS_FILE, prepare_workdir
from paella_jax.runs.weights import save_tree

ROOT = Path(__file__).resolve().parent.parent
# For the environment of commands that tests start; the tests' own process: conftest.py.
CHEAP_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
COMPILE_CHEAPLY = {"XLA_FLAGS": CHEAP_FLAGS, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


TINY_TRANSFORMER = {
    "cell__network": "transformer",
    "cell__corruption": "mask",
    "transformer__width": 16,
    "transformer__depth": 1,
    "transformer__num_heads": 2,
    "transformer__feed_forward_width": 32,
    "text__width": 16,
    "text__num_heads": 2,
    "text__hidden_dim": 32,
}


def config_of(name: str, **overrides):
    """configs/NAME with overrides given as a__b=value."""
    texts = [f"--config.{k.replace('__', '.')}={v}" for k, v in overrides.items()]
    return load_config(str(ROOT / "configs" / name.replace(":", ".py:")), texts)


def slow(*values):
    """Values of a parametrised test that the suite leaves out: it has others of the same kind."""
    return pytest.param(*values, marks=pytest.mark.slow)


@cache
def _all_devices():
    return jax.devices()


@contextmanager
def devices_shown(count: int = 1):
    """Lets `jax.devices()` be the first `count`, which is what meshes are made of."""
    shown = _all_devices()[:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: shown)
        yield


def small_vqgan(**overrides):
    values = {"model__width": 16, "model__bottleneck_blocks": 1, "model__codebook_size": 32,
              "batch_size": 8, "mesh__data": -1} | overrides  # fmt: skip
    return config_of("vqgan:tiny", **values)


def small_paella(**overrides):
    values = {
        "batch_size": 8,
        "num_steps": 4,
        "model__codebook_size": 32,
        "model__token_width": 16,
        "model__cond_width": 32,
        "model__widths": "(32,)",
        "model__depths": "(1,)",
        "text__width": 32,
        "text__hidden_dim": 32,
        "text__num_layers": 1,
        "checkpoint__every": 2,
        "log__every": 1,
        "optim__warmup_steps": 1,
        "optim__schedule": "constant",
        "log__preview_images": 2,
        "sampler__guidance_scale": "(3.0,3.0)",
    } | overrides
    return config_of("paella:tiny", **values)


def brief_paella(**overrides):
    """A run whose images are random, but everything is real; see `SharedRuns.trained`."""
    return small_paella(**{"sampler__num_steps": 3, "optim__learning_rate": 0.01} | overrides)


def random_values(shapes, seed: int = 0):
    """numpy values for a tree of shapes, of the scale that keeps signals alive through a network.

    Nothing is compiled: the eager `init` of a small network runs hundreds of small programs.
    Matrices keep their input's variance; scales and variances are 1, other vectors nearly 0.
    No gate is closed, so that every input has a say.
    """
    draw = np.random.default_rng(seed)

    def value(path, shape):
        name = jax.tree_util.keystr(path[-1:])
        if len(shape.shape) > 1:
            scale = np.prod(shape.shape[:-1], dtype=float) ** -0.5
        else:
            scale = 0.05
        centre = 1.0 if len(shape.shape) < 2 and ("scale" in name or "var" in name) else 0.0
        return (centre + scale * draw.normal(size=shape.shape)).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(value, shapes)


def random_variables(model, *inputs, seed: int = 0, **options):
    """What `model.init` would return, with `random_values`."""
    init = lambda *x: model.init(jax.random.key(0), *x, **options)
    return random_values(jax.eval_shape(init, *inputs), seed)


@cache
def random_tokenizer():
    """An untrained VQGAN of `small_vqgan`: its variables, with codes far from each other."""
    variables = random_variables(make_vqgan(small_vqgan()), jnp.zeros((1, 32, 32, 3)))
    codebook = variables["params"]["codebook"]
    codebook = np.random.default_rng(1).normal(size=codebook.shape).astype(codebook.dtype)
    return dict(variables) | {"params": dict(variables["params"]) | {"codebook": codebook}}


def carry_random_tokenizer(workdir: Path) -> None:
    """An untrained tokenizer in a run folder: enough for everything but good images."""
    save_tree(workdir / "frozen" / "vqgan.safetensors", random_tokenizer())
    (workdir / "frozen" / "vqgan.json").write_text(to_json(small_vqgan()))


def sample_by_flags(monkeypatch, pipe, *flags):
    """What `paella_jax.sample` draws with these flags and a pipeline that is loaded already."""
    from paella_jax import sample
    from paella_jax.pipelines import flag_checks

    monkeypatch.setattr("sys.argv", ["sample", "--checkpoint", "RUN", *flags])
    monkeypatch.setattr(flag_checks, "read_config", lambda _: pipe.config)
    arguments = sample.parse()
    flag_checks.check_flags(arguments)
    flag_checks.check_run(arguments)
    return sample.draw(pipe, arguments)


def untrained(workdir: Path, config) -> Path:
    """A run folder of `config` with random weights: to draw from, as if trained."""
    workdir = prepare_workdir(workdir, config)
    if config.get("tokenizer") == "":
        carry_random_tokenizer(workdir)
    shapes = jax.eval_shape(build_method(config, workdir).init, jax.random.key(0))
    params, model_state = random_values(shapes)
    save_tree(workdir / WEIGHTS_FILE, {"params": params, "model_state": model_state})
    return workdir
