"""The pickle inside a PyTorch file, read with a short list of allowed names and nothing else.

A pickle can call whatever it can name. This reader knows only the globals below; each is replaced
by an inert stand-in of ours, and any other name is refused.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from paella_jax.files.pickle_bounds import check_pickle
from paella_jax.files.tensors import ConversionError
from paella_jax.outside import shortened

# A billion parameters need about 0.1 MB, as storages are kept outside; each byte may make an object
# of some ten.
MAX_PICKLE_BYTES = 4 * 2**20


class TorchStorage(NamedTuple):
    """A run of numbers in the file; `start` counts elements from where `key`'s data begin."""

    key: str
    dtype: np.dtype
    numel: int
    start: int = 0


class StoredTensor(NamedTuple):
    """A strided view of a storage, in elements."""

    storage: TorchStorage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Call:
    """A function that a pickle may call but not change (a pickle can set attributes)."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise ConversionError(f"the pickle tries to set {name!r} on a function; refused")


class _Ignored:
    """Stands for values that are no weights; calls and states are dropped unread."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> _Ignored:
        return self

    def __setstate__(self, state: Any) -> None:
        pass


class _Dict(dict):
    """An OrderedDict; the metadata that modules attach to it are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def _ordered_dict(pairs: Any = ()) -> _Dict:
    made = _Dict()
    for key, value in pairs:
        if not isinstance(key, str | int):
            raise ConversionError(
                "an OrderedDict of the pickle has keys that are no names; refused"
            )
        made[key] = value
    return made


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    numbers = [offset, *size, *stride]
    if type(storage) is not TorchStorage or any(type(n) is not int or n < 0 for n in numbers):
        raise ConversionError("a tensor of the pickle has no storage or a negative size; refused")
    if len(size) != len(stride):
        raise ConversionError(f"a tensor has size {tuple(size)} but stride {tuple(stride)}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.numel or (math.prod(size) and last >= storage.numel):
        raise ConversionError(
            f"a tensor of size {tuple(size)} reaches outside its storage of {storage.numel} numbers"
        )
    return StoredTensor(storage, offset, tuple(size), tuple(stride))


STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
_TORCH_DTYPES = ("float32", "float", "float64", "double", "float16", "half", "bfloat16", "int64",
                 "long", "int32", "int", "int16", "short", "int8", "uint8", "bool")  # fmt: skip
_REBUILD_TENSOR = ("_rebuild_tensor", "_rebuild_tensor_v2")
_REBUILD_PARAMETER = ("_rebuild_parameter", "_rebuild_parameter_with_state")
_IGNORED = _Ignored()
_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Call(_ordered_dict),
    ("torch", "Size"): _Call(lambda sizes=(): tuple(sizes)),
    **{("torch._utils", name): _Call(_rebuild_tensor) for name in _REBUILD_TENSOR},
    **{("torch._utils", name): _Call(lambda data, *rest: data) for name in _REBUILD_PARAMETER},
    # Numbers that numpy computed, such as a best score; they are no weights.
    ("numpy", "dtype"): _IGNORED,
    ("_codecs", "encode"): _IGNORED,
    **{(f"numpy.{core}.multiarray", "scalar"): _IGNORED for core in ("core", "_core")},
    **{("torch", name): _IGNORED for name in ("device", *_TORCH_DTYPES)},
    **{("torch", name): _StorageType(np.dtype(kind)) for name, kind in STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Knows the globals above and no others."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.storages: dict[str, TorchStorage] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _GLOBALS[module_name, global_name]
        except KeyError:
            asked = shortened(f"{module_name}.{global_name}")
            raise ConversionError(
                f"the pickle asks for {asked}, which is not needed to hold weights; refused, "
                "because it could run code. If you trust the file, save only its state dict as "
                "safetensors where torch is installed"
            ) from None

    def persistent_load(self, pid: Any) -> TorchStorage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ConversionError("the pickle refers to something that is not a storage; refused")
        _, kind, key, _, numel = pid[:5]
        if not isinstance(key, str | int):
            raise ConversionError("a storage of the pickle has a key that is no name; refused")
        view = pid[5] if len(pid) == 6 else None
        # (key of the view, its start, its length), of old legacy files
        numbers = start, numel = (0, numel) if view is None else (view[1], view[2])
        if type(kind) is not _StorageType or any(type(n) is not int or n < 0 for n in numbers):
            raise ConversionError("a storage of the pickle has no known type or size; refused")
        storage = TorchStorage(str(key), kind.dtype, numel, start)
        self.storages.setdefault(storage.key, storage)
        return storage


def unpickle(data: bytes) -> tuple[Any, dict[str, TorchStorage], int]:
    """The object at the start of `data`, the storages it uses and how many bytes it took.

    Raises:
      ConversionError: it names anything not listed here, asks for absurd memory, or is damaged.
    """
    try:
        length = check_pickle(data)
        unpickler = _Unpickler(data[:length])
        return unpickler.load(), unpickler.storages, length
    except ConversionError:
        raise
    except Exception as error:  # whatever a damaged pickle makes the unpickler raise
        reason = shortened(error) or type(error).__name__
        raise ConversionError(
            f"its pickle is damaged or cut off ({reason}); download it again"
        ) from error
