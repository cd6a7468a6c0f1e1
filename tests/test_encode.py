"""Encoded data: the same losses as from images, whole after a stop, and only for what made it."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
import small
from PIL import Image
from small_clip import write_clip_folder

from paella_jax import encode
from paella_jax.config import ConfigError
from paella_jax.data.build import make_source
from paella_jax.data.encoded import EncodedDataError, EncodedSource, describe_data
from paella_jax.data.encoded_format import MANIFEST, Stored, pack, read_manifest, unpack
from paella_jax.data.loader import make_iterator
from paella_jax.data.sources import ShapesSource
from paella_jax.noise.tokens import sample_keys
from paella_jax.objectives.inputs import StepInputs
from paella_jax.registry import build_method, method_alone
from paella_jax.runs.checkpoint import restore_variables
from paella_jax.runs.folder import prepare_workdir, read_metrics
from paella_jax.runs.weights import save_tree
from paella_jax.training import encode_shards, sharding
from paella_jax.training.cluster import Cluster
from paella_jax.training.encoding_plan import EncodeOptions, check_folder, plan_data
from paella_jax.training.loop import train
from paella_jax.training.method import Encoding
from paella_jax.training.optim import make_optimizer, pace_of
from paella_jax.training.placing import place
from paella_jax.training.sharding import make_mesh, replicated
from paella_jax.training.state import create_state

ALONE = Cluster("one process", 1)
OPTIONS = {"batch_size": 8, "shard_size": 16, "validation": 4}
COUNT = 40
BYT5 = small.ROOT / "tests" / "golden" / "text_encoders" / "byt5"
STAGES = "(('fused',1,3,1,8,8,1),('fused',2,3,2,8,8,1),('mb',2,3,2,8,16,1))"


def joint(**overrides):
    values = small.TINY_TRANSFORMER | {"data__size": COUNT, "sampler__num_steps": 2} | overrides
    return small.small_paella(**values)


def put(folder, config):
    """A folder with all that a run of the config is given: here a random tokenizer."""
    prepare_workdir(folder, config)
    if not (folder / "frozen").exists() and "tokenizer" in config:
        small.carry_random_tokenizer(folder)
    return folder


def encoded(folder, config, **options):
    put(folder, config)
    encode.encode_together(ALONE, config, folder, EncodeOptions(**OPTIONS | options))
    return folder


def held_back(workdir, config):
    """The validation metrics of fixed random weights."""
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        method = build_method(config, workdir)
        weights = small.random_values(jax.eval_shape(method.init, jax.random.key(0)))
        state = create_state(*weights, make_optimizer(config.optim, pace_of(config)), False)
        alike = replicated(mesh)
        return method.validation(place(state, alike), place(method.frozen, alike))


def losses(workdir, config, steps=3):
    """Of the first batches, by fixed random weights."""
    method = build_method(config, put(workdir, config))
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    params, model_state = small.random_values(shapes)
    data = make_iterator(method.source, method.transform, batch_size=8, seed=config.seed)
    objective = jax.jit(method.objective)
    values = []
    for step, batch in zip(range(steps), data, strict=False):
        keys = sample_keys(jax.random.key(step), np.arange(8))
        inputs = StepInputs(batch, keys, np.int32(step), model_state, method.frozen)
        values.append(float(objective(params, inputs)[0]))
    return values


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """For runs of `joint`."""
    return encoded(tmp_path_factory.mktemp("encoded") / "data", joint())


# --- the same losses

ALL_FROZEN = {
    "text__folder": BYT5, "image_encoder__kind": "clip", "objective__text_drop": 0.4,
    "objective__clip_text_drop": 0.4, "objective__image_drop": 0.4, "text__pad_to": 100,
    "text__buckets": 4,
    "cell__network": "unet", "cell__corruption": "uniform",
}  # fmt: skip
CLIP_ALONE = {
    "cell__network": "uvit", "text__kind": "clip", "objective__text_drop": 0.5,
    "uvit__width": 16, "uvit__depth": 1, "uvit__feed_forward_width": 32, "uvit__num_heads": 2,
    "uvit__conv_heads": 2, "uvit__token_width": 16, "uvit__conv_width": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip_folder(tmp_path_factory.mktemp("clip"))


def tokens_case(clip, base, **fields):
    given = {"clip__folder": clip} if "clip" in fields.values() else {}
    return lambda **more: joint(**fields | given | more)


def stage_b_case(clip, base, **fields):
    values = {
        "batch_size": 8, "model__widths": "(16,)", "model__depths": "(1,)", "data__size": COUNT,
        "model__cond_width": 16, "compressor__head_channels": 16, "compressor__stages": STAGES,
        "objective__text_drop": 0.5,
    } | fields  # fmt: skip
    if fields.get("text__kind") == "clip":
        values["text__folder"] = clip
    if "compressor__train" in fields:
        first = {n: x for n, x in values.items() if n not in ("compressor__train", "text__folder")}
        config = small.config_of("stage_b:tiny", **first | {"text__kind": "none"})
        values["compressor__run"] = small.untrained(base / "joint", config)
    return lambda **more: small.config_of("stage_b:tiny", **values | more)


def stage_c_case(clip, base, **fields):
    stage_b = small.untrained(base / "b", stage_b_case(clip, base)())
    values = {
        "batch_size": 8, "model__width": 32, "model__depth": 1, "stage_b": stage_b,
        "data__size": COUNT, "text__width": 32, "text__hidden_dim": 32, "text__num_layers": 1,
        "objective__text_drop": 0.5,
    } | fields  # fmt: skip
    if fields.get("text__kind") == "clip":
        values["text__folder"] = clip
    return lambda **more: small.config_of("stage_c:tiny", **values | more)


# Last: how far losses may be apart. With random weights Stage C's loss is of thousands: the last
# bit of a latent counts there.
CASES = [
    ("joint", tokens_case, {}, "text_ids text_mask tokens", 0),
    ("frozen", tokens_case, ALL_FROZEN,
     "image_pooled text_mask text_pooled text_states tokens", 1e-6),
    small.slow("clip alone", tokens_case, CLIP_ALONE,
               "micro_conds text_pooled text_states tokens", 1e-6),
    small.slow("padding seen", tokens_case, ALL_FROZEN | {"objective__mask_padding": "False"},
               "image_pooled text_ids text_mask text_pooled tokens", 1e-6),
    small.slow("images train", tokens_case, {"image_encoder__kind": "joint",
               "cell__network": "unet", "cell__corruption": "uniform"},
               "image text_ids text_mask tokens", 1e-6),
    small.slow("maps", tokens_case, {"model__num_classes": 8, "model__num_segments": 9,
               "cell__network": "unet"}, "labels segmentation text_ids text_mask tokens", 1e-6),
    small.slow("stage b", stage_b_case, {"text__kind": "clip", "compressor__train": "False"},
               "guide latents text_states", 1e-6),
    small.slow("stage b whole", stage_b_case, {}, "image latents", 1e-6),
    # An untrained Stage C divides by almost nothing (losses to 5e5), which enlarges last bits.
    small.slow("stage c", stage_c_case, {"text__kind": "clip"}, "latents text_states", 1e-3),
    small.slow("stage c joint", stage_c_case, {}, "latents text_ids text_mask", 1e-3),
]  # fmt: skip


@pytest.mark.parametrize("name, case, fields, stored, tolerance", CASES)
def test_losses_are_those_of_images(name, case, fields, stored, tolerance, clip, tmp_path):
    make = case(clip, tmp_path, **fields)
    folder = encoded(tmp_path / "data", make())
    assert sorted(read_manifest(folder).splits["train"].fields) == stored.split()
    images = losses(tmp_path / "images", make())
    arrays = losses(tmp_path / "arrays", make(data__encoded=folder))
    if name in ("maps", "images train", "stage b whole", "stage c joint"):
        looking = make(data__encoded=folder, log__validation_images=8, log__preview_images=0)
        assert np.isfinite(held_back(tmp_path / "arrays", looking)["validation_loss"])
    assert len(set(images)) == 3
    print(f"{name}: {max(abs(a / b - 1) for a, b in zip(arrays, images, strict=True)):.1e}")
    np.testing.assert_allclose(arrays, images, rtol=tolerance)


def test_networks_that_are_not_needed_stay_on_the_host(data, tmp_path):
    method = build_method(joint(data__encoded=data), put(tmp_path, joint()))
    assert not method.frozen and "image" not in method.transform(method.source[0])


def test_training_resumes_bitwise_and_shows_samples(data, tmp_path):
    def run(workdir, steps):
        config = joint(data__encoded=data, num_steps=steps, log__validation_images=8)
        config = describe_data(config)
        return train(config, workdir, build_method(config, put(workdir, config)))

    run(tmp_path / "whole", 4)
    run(tmp_path / "cut", 2)
    run(tmp_path / "cut", 4)
    first, second = (restore_variables(tmp_path / n)[1]["params"] for n in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    rows = [row for n in ("whole", "cut") for row in read_metrics(tmp_path / n / "metrics.jsonl")]
    assert [row["step"] for row in rows if "preview_exact" in row] == [4, 2, 4]
    held = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert held[0] == held[2] != held[1]


def test_validation_samples_keep_their_images(data):
    source = EncodedSource(data, "validation")
    assert len(source) == OPTIONS["validation"]
    shown = ShapesSource("tiny", "validation", COUNT, joint().seed)
    for index in range(len(source)):
        np.testing.assert_array_equal(source[index]["image"], shown[index]["image"])
        assert source[index]["caption"] == shown[index]["caption"]
    assert set(source[0]) == {*EncodedSource(data, "train")[0], "image"}


# --- stopped, shared, in variants


def contents(folder):
    files = sorted([*folder.glob("*.array_record"), folder / MANIFEST])
    return {file.name: file.read_bytes() for file in files}


def test_a_stopped_call_goes_on(data, tmp_path, monkeypatch):
    pack_whole, count = encode_shards.pack, 0

    def pack_some(*arguments):
        nonlocal count
        count += 1
        if count == 20:
            raise KeyboardInterrupt
        return pack_whole(*arguments)

    monkeypatch.setattr(encode_shards, "pack", pack_some)
    with pytest.raises(KeyboardInterrupt):
        encoded(tmp_path, joint())
    (shard,) = tmp_path.glob("*.array_record*")
    before = shard.stat().st_mtime_ns
    left = tmp_path / "train-00001-of-00003.array_record.77.part"  # as kill -9 leaves it
    left.write_bytes(b"half")
    with pytest.raises(EncodedDataError, match=r"lacks 2 of 3 shards, as train-00001.*goes on"):
        EncodedSource(tmp_path, "train")
    encoded(tmp_path, joint())
    assert contents(tmp_path) == contents(data)
    assert shard.stat().st_mtime_ns == before and not left.exists()


def test_processes_share_the_shards(data, tmp_path):
    config = joint()
    method = method_alone(config, put(tmp_path, config))
    for process in (1, 0):
        plan_data(config, tmp_path, method, EncodeOptions(**OPTIONS)).write((process, 2))
        found = {file.name[:11] for file in tmp_path.glob("*.array_record")}
        assert found == {"train-00001", "validation-"} or process == 0
    assert contents(tmp_path) == contents(data)


@pytest.mark.parametrize("count, whole", [(3, True), (4, False)])
def test_devices_that_do_not_divide_a_network_hold_it_whole(monkeypatch, capsys, count, whole):
    devices = jax.local_devices()[:count]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(sharding, "LARGE_BYTES", 0)
    network = {"kernel": np.ones((128, 1024), np.float32)}
    encoding = Encoding(lambda frozen, batch: batch, {"text": network}, {}, {})
    encoder = encode_shards.Encoder(encoding, {"text": network}, 5)
    placed = encoder.frozen["text"]["kernel"]
    assert placed.is_fully_replicated == whole and placed.sharding.num_devices == count
    assert (f"text does not divide by {count} devices" in capsys.readouterr().out) == whole


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(6):
        sample = ShapesSource("tiny")[index]
        Image.fromarray(sample["image"]).resize((56, 44)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(sample["caption"])
    return folder


def test_variants_take_turns(photos, tmp_path):
    """Each has its own crops; an epoch sees every sample once, in one of them."""
    fields = {"data__source": "folder", "data__folder": photos, "data__crop": "random",
              "data__resize": 40, "data__flip": True, "data__split": 0.0}  # fmt: skip
    folder = encoded(tmp_path / "data", joint(**fields), variants=2, validation=0)
    assert len(EncodedSource(folder, "validation")) == 0
    config = describe_data(joint(data__encoded=folder))
    assert config.data.source == "folder" and config.data.flip and config.data.resize == 40
    source = make_source(config.data, "train", config.seed)
    assert len(source) == 6
    tokens = np.stack([[source.of_epoch(i, v)["tokens"] for i in range(6)] for v in range(3)])
    np.testing.assert_array_equal(tokens[0], tokens[2])
    assert (tokens[0] != tokens[1]).any((1, 2)).sum() >= 5
    kept = lambda sample: {"tokens": sample["tokens"]}
    batches = make_iterator(source, kept, batch_size=6, seed=1)
    for epoch in range(3):
        seen = next(batches)["tokens"]
        row = lambda maps: sorted(x.tobytes() for x in maps)
        assert row(seen) == row(tokens[epoch])
    again = next(make_iterator(source, kept, batch_size=3, seed=1, start=5))["tokens"]
    np.testing.assert_array_equal(again, seen[3:])


def test_text_states_in_half_the_size(tmp_path):
    states = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    mask = np.arange(5) < 3
    shown = np.where(mask[:, None], states, 0)
    for dtype, error in (("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)):
        fields = {"text_states": Stored(dtype, (5, 8), "float32"),
                  "text_mask": Stored("bool", (5,), "bool")}  # fmt: skip
        record = pack({"text_states": states, "text_mask": mask}, "größer", fields)
        assert len(record) == 5 + 3 * 8 * (4 if dtype == "float32" else 2) + 8
        found = unpack(record, fields)
        assert found["caption"] == "größer" and found["text_states"].dtype == np.float32
        np.testing.assert_allclose(found["text_states"], shown, rtol=error)
    with pytest.raises(ValueError, match="not finite as float16"):
        fields = {"text_states": Stored("float16", (5, 8), "float32")}
        pack({"text_states": 1e6 * states}, "", fields)


# --- what does not fit


def test_another_network_is_refused(data, tmp_path):
    other = put(tmp_path / "other", joint())
    variables = small.random_tokenizer()
    changed = {**variables["params"], "codebook": variables["params"]["codebook"] + 1}
    save_tree(other / "frozen" / "vqgan.safetensors", {**variables, "params": changed})
    with pytest.raises(ConfigError, match=r"weights of vqgan: \w{12} -> \w{12}"):
        build_method(joint(data__encoded=data), other)
    for fields, message in (
        ({"text__pad_to": 20}, "text.pad_to or text.max_length: 24 -> 20"),
        ({"text__units": "bytes", "text__values_from": "states"}, "ids of the tokenizer of text"),
        ({"model__num_classes": 3, "cell__network": "unet"}, "model.num_classes: 0 -> 3"),
    ):
        config = joint(data__encoded=data, **fields)
        with pytest.raises(ConfigError, match=message):
            build_method(config, put(tmp_path / message[:4], config))
    with pytest.raises(ConfigError, match=r"images of 32 pixels, data\.image_size is 64"):
        describe_data(joint(data__encoded=data, data__image_size=64))
    config = small.small_vqgan(data__encoded=data)
    with pytest.raises(ConfigError, match="method 'vqgan' trains from images"):
        build_method(config, put(tmp_path / "vqgan", config))


def test_damaged_data_is_named(data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    shard, other = (folder / f"train-0000{i}-of-00003.array_record" for i in (1, 0))
    whole = shard.read_bytes()

    def opened(error, match):
        with pytest.raises(error, match=match):
            source = EncodedSource(folder, "train")
            [source[i] for i in range(len(source))]

    shard.write_bytes(whole[: len(whole) // 2])
    opened(EncodedDataError, "train-00001-of-00003.array_record is damaged .*same encode command")
    with pytest.raises(EncodedDataError, match=r"train-00001-of-00003\.array_record is damaged"):
        encoded(folder, joint())
    shard.write_bytes(other.read_bytes())
    opened(EncodedDataError, "train-00001-of-00003.array_record is a shard of another data set")
    place = whole.rindex(b"a ", 0, 4000)  # in a caption
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    opened(EncodedDataError, "train-00001-of-00003.array_record is damaged .*[Cc]orrupt")
    shard.write_bytes(whole)
    manifest = json.loads((folder / MANIFEST).read_text())
    for text, match in (
        (json.dumps(manifest | {"version": 99}), "is of version 99, this program reads version 1"),
        ("{", "manifest.json is damaged"),
        (json.dumps({"version": 1, "format": ""}), "manifest.json is damaged"),
    ):
        (folder / MANIFEST).write_text(text)
        opened(ConfigError, match)
    (folder / MANIFEST).unlink()
    opened(ConfigError, "holds no manifest.json")


def test_what_cannot_be_encoded(data, photos, tmp_path):
    for config, options, match in (
        (joint(seed=5), {}, "holds another encoded data set(?s:.*)seed: 0 -> 5"),
        (joint(data__size=50), {}, "data.size: 40 -> 50"),
        (joint(), {"shard_size": 8}, "--shard_size: 16 -> 8"),
        (joint(), {"validation": 3}, r"there -> this call\):\n  splits.validation.count: 4 -> 3$"),
        (joint(data__encoded=data), {}, "encode reads images; leave it out"),
        (joint(data__buckets="((32,64),)"), {}, "data.buckets gives images of several shapes"),
    ):
        with pytest.raises(ConfigError, match=match):
            encoded(data, config, **options)
    with pytest.raises(ConfigError, match="the same images 2 times"):
        encoded(tmp_path / "same", joint(), variants=2)
    with pytest.raises(ConfigError, match="method 'vqgan' trains from images"):
        encoded(tmp_path / "vqgan", small.small_vqgan())
    with pytest.raises(ConfigError, match="method 'clip_prior' trains from"):
        check_folder(small.config_of("clip_prior:tiny"), tmp_path, EncodeOptions())
    for options in ({"variants": 0}, {"validation": -1}, {"text_dtype": "float8"}):
        with pytest.raises(ConfigError, match=f"--{next(iter(options))} must be"):
            EncodeOptions(**options).check()
