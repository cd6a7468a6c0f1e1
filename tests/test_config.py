"""Configs: every preset builds, wrong fields are refused by name, sizes are the published ones."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import pytest
import small

from paella_jax.cli import run
from paella_jax.config import ConfigError, differing_fields, from_json, load_config, to_json
from paella_jax.convert.paella import CLIP_PRIOR, PAELLA
from paella_jax.convert.vqgan import VQGAN as VQGAN_F4
from paella_jax.convert.wuerstchen import STAGE_B, STAGE_C
from paella_jax.families.abstract import abstract_tokens
from paella_jax.families.vqgan import make_vqgan
from paella_jax.models.clip_prior import ClipPrior
from paella_jax.models.direct_decoder import DirectDecoder
from paella_jax.models.discriminator import Discriminator
from paella_jax.models.paella import Paella
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC

PRESETS = {
    "vqgan": ["tiny", "shapes", "shapes64", "f4"],
    "resnet_vqgan": ["tiny", "shapes", "f16", "f8", "finetune_decoder"],
    "paella": [
        "tiny",
        "shapes",
        "shapes_long",
        "shapes_tasks",
        "shapes64",
        "finetune",
        "style",
        "600m",
        "1b",
    ],
    "muse": [
        "tiny",
        "shapes",
        "super_resolution_tiny",
        "super_resolution_shapes",
        "632m",
        "3b",
        "super_resolution",
        "amused_256",
        "amused_512",
        "finetune",
        "style",
    ],
    "clip_prior": ["tiny", "released"],
    "stage_b": ["tiny", "shapes", "v2", "v2_1024"],
    "stage_c": ["tiny", "shapes", "v2", "v2_1024", "v2_mixed", "v2_aesthetic", "paper"],
    "direct_decoder": ["tiny", "shapes"],
}
ALL = [f"{family}:{preset}" for family, presets in PRESETS.items() for preset in presets]


@cache
def abstract_stage(abstract, model):
    """Presets that differ in their recipe alone have one network."""
    return abstract(model, 32)


NETWORKS = {
    "vqgan": lambda config: VQGAN_F4.names.shapes(make_vqgan(config)),
    "tokens": lambda config: jax.eval_shape(abstract_tokens(config).init, jax.random.key(0)),
    "clip_prior": lambda config: CLIP_PRIOR.names.shapes(ClipPrior(**config.model)),
    "stage_b": lambda config: STAGE_B.names.shapes(StageB(**config.model), 32),
    "stage_c": lambda config: STAGE_C.names.shapes(StageC(**config.model), 32),
    "direct_decoder": lambda config: jax.eval_shape(
        lambda: DirectDecoder(**config.model).init(
            jax.random.key(0), jnp.zeros((1, 4, 4, 4)), 32, 32
        )
    ),
}


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ALL)
def test_preset_builds_and_survives_json(name):
    config = small.config_of(name)
    assert differing_fields(config, from_json(to_json(config))) == []
    _make_shallow(config)
    if config.precision is not None:  # else the networks are those of `init_from`
        assert count(NETWORKS[config.method](config)) > 0


@pytest.mark.parametrize("name", ALL)
def test_a_preset_reaches_its_rate_and_its_average(name):
    """A later phase of a recipe is short: neither may take as long as it."""
    config = small.config_of(name)
    if config.num_steps is not None and config.optim.warmup_steps is not None:
        assert config.optim.warmup_steps <= 0.5 * config.num_steps
        assert config.optim.ema_start <= 0.2 * config.num_steps


def _make_shallow(config):
    """Equal layers once: the presets' own depths are counted in tests/test_full_size.py."""
    for block in ("model", "transformer", "uvit", "super_resolution"):
        for name, value in config.get(block, {}).items():
            if name in ("depth", "low_depth", "depths") and value is not None:
                deep = value if isinstance(value, int) else (1,) * len(value)
                config[block][name] = min(deep, 1) if isinstance(deep, int) else deep


def test_published_sizes():
    """docs/models/paella.md 7."""
    model = Paella(**small.config_of("paella:1b").model)
    assert count(PAELLA.names.shapes(model, 2560, 1024)) == 1_008_350_592
    vqgan = make_vqgan(small.config_of("vqgan:f4"))
    shapes = jax.eval_shape(lambda: vqgan.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    assert count(shapes["params"]) == 18_406_894
    images = jnp.zeros((1, 64, 64, 3))
    adversary = jax.eval_shape(lambda: Discriminator().init(jax.random.key(0), images))
    assert count(adversary["params"]) == 6_271_105


@pytest.mark.parametrize(
    "override, words",
    [
        ("--config.optm.learning_rate=1", "did you mean 'optim.learning_rate'"),
        ("--config.nonsense=1", "unknown config field 'nonsense'"),
        ("--config.batch_size=many", "batch_size must be of type int"),
        ("--config.model.widths=7", "widths must be of type tuple"),
        ("--confg.batch_size=1", "unknown argument"),
        ("--config.batch_size", "unknown argument"),
    ],
)
def test_wrong_overrides(override, words):
    with pytest.raises(ConfigError, match=words):
        load_config(str(small.ROOT / "configs/paella.py:tiny"), [override])


def test_overrides_keep_types():
    config = small.config_of(
        "paella:tiny", optim__learning_rate=1, sampler__guided_steps=3, model__widths="[32]",
        model__remat="true", sampler__temperature="(1.0, 0.5)",
    )  # fmt: skip
    assert config.optim.learning_rate == 1.0 and isinstance(config.optim.learning_rate, float)
    assert config.sampler.guided_steps == 3 and config.model.widths == (32,)
    assert config.model.remat is True and config.sampler.temperature == (1.0, 0.5)


def test_missing_file_and_preset():
    with pytest.raises(ConfigError, match="no config file"):
        load_config("configs/nothing.py:tiny")
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        load_config(str(small.ROOT / "configs/paella.py:huge"))


def test_config_is_locked():
    config = small.config_of("paella:tiny")
    with pytest.raises(AttributeError):
        config.surprise = 1


@pytest.mark.parametrize("error", [FileNotFoundError("no such folder"), ConfigError("a typo")])
def test_a_users_mistake_is_one_line(error, capsys, monkeypatch):
    monkeypatch.delenv("PAELLA_JAX_TRACEBACK", raising=False)

    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: {error}\n"
    monkeypatch.setenv("PAELLA_JAX_TRACEBACK", "1")
    with pytest.raises(SystemExit if isinstance(error, ConfigError) else FileNotFoundError):
        run(main)


def test_other_errors_keep_their_traceback():
    def main() -> int:
        raise PermissionError("of the system")

    with pytest.raises(PermissionError):
        run(main)
