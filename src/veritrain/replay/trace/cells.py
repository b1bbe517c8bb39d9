"""Cells: the pieces of memory that a step's tensors lie in, numbered in the order of their
appearance.

A tensor is a view of a cell: dtype, offset, shape and strides. Views of one cell share it, so that
a write through one shows in all, as in PyTorch. A number is never given twice, although memory is
used again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from veritrain.encoding import Digest, Value, digest
from veritrain.errors import FieldError, InconclusiveError, NumericsError
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.tensors import DTYPES, dtype_name

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SHORT_BYTES = 64
_SHORT_INTEGERS = 8192  # bytes; lengths of sequences, for example


class Cells:
    """The cells that a step has met."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._next = 0
        # what is watched weakly keeps its place in memory, so that no other one gets its address
        self._seen: list[StorageWeakRef] = []

    def __len__(self) -> int:
        """The number that the next cell gets."""
        return self._next

    def __getitem__(self, tensor: Tensor) -> int:
        """The number of the tensor's cell, which was met."""
        return self._numbers[_address(tensor)]

    def number(self, tensor: Tensor) -> int | None:
        """The number of the tensor's cell; None where it was not met before."""
        return self._numbers.get(_address(tensor))

    def add(self, tensor: Tensor, number: int | None = None) -> int:
        """Number the cell of a tensor that was not met before."""
        number = self._next if number is None else number
        self._numbers[_address(tensor)] = number
        self._next = max(self._next, number + 1)
        self._seen.append(StorageWeakRef(tensor.untyped_storage()))
        return number

    def skip_to(self, number: int) -> None:
        """Give the next cell this number."""
        self._next = number


@dataclass(frozen=True, kw_only=True)
class CellView:
    """How a tensor lies in its cell. Offset and strides count elements."""

    cell: int
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, cell: int) -> CellView:
        """The view that a tensor is.

        Raises:
            NumericsError: it has no plain bytes.
            UsageError: it is of a dtype that the format does not have.
        """
        if tensor.layout is not torch.strided or tensor.is_neg() or tensor.is_conj():
            raise NumericsError("a trace covers dense tensors")
        dtype_name(tensor)
        return cls(
            cell=cell,
            dtype=tensor.dtype,
            offset=int(tensor.storage_offset()),
            shape=tuple(int(size) for size in tensor.shape),
            strides=tuple(int(stride) for stride in tensor.stride()),
        )

    def to_value(self) -> Value:
        """`[cell, dtype, offset, shape, strides]`."""
        return [self.cell, _NAMES[self.dtype], self.offset, [*self.shape], [*self.strides]]

    @classmethod
    def from_value(cls, value: Value) -> CellView:
        """Read what `to_value` wrote; another party may have written it.

        Raises:
            FieldError: it is not of that form, or no tensor is so large.
        """
        if not isinstance(value, list) or len(value) != 5 or not isinstance(value[1], str):
            raise FieldError("not a view of a cell")
        cell, dtype, offset, shape, strides = cast("list[Any]", value)
        sizes, steps = _naturals(shape), _naturals(strides)
        number, start = _naturals([cell, offset])
        if dtype not in DTYPES or len(sizes) != len(steps) or len(sizes) > LIMITS.dimensions:
            raise FieldError("not a view of a cell")
        found = cls(cell=number, dtype=DTYPES[dtype], offset=start, shape=sizes, strides=steps)
        # PyTorch multiplies in 64 bits, also of an empty tensor
        widest = sum(max(0, n - 1) * s for n, s in zip(sizes, steps, strict=True))
        most = max(start + widest + 1, math.prod(n or 1 for n in sizes))
        if max(number, *steps, most * found.dtype.itemsize) >= 2**63:
            raise FieldError("a view beyond any cell")
        return found

    @property
    def is_whole(self) -> bool:
        """Whether it is in C order and without gaps."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True

    def end(self) -> int:
        """Bytes of the cell up to the view's last element."""
        if 0 in self.shape:
            return self.offset * self.dtype.itemsize
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return (self.offset + last + 1) * self.dtype.itemsize

    def fills(self, num_bytes: int) -> bool:
        """Whether the tensor is all of a cell of so many bytes, in C order."""
        return self.is_whole and not self.offset and self.end() == num_bytes

    def tensor(self, storage: torch.UntypedStorage) -> Tensor:
        """The tensor, in the memory of its cell.

        Raises:
            InconclusiveError: it does not fit into the cell, so nobody can have computed with it.
        """
        if self.end() > storage.nbytes():
            raise InconclusiveError("a view beyond its cell")
        empty = torch.empty(0, dtype=self.dtype)
        return empty.set_(cast(Any, storage), self.offset, self.shape, self.strides)


def cell_bytes(tensor: Tensor) -> memoryview:
    """All bytes of the tensor's cell, in place."""
    return whole(tensor.untyped_storage()).numpy().data


def whole(storage: torch.UntypedStorage) -> Tensor:
    """A cell as one tensor of bytes."""
    empty = torch.empty(0, dtype=torch.uint8)
    return empty.set_(cast(Any, storage), 0, (storage.nbytes(),), (1,))


def cell_digest(tensor: Tensor) -> Digest:
    """Digest of the whole cell. Of a tensor that fills its cell in C order it is the one that
    states have."""
    return digest("tensor", cell_bytes(tensor))


def is_short(tensor: Tensor) -> bool:
    """Whether an entry holds the cell's bytes themselves: Python and PyTorch may act upon such
    values."""
    return is_short_content(tensor.untyped_storage().nbytes(), tensor.dtype)


def is_short_content(nbytes: int, dtype: torch.dtype) -> bool:
    """`is_short`, by size and dtype."""
    return nbytes <= _SHORT_BYTES or (nbytes <= _SHORT_INTEGERS and not dtype.is_floating_point)


def fill(storage: torch.UntypedStorage, data: bytes) -> None:
    """Write all bytes of a cell, which has room for just these."""
    if data:
        whole(storage).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def tight(tensor: Tensor) -> Tensor:
    """The tensor if it fills its cell, else a copy that does: what lies between and behind the
    elements of a result is not defined.

    A copy has the strides of a dense tensor, else those of C order.
    """
    nbytes = tensor.numel() * tensor.element_size()
    if tensor.untyped_storage().nbytes() == nbytes and is_dense(tensor):
        return tensor
    return tensor.clone(memory_format=torch.preserve_format)


def is_dense(tensor: Tensor) -> bool:
    """Whether its elements lie in some order without gap or overlap."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _naturals(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or any(type(v) is not int or v < 0 for v in values):
        raise FieldError("not a view of a cell")
    return tuple(cast("list[int]", values))
