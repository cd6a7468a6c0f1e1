"""One image's style by LoRA: the `style` presets on a small masked transformer."""

from __future__ import annotations

import numpy as np
import pytest
import small
from flax.traverse_util import flatten_dict
from PIL import Image

from paella_jax.config import ConfigError
from paella_jax.families.start import settle_config
from paella_jax.pipelines.load import load_tokens
from paella_jax.registry import build_method
from paella_jax.runs.checkpoint import restore_variables
from paella_jax.runs.derive import restore_trained
from paella_jax.runs.folder import prepare_workdir
from paella_jax.training.loop import train

SMALL = {
    "cell__network": "transformer",
    "cell__corruption": "mask",
    "cell__sampler": "confidence",
    "transformer__width": 16,
    "transformer__depth": 1,
    "transformer__feed_forward_width": 32,
    "num_steps": 1,
    "checkpoint__every": 1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small.untrained(tmp_path_factory.mktemp("base"), small.small_paella(**SMALL))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("style") / "style.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def style(base, picture, **overrides):
    values = {"init_from": base, "data__image_file": picture, "data__caption": "in the style",
              "num_steps": 3, "checkpoint__every": 3, "log__every": 1, "batch_size": 8,
              "lora__rank": 2} | overrides  # fmt: skip
    return small.config_of("muse:style", **values)


def test_one_image_changes_the_attention_matrices_alone(base, picture, tmp_path):
    config = settle_config(style(base, picture), tmp_path)
    assert config.cell.to_dict() == {
        "corruption": "mask", "network": "transformer", "sampler": "confidence",
    }  # fmt: skip
    prepare_workdir(tmp_path, config)
    method = build_method(config, tmp_path)
    first, other = method.source[0], method.source[5 % len(method.source)]
    assert first["caption"] == other["caption"] == "in the style"
    train(config, tmp_path, method)

    adapters = flatten_dict(restore_variables(tmp_path)[1]["params"], sep="/")
    changed = {name.rsplit("/", 1)[0] for name in adapters}
    assert changed and all(n.endswith(("query/kernel", "key/kernel", "value/kernel"))
                           for n in changed)  # fmt: skip
    before = flatten_dict(dict(restore_trained(base, small.small_paella(**SMALL))), sep="/")
    after = flatten_dict(dict(restore_trained(tmp_path, config)), sep="/")
    differing = {n for n in before if not np.array_equal(before[n], after[n])}
    assert differing == changed
    images = load_tokens(tmp_path)("a house in the style", num_steps=2, output_type="array")
    assert images.shape == (1, 32, 32, 3) and np.isfinite(images).all()


def test_what_a_style_needs(base, picture, tmp_path):
    for change, message in (
        ({"data__image_file": ""}, "image_file"),
        ({"data__image_file": tmp_path / "absent.png"}, "image_file"),
        ({"data__caption": ""}, "caption"),
    ):
        config = settle_config(style(base, picture, **change), tmp_path)
        with pytest.raises((ConfigError, ValueError), match=message):
            build_method(config, tmp_path)
    with pytest.raises(ConfigError, match="init_from"):
        settle_config(small.config_of("muse:style"), tmp_path)
