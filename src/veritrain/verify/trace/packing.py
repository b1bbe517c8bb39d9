"""Records and batches as values that hold their contents, for whoever lacks the data set.

The forms are those of `data.canonical` with contents in the place of digests, so that what was unpacked has the
digest of what was packed or is refused. Named tuples and images have classes that bytes do not bring along.
"""

from __future__ import annotations

import math
import struct
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from veritrain.encoding import Value, encode
from veritrain.errors import JobError, UsageError
from veritrain.transcript.tensors import DTYPES, content, dtype_name

_NUMPY_KINDS = "biufcSUMm"


def pack(value: object) -> Value:
    """A record or batch with its contents.

    Raises:
        JobError: a value that cannot be given away as bytes.
    """
    if value is None or type(value) in (bool, str, bytes):
        return cast("Value", value)
    if type(value) is int:
        return ["int", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)]
    if type(value) is float:
        return ["float", struct.pack("<d", value)]
    if isinstance(value, Tensor):
        return ["tensor", dtype_name(value), list(value.shape), bytes(content(value))]
    if isinstance(value, np.generic):
        return ["scalar", *cast("list[Value]", pack(np.asarray(value)))[1:]]
    if isinstance(value, np.ndarray):
        array = np.asarray(value)
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if little.dtype.kind not in _NUMPY_KINDS:
            raise JobError(f"an array of dtype {array.dtype} cannot be given away as bytes")
        return ["array", little.dtype.str, list(little.shape), little.tobytes()]
    if type(value) is dict:
        items = cast("dict[Any, Any]", value).items()
        return ["dict", *([pack(key), pack(item)] for key, item in items)]
    if type(value) in (tuple, list):
        kind = "tuple" if type(value) is tuple else "list"
        return [kind, *(pack(item) for item in cast("list[Any]", value))]
    raise JobError(f"a value of type {type(value).__name__} cannot be given away as bytes")


def unpack(value: Value) -> Any:
    """What `pack` wrote; someone else may have written these bytes.

    Raises:
        UsageError: they are not of that form, or not of the one that `pack` gives the value.
    """
    try:
        found = _unpacked(value)
        if encode(pack(found)) != encode(value):
            raise UsageError("not the one form of a packed value")
    except JobError as error:
        raise UsageError(str(error)) from None
    return found


def _unpacked(value: Value) -> Any:
    if not isinstance(value, list):
        if isinstance(value, (int, float, dict)) and type(value) is not bool:
            raise UsageError("not a packed value")
        return value
    kind, rest = (value[0], value[1:]) if value else (None, [])
    try:
        if kind in ("tuple", "list"):
            items = [_unpacked(item) for item in rest]
            return tuple(items) if kind == "tuple" else items
        if kind == "dict":
            return {
                _unpacked(key): _unpacked(item) for key, item in cast("list[list[Value]]", rest)
            }
        return _UNPACK[str(kind)](*rest)
    except (
        KeyError,
        TypeError,
        ValueError,
        SyntaxError,
        OverflowError,
        struct.error,
        RuntimeError,
    ) as error:
        raise UsageError(f"not a packed value: {type(error).__name__}") from None


def _tensor(dtype: str, shape: list[int], data: bytes) -> Tensor:
    kind = DTYPES[dtype]
    if any(size < 0 for size in shape) or math.prod(shape) * kind.itemsize != len(data):
        raise ValueError("a shape of another size")
    if not data:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(data), dtype=kind).reshape(shape)


def _scalar(dtype: str, shape: list[int], data: bytes) -> Any:
    return _array(dtype, shape, data)[()]


def _array(dtype: str, shape: list[int], data: bytes) -> Any:
    parsed = np.dtype(dtype)
    if parsed.kind not in _NUMPY_KINDS or parsed.newbyteorder("<").str != dtype:
        raise ValueError("no plain numbers")
    return np.frombuffer(bytearray(data), dtype=parsed).reshape(shape)


def _int(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _float(data: bytes) -> float:
    (value,) = struct.unpack("<d", data)
    return float(value)


_UNPACK: dict[str, Any] = {
    "int": _int,
    "float": _float,
    "tensor": _tensor,
    "array": _array,
    "scalar": _scalar,
}
