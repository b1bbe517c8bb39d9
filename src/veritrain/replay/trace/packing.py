"""Packing: records and batches as values that hold their contents, for a referee without the data
set.

The forms are those of `data.canonical` with contents in the place of digests. So an unpacked value
has the digest of the value that was packed, or is refused. Named tuples and images have classes
that bytes do not bring along.

Packed values come from the parties of a dispute. Nothing in them reaches a library before it was
found to be of the one form, since compiled code acts upon it unchecked: `unpack` looks a dtype up
in a table and never parses it; contents are bytes of just the size that dtype and shape give; truth
values are 0 or 1, and text is made of code points.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from veritrain.encoding import Value, encode
from veritrain.errors import FieldError, JobError, UsageError
from veritrain.transcript import fields as check
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.tensors import DTYPES, content, dtype_name

_NUMPY_KINDS = "biufcSUMm"
# By the name of their little-endian form. Long doubles have bytes that mean nothing:
# `data.canonical`.
_NUMBERS = {np.dtype(code).newbyteorder("<").str for code in "?bBhHiIlLqQefdFD"}
_TEXT = re.compile(r"(?:\|S|<U)([1-9][0-9]{0,9})", re.ASCII)  # so many bytes, or code points
_TIME = re.compile(r"<[Mm]8(?:\[([1-9][0-9]{0,9})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?", re.ASCII)
_MOST = 2**31 - 1  # bytes of an element, units of time in a tick: NumPy's own bound
_CODE_POINTS = 0x110000


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
        return ["tensor", dtype_name(value), list(value.shape), _sound(value, content(value))]
    if isinstance(value, np.generic):
        return ["scalar", *cast("list[Value]", pack(np.asarray(value)))[1:]]
    if isinstance(value, np.ndarray):
        array = np.asarray(value)
        if array.dtype.kind not in _NUMPY_KINDS or array.dtype.char in "gG":
            raise JobError(f"an array of dtype {array.dtype} cannot be given away as bytes")
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return ["array", little.dtype.str, list(little.shape), _sound(little, little.tobytes())]
    if type(value) is dict:
        items = cast("dict[Any, Any]", value).items()
        return ["dict", *([pack(key), pack(item)] for key, item in items)]
    if type(value) in (tuple, list):
        kind = "tuple" if type(value) is tuple else "list"
        return [kind, *(pack(item) for item in cast("list[Any]", value))]
    raise JobError(f"a value of type {type(value).__name__} cannot be given away as bytes")


def unpack(value: Value) -> Any:
    """What `pack` wrote; another party may have written these bytes.

    Memory is taken for the bytes that are there, and once more to compare.

    Raises:
        FieldError: they are not of that form, or not of the one that `pack` gives the value.
    """
    try:
        given = encode(value)
        found = _unpacked(value)
        if encode(pack(found)) != given:
            raise FieldError("not the one form of a packed value")
    except (JobError, TypeError, ValueError, ArithmeticError) as error:  # times compare so
        raise FieldError(f"not a packed value: {error}") from None
    except UsageError as error:  # of the checks that callers' own values have too
        raise FieldError(str(error)) from None
    return found


def _unpacked(value: Value) -> Any:
    if value is None or type(value) in (bool, str, bytes):
        return value
    kind, *parts = value if isinstance(value, list) and value else [None]
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise FieldError("not a packed value")
    return read(parts)


def _int(parts: Sequence[Value]) -> int:
    return int.from_bytes(_only_bytes(parts), "little", signed=True)


def _float(parts: Sequence[Value]) -> float:
    data = _only_bytes(parts)
    check.check_bytes("float", data, 8)
    return struct.unpack("<d", data)[0]


def _list(parts: Sequence[Value]) -> list[Any]:
    return [_unpacked(part) for part in parts]


def _tuple(parts: Sequence[Value]) -> tuple[Any, ...]:
    return tuple(_list(parts))


def _dict(parts: Sequence[Value]) -> dict[Any, Any]:
    if any(not isinstance(part, list) or len(part) != 2 for part in parts):
        raise check.wrong("dict", "pairs", parts)
    pairs = [(_unpacked(key), item) for key, item in cast("Sequence[list[Value]]", parts)]
    check.check_hashes("dict", [key for key, _ in pairs])
    return {key: _unpacked(item) for key, item in pairs}


def _tensor(parts: Sequence[Value]) -> Tensor:
    name, shape, data = _three(parts)
    dtype = DTYPES.get(name)
    if dtype is None:
        raise check.wrong("dtype", "a dtype of the format", name)
    _require_size(shape, dtype.itemsize, data)
    made = torch.empty(shape, dtype=dtype)
    if data:
        content(made)[:] = data
    _sound(made, data)
    return made


def _array(parts: Sequence[Value]) -> np.ndarray[Any, Any]:
    name, shape, data = _three(parts)
    dtype = _numpy_dtype(name)
    _require_size(shape, dtype.itemsize, data)
    made = np.frombuffer(bytearray(data), dtype).reshape(shape) if data else np.empty(shape, dtype)
    _sound(made, data)
    return made


def _scalar(parts: Sequence[Value]) -> Any:
    return _array(parts)[()]


_READERS: dict[str, Callable[[Sequence[Value]], Any]] = {
    "int": _int,
    "float": _float,
    "tuple": _tuple,
    "list": _list,
    "dict": _dict,
    "tensor": _tensor,
    "array": _array,
    "scalar": _scalar,
}


def _only_bytes(parts: Sequence[Value]) -> bytes:
    if len(parts) != 1 or type(parts[0]) is not bytes:
        raise check.wrong("number", "bytes", parts)
    return parts[0]


def _three(parts: Sequence[Value]) -> tuple[str, list[int], bytes]:
    """dtype, shape and contents, each of its type."""
    if [type(part) for part in parts] != [str, list, bytes]:
        raise check.wrong("array", "a dtype, a shape and bytes", parts)
    name, shape, data = cast("tuple[str, list[int], bytes]", tuple(parts))
    if len(shape) > LIMITS.dimensions:
        raise check.wrong("shape", f"at most {LIMITS.dimensions} axes", shape)
    for size in shape:
        check.check_integer("shape", size, 0, 2**63 - 1)
    return name, shape, data


def _require_size(shape: list[int], itemsize: int, data: bytes) -> None:
    if (
        math.prod(size or 1 for size in shape) * itemsize >= 2**63
    ):  # strides overflow, even if empty
        raise FieldError("field shape: too large")
    check.check_bytes("contents", data, math.prod(shape) * itemsize)


def _numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype that NumPy gives this name, of those that `pack` writes."""
    match = _TEXT.fullmatch(name) or _TIME.fullmatch(name)
    unit = 4 if name.startswith("<U") else 1
    if name not in _NUMBERS and (match is None or int(match[1] or 1) * unit > _MOST):
        raise check.wrong("dtype", "a dtype of numbers, text or times", name)
    return np.dtype(name)


def _sound(value: Tensor | np.ndarray[Any, Any], data: bytes | memoryview) -> bytes:
    """The contents of a tensor or array, where every element is one that its dtype has.

    Raises:
        JobError: a truth value other than 0 and 1, or a text of other numbers than code points.
    """
    if isinstance(value, Tensor):
        kind = "b" if value.dtype is torch.bool else ""
    else:
        kind = value.dtype.kind
    if kind == "b" and np.frombuffer(data or b"\0", np.uint8).max() > 1:
        raise JobError("a truth value that is neither 0 nor 1 cannot be given away as bytes")
    if kind == "U" and np.frombuffer(data or bytes(4), "<u4").max() >= _CODE_POINTS:
        raise JobError("a text of other numbers than code points cannot be given away as bytes")
    return bytes(data)
