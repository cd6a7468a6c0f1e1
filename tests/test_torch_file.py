"""Reading files of torch.save: every layout, every way to be damaged, every attempt to run code."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import small
from safetensors.numpy import save_file

from paella_jax.files.safetensors_file import map_safetensors, write_safetensors
from paella_jax.files.tensors import ConversionError
from paella_jax.files.torch_file import read_torch_file
from paella_jax.files.weights_file import open_weights

FILES = small.ROOT / "tests" / "golden" / "torch_files"
NAMES = sorted(file.stem for file in FILES.glob("*.pt"))
DTYPES = {"zip_float16": np.float16, "zip_bfloat16": ml_dtypes.bfloat16}


def test_all_fixtures_are_there():
    assert len(NAMES) == 8 and sum(f.stat().st_size for f in FILES.iterdir()) < 150_000


@pytest.mark.parametrize("name", NAMES)
def test_tensors_equal_those_torch_wrote(name):
    weights, expected = open_weights(FILES / f"{name}.pt"), np.load(FILES / f"{name}.npz")
    assert set(weights) == set(expected.files)
    for key, array in weights.items():
        assert array.shape == expected[key].shape and not array.flags.writeable
        wanted = DTYPES.get(name, expected[key].dtype)
        assert array.dtype == wanted, key
        np.testing.assert_array_equal(np.asarray(array, expected[key].dtype), expected[key], key)


def test_the_source_says_where_the_weights_were():
    assert open_weights(FILES / "zip_float32.pt").source == "torch file (zip format)"
    wrapped = open_weights(FILES / "wrapped_legacy.pt")
    assert wrapped.source == "torch file (legacy format), weights under the key 'state_dict'"
    assert wrapped.files == (FILES / "wrapped_legacy.pt",)


def test_nothing_is_copied():
    weights = open_weights(FILES / "zip_float32.pt")
    assert np.shares_memory(weights["tied.a"], weights["tied.b"])
    assert weights["view.transposed"].strides == weights["tied.a"].strides[::-1]
    assert weights["view.expanded"].strides[0] == 0


def test_an_entry_can_be_chosen_and_must_exist():
    assert len(open_weights(FILES / "wrapped.pt", "state_dict")) == 7
    with pytest.raises(ConversionError, match=r"no weights under the key 'ema'.*'state_dict'"):
        open_weights(FILES / "wrapped.pt", "ema")


# --- damaged files


@pytest.mark.parametrize("name", ["zip_float32", "legacy_float32", "wrapped_legacy"])
def test_every_truncation_is_refused(name, tmp_path):
    whole = (FILES / f"{name}.pt").read_bytes()
    file = tmp_path / "cut.pt"
    # From a few bytes to one short of whole. The zip's own table is at its end.
    for size in [*range(1, len(whole), max(1, len(whole) // 60)), len(whole) - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(ConversionError, match=r"cut\.pt"):
            read_torch_file(file)


def test_flipped_bytes_never_escape_as_another_error(tmp_path):
    """Any damage gives tensors or a ConversionError, never another exception."""
    generator = np.random.default_rng(0)
    file = tmp_path / "flipped.pt"
    refused = 0
    for name in ("zip_float32", "legacy_float32", "wrapped_legacy"):
        whole = np.frombuffer((FILES / f"{name}.pt").read_bytes(), np.uint8)
        for _ in range(150):
            damaged = whole.copy()
            damaged[generator.integers(0, len(whole), 3)] ^= generator.integers(1, 256, 3, np.uint8)
            file.write_bytes(damaged.tobytes())
            try:
                for array in read_torch_file(file).values():
                    array.sum()
            except ConversionError:
                refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x00" * 100, "neither a safetensors nor a torch file"),
        (b"\x80\x02K\x07.", "missing or empty"),
        (pickle.dumps({"a": [1.0] * 20}), "not a file of torch.save"),
    ],
)
def test_files_that_are_no_weights(content, words, tmp_path):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(ConversionError, match=rf"weights\.pt.*{words}"):
        open_weights(tmp_path / "weights.pt")


def test_missing_and_ambiguous_places(tmp_path):
    with pytest.raises(ConversionError, match=r"nothing\.pt does not exist"):
        open_weights(tmp_path / "nothing.pt")
    with pytest.raises(ConversionError, match=r"must hold one weights file .* found: none"):
        open_weights(tmp_path)
    for name in ("a.pt", "b.pt"):
        shutil.copy(FILES / "zip_float32.pt", tmp_path / name)
    with pytest.raises(ConversionError, match=r"found: a\.pt, b\.pt"):
        open_weights(tmp_path)
    (tmp_path / "b.pt").unlink()
    assert open_weights(tmp_path).files == (tmp_path / "a.pt",)


def rezip(name, file, change=lambda name, data: data, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(FILES / f"{name}.pt") as source, zipfile.ZipFile(file, "w") as target:
        for entry in source.namelist():
            data = change(entry, source.read(entry))
            if data is not None:
                target.writestr(entry, data, compression)
    return file


def test_changed_archives(tmp_path):
    file = tmp_path / "x.pt"
    assert len(read_torch_file(rezip("zip_float32", file))) == 10
    with pytest.raises(ConversionError, match=r"compressed, which torch\.save never does"):
        read_torch_file(rezip("zip_float32", file, compression=zipfile.ZIP_DEFLATED))
    drop = lambda end: lambda name, data: None if name.endswith(end) else data
    with pytest.raises(ConversionError, match=r"no data\.pkl"):
        read_torch_file(rezip("zip_float32", file, drop("data.pkl")))
    with pytest.raises(ConversionError, match="storage 0 is missing"):
        read_torch_file(rezip("zip_float32", file, drop("data/0")))
    short = lambda name, data: data[:-4] if name.endswith("data/0") else data
    with pytest.raises(ConversionError, match="storage 0 has 136 bytes where the pickle promises"):
        read_torch_file(rezip("zip_float32", file, short))
    big = lambda name, data: b"big" if name.endswith("byteorder") else data
    with pytest.raises(ConversionError, match="big-endian"):
        read_torch_file(rezip("zip_float32", file, big))


# --- hostile files


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile_pickles(mark: Path) -> dict[str, bytes]:
    """Each would create `mark` if anything in it ran."""
    command = f"touch {mark}"
    code = f"open({str(mark)!r}, 'w').close()"
    g = lambda module, name: f"c{module}\n{name}\n".encode()
    text = lambda s: b"X" + struct.pack("<I", len(s.encode())) + s.encode()
    call = lambda function, *arguments: function + b"(" + b"".join(arguments) + b"tR"
    start, stop = b"\x80\x04", b"."
    attribute = call(g("builtins", "getattr"), g("torch", "FloatStorage"), text("__class__"))
    return {
        "os.system": pickle.dumps({"a": Calls(os.system, command)}),
        "eval": pickle.dumps({"a": Calls(eval, code)}),
        "exec, protocol 0": pickle.dumps({"a": Calls(exec, code)}, protocol=0),
        "getattr": start + b"}" + text("a") + attribute + b"s" + stop,
        "dotted name": start + text("torch._utils") + text("_rebuild_tensor.__globals__")
        + b"\x93" + stop,
        "torch.load inside": start + call(g("torch.serialization", "load"), text(str(mark))) + stop,
        "codecs": start + call(g("_codecs", "decode"), text("cmd"), text("rot13")) + stop,
        "numpy": start + call(g("numpy.testing._private.utils", "runstring"), text(code)) + stop,
        "numpy load": start + call(g("numpy", "load"), text(str(mark)), b"N\x88") + stop,
        "object built by name": b"(" + b"i" + b"os\nsystem\n" + stop,
        "new object": start + g("subprocess", "Popen") + b"(" + text(command) + b"t\x81" + stop,
        "state of a function": start + g("torch._utils", "_rebuild_tensor_v2") + b"}"
        + text("_function") + g("torch", "Size") + b"sb" + stop,
        "slots of a function": start + g("torch._utils", "_rebuild_tensor_v2") + b"N}"
        + text("_function") + g("torch", "Size") + b"s\x86b" + stop,
        "extension code": start + b"\x82\x01" + stop,
        "call of an own object": start + call(g("torch", "FloatStorage"), text(code)) + stop,
    }  # fmt: skip


def as_zip(file, pickled):
    return rezip("zip_float32", file, lambda n, data: pickled if n.endswith("data.pkl") else data)


def as_legacy(file, pickled):
    """The three records that torch puts before the object, then ours."""
    stream = io.BytesIO((FILES / "legacy_float32.pt").read_bytes())
    for _ in range(3):
        pickle.load(stream)
    start = stream.getvalue()[: stream.tell()]
    file.write_bytes(start + pickled + pickle.dumps([], protocol=2))
    return file


@pytest.mark.parametrize("form", [as_zip, as_legacy])
def test_nothing_of_a_hostile_file_runs(form, tmp_path):
    mark = tmp_path / "executed"
    for name, pickled in hostile_pickles(mark).items():
        with pytest.raises(ConversionError) as error:
            read_torch_file(form(tmp_path / "hostile.pt", pickled))
        assert not mark.exists(), name
        assert "hostile.pt" in str(error.value), name
    assert len(read_torch_file(FILES / "zip_float32.pt")) == 10  # the reader itself is unchanged


def test_the_hostile_files_would_really_run(tmp_path):
    """Proof that the test above tries what it says."""
    mark = tmp_path / "executed"
    for name in ("os.system", "eval", "exec, protocol 0"):
        pickle.loads(hostile_pickles(mark)[name])
        assert mark.exists(), name
        mark.unlink()


def test_refusals_name_what_was_asked_for(tmp_path):
    file = as_zip(tmp_path / "x.pt", hostile_pickles(tmp_path / "mark")["eval"])
    with pytest.raises(ConversionError, match=r"builtins\.eval.*refused, because it could run"):
        read_torch_file(file)


@pytest.mark.parametrize("form", [as_zip, as_legacy])
@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # memo entry 2**31 - 1
        b"\x80\x02}p2147483647\n.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",  # a string of 2**60 bytes
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",  # a frame of as many
    ],
)
def test_absurd_sizes_do_not_eat_the_memory(form, pickled, tmp_path):
    with pytest.raises(ConversionError):
        read_torch_file(form(tmp_path / "x.pt", pickled))


def test_tensors_cannot_reach_outside_their_storage(tmp_path):
    def tensor(offset, size, stride, numel=35):
        storage = "(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + "0X\x03\0\0\0cpu"
        number = lambda n: b"J" + struct.pack("<i", n)
        ints = lambda values: b"(" + b"".join(map(number, values)) + b"t"
        pid = storage.encode() + number(numel) + b"tQ"
        rebuilt = pid + number(offset) + ints(size) + ints(stride) + b"\x89N"
        head = b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n("
        return as_zip(tmp_path / "x.pt", head + rebuilt + b"tRs.")

    assert read_torch_file(tensor(0, (5, 7), (7, 1)))["a"].shape == (5, 7)
    for arguments in (
        (1, (5, 7), (7, 1)), (0, (5, 7), (8, 1)), (0, (36,), (1,)), (-1, (5,), (1,)),
        (0, (5,), (-1,)), (0, (2**30, 2**30), (0, 0)), (0, (5, 7), (7,)), (0, (5,), (1,), -4),
    ):  # fmt: skip
        with pytest.raises(ConversionError):
            read_torch_file(tensor(*arguments))
    with pytest.raises(ConversionError, match="the pickle promises 4000"):
        read_torch_file(tensor(0, (5, 7), (7, 1), 1000))


def test_whole_models_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="not a state dict"):
        read_torch_file(as_zip(tmp_path / "x.pt", pickle.dumps([1, 2])))
    with pytest.raises(ConversionError, match="no single state dict inside"):
        read_torch_file(as_zip(tmp_path / "x.pt", pickle.dumps({"step": 3})))


# --- safetensors


def test_safetensors_both_ways(tmp_path):
    file = tmp_path / "x.safetensors"
    tensors = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.float16(2.5).reshape(()),
        "empty": np.zeros((0, 3), np.float32), "count": np.arange(3),
        "bf16": np.arange(5).astype(ml_dtypes.bfloat16),
    }  # fmt: skip
    seen = []
    write_safetensors(file, tensors, report=seen.append)
    assert sum(seen) == sum(x.nbytes for x in tensors.values())
    mapped = map_safetensors(file)
    assert list(mapped) == list(tensors)
    for name, array in tensors.items():
        assert mapped[name].dtype == array.dtype and mapped[name].shape == array.shape
        np.testing.assert_array_equal(mapped[name], array)
    # A view is stored as what it shows.
    write_safetensors(file, {"a": tensors["a"].T})
    np.testing.assert_array_equal(map_safetensors(file)["a"], tensors["a"].T)
    assert [f.name for f in tmp_path.iterdir()] == ["x.safetensors"]


def test_values_that_a_dtype_cannot_hold(tmp_path):
    tensors = {"small": np.ones(3, np.float32), "large": np.full(3, 1e6, np.float32)}
    with pytest.raises(ConversionError, match="large has values that are not finite in float16"):
        write_safetensors(tmp_path / "x.safetensors", tensors, np.dtype(np.float16))
    assert not list(tmp_path.iterdir())


def test_shards_and_damaged_safetensors(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for name in ("a", "b"):
        save_file({name: np.ones(3, np.float32)}, tmp_path / f"{name}.safetensors")
    index.write_text('{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}')
    weights = open_weights(tmp_path)
    assert set(weights) == {"a", "b"} and len(weights.files) == 2
    whole = (tmp_path / "b.safetensors").read_bytes()
    for size in (3, 40, len(whole) - 1):
        (tmp_path / "b.safetensors").write_bytes(whole[:size])
        with pytest.raises(ConversionError, match=r"b\.safetensors \(\d+ bytes\)"):
            open_weights(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"lacks b\.safetensors"):
        open_weights(tmp_path)
    index.write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(ConversionError, match=r"names '\.\./a\.safetensors'"):
        open_weights(tmp_path)
    index.write_text('{"weight_map": {"c": "a.safetensors"}}')
    with pytest.raises(ConversionError, match="no shard has: c"):
        open_weights(tmp_path)
    with pytest.raises(ConversionError, match="leave out --key ema"):
        open_weights(tmp_path / "a.safetensors", "ema")
