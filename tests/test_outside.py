"""Properties of what reads files from outside, and a few damaged inputs of every kind."""

from __future__ import annotations

import csv
import io
import json
import math
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import fuzz_examples
import fuzzing
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from paella_jax.config import ConfigError, UserError, apply_override, flatten_config, load_config
from paella_jax.data.captions import list_captioned
from paella_jax.data.tables import read_rows
from paella_jax.fields.table import FIELDS, problem
from paella_jax.files.arrays import read_npy, read_npz
from paella_jax.files.digests import from_sealed_json, is_inside, to_sealed_json
from paella_jax.files.examples import decode_example, encode_example
from paella_jax.files.layouts import is_plain_name
from paella_jax.files.pickle_bounds import check_pickle
from paella_jax.files.safetensors_file import DTYPES, map_safetensors, write_safetensors
from paella_jax.files.tar import TarError, list_members
from paella_jax.files.tensors import ConversionError
from paella_jax.files.torch_pickle import unpickle
from paella_jax.files.wrappers import unwrapped
from paella_jax.images.decode import ImageError
from paella_jax.images.read import read_classes, read_rgb
from paella_jax.outside import escaped, parse_json, shortened
from paella_jax.pipelines.prompt_file import Defaults, check_prompt_file, read_prompt_file

settings.register_profile(
    "suite", derandomize=True, database=None, deadline=None, max_examples=60,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
settings.load_profile("suite")

EVERY_TEXT = st.text(st.characters(exclude_categories=()))  # half surrogate pairs too
NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | EVERY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(EVERY_TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def refused(read, file, *kinds):
    """Whether a reader refuses a file, which must be in one line with the file's name."""
    try:
        read(file)
    except kinds as error:
        message = escaped(str(error))
        assert file.name in message and "\n" not in message.replace("\n  ", "")
        return True
    return False


# --- texts and JSON


@given(EVERY_TEXT)
def test_texts_cannot_control_a_terminal(text):
    shown = escaped(text)
    shown.encode()  # half a pair would fail
    assert escaped(shown) == shown and not set(shown) & {"\x1b", "\r", "\0", "\x9b", "\u202e"}
    assert "\n" not in shown.replace("\n  ", "")
    assert str(UserError(text)) == shown
    if text.isprintable() and not any(0x200E <= ord(c) <= 0x2069 for c in text):
        assert shown == text
    assert len(shortened(text)) <= 103 and "\n" not in shortened(text)


@given(st.binary() | EVERY_TEXT)
def test_no_json_is_a_value_error(text):
    """Nothing else is raised, and what passes is a value that can be written."""
    try:
        found = parse_json(text)
    except ValueError:
        return
    assert json.dumps(parse_json(json.dumps(found))) == json.dumps(found)


@given(VALUES)
def test_json_comes_back(value):
    assert json.dumps(parse_json(json.dumps(value))) == json.dumps(value)


@given(st.integers(1, 200_000), st.sampled_from(["[", '{"a":', "[[],"]))
def test_json_of_any_depth(depth, opening):
    with pytest.raises(ValueError):
        parse_json(opening * depth)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_sealed_json_comes_back_or_is_refused(content):
    content.pop("sha256", None)
    text = to_sealed_json(content)
    found = from_sealed_json(text)
    assert json.dumps(found, sort_keys=True) == json.dumps(content, sort_keys=True)
    with pytest.raises(ValueError):
        from_sealed_json(text.replace("sha256", "sha512", 1))


# --- names


@given(st.lists(NAMES | st.sampled_from(["..", ".", "~", "C:", ""]), min_size=1).map("/".join)
       | EVERY_TEXT)  # fmt: skip
def test_names_that_pass_lie_in_the_folder(name):
    root = Path("/somewhere/below")
    if is_inside(name):
        assert (root / name).is_relative_to(root) and ".." not in Path(name).parts
    if is_plain_name(name):
        assert (root / name).parent == root and is_inside(name)


@given(st.lists(st.sampled_from(["module", "_orig_mod", "model", "ema", "net"]), max_size=5))
def test_any_row_of_wrappers_comes_off(wrappers):
    own = {"quantize.weight": 1, "decoder.0.bias": 2, "module_list.0": 3}
    wrapped = {".".join([*wrappers, name]): value for name, value in own.items()}
    assert unwrapped(wrapped, ["quantize.weight"])[0] == own


# --- arrays and weights


@given(st.dictionaries(NAMES, st.tuples(
    st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)), max_size=4),
    st.data())  # fmt: skip
def test_safetensors_come_back_and_every_cut_is_refused(place, shapes, data):
    shapes.pop("__metadata__", None)
    tensors = {
        name: np.arange(math.prod(shape)).astype(DTYPES[kind]).reshape(shape)
        for name, (kind, shape) in shapes.items()
    }
    file = place / "x.safetensors"
    write_safetensors(file, tensors, digests=True)
    found = map_safetensors(file)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert refused(map_safetensors, file, ConversionError)


@given(st.binary(max_size=200))
def test_pickles_give_values_or_are_refused(data):
    try:
        _, _, length = unpickle(data)
    except ConversionError:
        return
    assert length <= len(data)


@given(st.integers(7, 400), st.sampled_from([b"\x86", b"\x85"]))
def test_doubling_pickles_are_refused_before_they_are_run(depth, pair):
    """A tuple of the one before twice, or once: as a key its hash would take 2 ** depth steps."""
    twice = pair == b"\x86"
    double = b"K\x01" + (b"q\x00h\x00" * twice + pair) * depth
    data = b"\x80\x02}" + double + b"K\x01s."
    if twice or depth > 64:
        for read in (check_pickle, unpickle):
            with pytest.raises(ConversionError, match="very many parts"):
                read(data)
    else:
        assert check_pickle(data) == len(data) and len(unpickle(data)[0]) == 1


@given(st.sampled_from(["<i4", "|u1", "<f8", "|b1"]), st.lists(st.integers(0, 5), max_size=3),
       st.data())  # fmt: skip
def test_saved_arrays_come_back_and_cuts_are_refused(place, kind, shape, data):
    array = np.arange(math.prod(shape)).astype(kind).reshape(shape)
    file = place / "map.npy"
    np.save(file, array)
    np.testing.assert_array_equal(read_npy(file), array)
    if array.ndim == 2:
        np.testing.assert_array_equal(read_classes(file), array)
    whole = file.read_bytes()
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError):
        read_npy(file)
    assert refused(read_classes, file, ImageError)


