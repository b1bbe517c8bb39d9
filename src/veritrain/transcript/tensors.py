"""Tensors to digests: what a state commits to, and how two states differ.

`state_entries` runs at every step: no copy for contiguous CPU tensors, a few microseconds for a
small one, BLAKE3 on all cores for a large one (by `encoding.digest`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from veritrain.encoding import digest
from veritrain.errors import UsageError
from veritrain.transcript.fields import shown
from veritrain.transcript.records import DTYPE_BYTES, TensorEntry, state_root

__all__ = [
    "DTYPES",
    "TensorDifference",
    "content",
    "diff",
    "dtype_name",
    "empty",
    "entry",
    "require_plain",
    "require_truth",
    "state_entries",
    "state_root",
]

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_BYTES}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """The first tensor, by name, in which two states differ; None where one has no such tensor."""

    name: str
    expected: TensorEntry | None
    got: TensorEntry | None

    def __str__(self) -> str:
        expected, got = _described(self.expected), _described(self.got)
        return f"tensor {shown(self.name)}: expected {expected}, got {got}"


def entry(name: str, tensor: Tensor) -> TensorEntry:
    """The entry of one tensor of any shape and any dtype of `DTYPE_BYTES`.

    Raises:
        UsageError: as `require_plain`.
    """
    try:
        require_plain(tensor)
    except UsageError as error:
        raise UsageError(f"tensor {shown(name)}: {error}") from None
    hashed = digest("tensor", content(tensor))
    return TensorEntry(
        name=name, dtype=dtype_name(tensor), shape=tuple(tensor.shape), digest=hashed
    )


def require_plain(tensor: Tensor) -> None:
    """Check that a tensor can be written down: its elements lie in memory, one after another.

    Raises:
        UsageError: it is sparse, nested, of another library's layout, on the meta device,
            quantised, or of a dtype that the format does not have.
    """
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_nested:
        is_nested = tensor.is_nested or tensor.layout is torch.jagged
        kind = "nested" if is_nested else "meta" if tensor.is_meta else str(tensor.layout)
        raise UsageError(f"expected a dense tensor with data, got {kind}")
    dtype_name(tensor)


def dtype_name(tensor: Tensor) -> str:
    """The format's name of the tensor's dtype.

    Raises:
        UsageError: it has none.
    """
    name = _DTYPE_NAMES.get(tensor.dtype)
    if name is None:
        raise UsageError(f"dtype {tensor.dtype} cannot be part of a state")
    return name


def state_entries(state: Mapping[str, Tensor]) -> tuple[TensorEntry, ...]:
    """The entries of a state, sorted by name.

    Raises:
        UsageError: a tensor cannot be part of a state.
    """
    return tuple(entry(name, state[name]) for name in sorted(state))


def content(tensor: Tensor) -> memoryview:
    """The tensor's elements as little-endian bytes in C order; shares memory where it can.

    Raises:
        UsageError: this machine is big-endian.
    """
    if sys.byteorder != "little":
        raise UsageError("states can be hashed on little-endian machines only")
    plain = tensor.detach().resolve_neg().cpu().contiguous()
    # A contiguous tensor of at most one element may still have any stride, which `view` refuses.
    row = plain.as_strided((plain.numel(),), (1,))
    return row.view(torch.uint8).numpy().data


def empty(entry: TensorEntry) -> tuple[Tensor, memoryview]:
    """A new CPU tensor of the entry's dtype and shape, and its bytes for writing.

    The caller has bounded `entry.num_bytes`.
    """
    tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    return tensor, content(tensor)


def require_truth(entry: TensorEntry, content: bytes | memoryview) -> None:
    """Check that a tensor of truth values holds 0 and 1 alone: compiled code acts upon others
    unchecked.

    Raises:
        UsageError: it does not.
    """
    if entry.dtype == "bool" and len(content) and np.frombuffer(content, np.uint8).max() > 1:
        raise UsageError("a truth value that is neither 0 nor 1")


def diff(expected: Sequence[TensorEntry], got: Sequence[TensorEntry]) -> TensorDifference | None:
    """The first difference of two states by tensor name, or None where they are equal."""
    left = {item.name: item for item in expected}
    right = {item.name: item for item in got}
    for name in sorted(left.keys() | right.keys()):
        if left.get(name) != right.get(name):
            return TensorDifference(name=name, expected=left.get(name), got=right.get(name))
    return None


def _described(item: TensorEntry | None) -> str:
    if item is None:
        return "no such tensor"
    return f"{item.dtype} {list(item.shape)} {item.digest.hex()}"
