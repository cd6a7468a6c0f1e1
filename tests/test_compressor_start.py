"""A Stage B whose compressor starts from torchvision's EfficientNet, as the published one did."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import small
from small_torch import write_torch_file
from test_wuerstchen import run, small_stage_b

from paella_jax.config import ConfigError
from paella_jax.encoders.compressor_names import BACKBONE_NAMES, MAPPER
from paella_jax.families.stage_b import make_compressor, prepare
from paella_jax.files.tensors import ConversionError
from paella_jax.registry import build_method
from paella_jax.runs.folder import prepare_workdir, read_metrics

pytestmark = pytest.mark.devices(8)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """torchvision's file of a classifier with the small compressor's layers, and the variables."""
    model = make_compressor(small_stage_b())
    variables = small.random_variables(model, np.zeros((1, 32, 32, 3), np.float32))
    backbone = {kind: {n: x for n, x in tree.items() if n != MAPPER}
                for kind, tree in variables.items()}  # fmt: skip
    theirs = {n.replace("backbone.", "features."): np.ascontiguousarray(x, np.float32)
              for n, x in BACKBONE_NAMES.save(backbone, model).items()}  # fmt: skip
    theirs["features.0.1.num_batches_tracked"] = np.zeros((1,), np.float32)
    theirs["classifier.1.weight"] = np.zeros((10, 16), np.float32)
    file = tmp_path_factory.mktemp("torchvision") / "efficientnet.pth"
    return write_torch_file(file, theirs), backbone


def test_all_but_the_mapper_starts_from_the_file(published, tmp_path):
    file, backbone = published
    config = small_stage_b(compressor__weights=file)
    prepare_workdir(tmp_path, config)
    small.carry_random_tokenizer(tmp_path)
    params, state = build_method(config, tmp_path).init(jax.random.key(0))
    fresh, fresh_state = build_method(small_stage_b(), tmp_path).init(jax.random.key(0))
    for given, plain, kind in ((params, fresh, "params"), (state, fresh_state, "batch_stats")):
        own = given["compressor"]
        assert set(own) == {*backbone[kind], MAPPER}
        jax.tree.map(np.testing.assert_array_equal, {n: own[n] for n in backbone[kind]},
                     backbone[kind])  # fmt: skip
        jax.tree.map(np.testing.assert_array_equal, own[MAPPER], plain["compressor"][MAPPER])
    stem = [tree["compressor"]["stem"]["kernel"] for tree in (params, fresh)]
    assert not np.array_equal(*stem)


def test_a_resumed_run_does_not_need_the_file(published, tmp_path):
    file, _ = published
    copy = tmp_path / "copy.pth"
    copy.write_bytes(file.read_bytes())
    fields = {"compressor__weights": copy, "log__preview_images": 0, "log__validation_images": 0}
    run(tmp_path / "run", small_stage_b(num_steps=2, **fields))
    copy.unlink()
    run(tmp_path / "run", small_stage_b(num_steps=4, **fields), tokenizer=False)
    steps = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert max(steps) == 4


def test_another_network_s_weights_are_refused(published, tmp_path):
    file, _ = published
    config = small_stage_b(compressor__weights=file, compressor__head_channels=24)
    prepare_workdir(tmp_path, config)
    small.carry_random_tokenizer(tmp_path)
    with pytest.raises(ConversionError, match=r"efficientnet.pth.*(?s:.*)backbone.4.0.weight has"):
        build_method(config, tmp_path)
    missing = small_stage_b(compressor__weights=tmp_path / "none.pth")
    with pytest.raises(ConversionError, match=r"none.pth does not exist"):
        build_method(missing, tmp_path)


@pytest.mark.parametrize(
    "fields", [{"init_from": "runs/other"}, {"compressor__train": "False"}], ids=str
)
def test_what_has_a_compressor_takes_no_weights(fields, published, tmp_path):
    config = small_stage_b(compressor__weights=published[0], **fields)
    with pytest.raises(ConfigError, match=r"compressor\.weights starts a compressor that trains"):
        prepare(config, tmp_path)