def test_archives_that_would_grow_a_thousandfold_are_refused(place):
    file = place / "bomb.npz"
    np.savez_compressed(file, small=np.arange(5), a=np.zeros(10**6, np.uint8))
    assert read_npz(file)["a"].size == 10**6  # as deflate can
    content = file.read_bytes()
    entry = content.index(b"a.npy", content.index(b"PK\x01\x02", len(content) // 2))
    size = content[:entry].rindex(b"PK\x01\x02") + 24
    file.write_bytes(content[:size] + (2**31).to_bytes(4, "little") + content[size + 4 :])
    with pytest.raises(ValueError, match=r"a\.npy would become 2147483648 bytes"):
        read_npz(file)


# --- images


@given(st.sampled_from(["PNG", "GIF", "BMP", "PPM", "JPEG"]), st.integers(1, 9),
       st.integers(1, 9), st.data())  # fmt: skip
def test_cut_images_are_read_or_refused(place, form, width, height, data):
    content = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(content, form)
    whole, file = content.getvalue(), place / "image.x"
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    if not refused(read_rgb, file, ImageError):
        assert read_rgb(file).size == (width, height)


def test_a_header_cannot_promise_more_than_its_bytes(place):
    file = place / "large.png"
    Image.new("1", (9000, 9000)).save(file)
    whole = file.read_bytes()
    assert read_rgb(file).size == (9000, 9000)
    file.write_bytes(whole[:2000])
    with pytest.raises(ImageError, match=r"large\.png is damaged: its header promises 9000x9000"):
        read_rgb(file)


# --- tables, prompts and archives


@given(st.lists(st.dictionaries(EVERY_TEXT, VALUES, max_size=3) | EVERY_TEXT.map(json.dumps)))
def test_tables_of_json_lines(place, rows):
    file = place / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    if not refused(lambda f: list(read_rows(f)), file, ValueError):
        assert len(list(read_rows(file))) == len(rows)


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=2)))
def test_prompts_of_any_table_get_names_in_the_folder(place, rows):
    file = place / "prompts.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([["prompt", "file"], *rows])
    if not refused(lambda f: check_prompt_file(f, Defaults()), file, ValueError):
        for row in read_prompt_file(file, Defaults()):
            assert row.prompt and is_plain_name(row.file) and row.file.endswith(".png")


@given(NAMES | st.sampled_from(["../a.png", "/etc/hostname", "a/../../b.png", "x/y.png"]))
def test_tables_name_images_of_their_folder_alone(place, name):
    file = place / "metadata.jsonl"
    file.write_text(json.dumps({"file_name": name, "text": "a"}))
    if not refused(lambda f: list_captioned(f.parent, Counter()), file, ValueError):
        (sample,) = list_captioned(place, Counter())
        assert sample.image.is_relative_to(place) and ".." not in sample.image.parts


@given(st.dictionaries(NAMES, st.binary(max_size=700), max_size=4), st.data())
def test_archives_list_what_tarfile_lists(place, members, data):
    file = place / "shard.tar"
    with tarfile.open(file, "w", format=data.draw(st.sampled_from([0, 1, 2]))) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            try:
                archive.addfile(info, io.BytesIO(content))
            except ValueError:  # ustar has no place for such a name
                return
    with tarfile.open(file) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive.getmembers()]
    found, whole = list_members(file)
    assert whole and [(m.name.rstrip("/"), *m[1:]) for m in found] == [
        (name.rstrip("/"), *rest) for name, *rest in expected
    ]
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refused(list_members, file, TarError)


@given(st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))),
                       st.lists(st.binary(), max_size=3), min_size=1), st.data())  # fmt: skip
def test_examples_come_back_and_damages_are_value_errors(fields, data):
    message = encode_example(fields)
    assert decode_example(message) == fields
    flipped = bytearray(message)
    flipped[data.draw(st.integers(0, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decode_example(bytes(flipped))
    except ValueError:
        return


# --- configs


CONFIG = load_config("paella:tiny")


@given(st.sampled_from(sorted(flatten_config(CONFIG))), EVERY_TEXT | VALUES.map(repr))
def test_overrides_set_what_is_in_range_or_name_the_field(name, value):
    config = CONFIG.copy_and_resolve_references()
    try:
        apply_override(config, f"--config.{name}={value}")
    except ConfigError as error:
        assert name in str(error)
        return
    found = flatten_config(config)
    assert problem(name, found[name], FIELDS[name].none != "") == ""
    before = flatten_config(CONFIG)
    assert {n: x for n, x in found.items() if n != name} == {
        n: x for n, x in before.items() if n != name
    }


# --- damaged examples of every kind (launch/fuzz.sh reads many more)


@pytest.mark.parametrize("kind", fuzz_examples.QUICK)
def test_damaged_inputs_are_read_or_refused_in_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "valid").mkdir()
    examples = fuzz_examples.QUICK[kind](tmp_path / "valid")
    for example in examples:  # whole, every one is read
        outcome = fuzzing.judge(example.read, example.folder, [])
        assert outcome.kind == fuzzing.READ, (example.name, outcome)
    copies = tmp_path / "copies"
    found = [fuzzing.trial(examples, copies, (20, number)) for number in range(80)]
    kinds = [outcome.kind for outcome, _ in found]
    assert kinds.count(fuzzing.REFUSED) > 10 and kinds.count(fuzzing.READ) > 5
    assert [pair for pair in found if pair[0].kind == fuzzing.UNCLEAR] == []


def test_the_judge_knows_what_is_unclear(tmp_path):
    def fail(error):
        raise error

    for error, words in (
        (TypeError("x"), "TypeError"),
        (ValueError("something is wrong"), "no name"),
        (ValueError("x.bin: \x1b[31m"), "control characters"),
        (ConfigError("a" * 200_000 + "x.bin"), "a message of"),
    ):
        outcome = fuzzing.judge(lambda _, error=error: fail(error), tmp_path, ["x.bin"])
        assert outcome.kind == fuzzing.UNCLEAR and words in outcome.told
    outcome = fuzzing.judge(lambda _: print("\x1b[2J"), tmp_path, ["x.bin"])
    assert outcome.kind == fuzzing.UNCLEAR
    clear = fuzzing.judge(lambda _: fail(ConfigError("x.bin is none")), tmp_path, ["x.bin"])
    assert clear.kind == fuzzing.REFUSED
