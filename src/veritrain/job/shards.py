"""A step in shards: how a batch is cut, and the fixed tree by which the shards' results are added.

The mean over n shards is defined by a binary tree over their numbers, not by who computes them. A
range of shards is cut at the largest power of two below its length (RFC 9162 section 2.1 cuts a
list of entries so). The sums of the two halves are added by one IEEE addition, left + right. One
division by n at the root makes the mean. So a process that holds a whole block of the tree adds it
by itself, and any number of processes comes to the same bits. docs/numerics.md has the definition.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)

from veritrain.errors import JobError, StorageError, UsageError

MAX_SHARDS = 4095  # each has 2**20 of the 2**32 random calls of a step, and so has the step itself

T = TypeVar("T")
Taken = Callable[[str], Tensor]


def cut(block: range) -> tuple[range, range]:
    """The two halves of a node of the tree: cut at the largest power of two below its length."""
    middle = block.start + (1 << (len(block) - 1).bit_length() - 1)
    return range(block.start, middle), range(middle, block.stop)


def blocks(mine: range, count: int) -> list[range]:
    """The largest nodes of the tree over `count` shards that lie inside of `mine`, in order.

    They cover `mine`. A process that computes these shards can add each block by itself.
    """

    def inside(node: range) -> Iterator[range]:
        if mine.start <= node.start and node.stop <= mine.stop:
            yield node
        elif max(mine.start, node.start) < min(mine.stop, node.stop):
            for half in cut(node):
                yield from inside(half)

    return list(inside(range(count)))


def is_node(block: range, count: int) -> bool:
    """Whether a block is a node of the tree over `count` shards."""
    size = 1 << (len(block) - 1).bit_length()  # the power of two at or above its length
    return block.start % size == 0 and (len(block) == size or block.stop == count)


def parts(values: Sequence[T], count: int) -> list[Sequence[T]]:
    """Cut a sequence into `count` parts of one length, in order.

    Raises:
        UsageError: its length is not a multiple of `count`.
    """
    size, rest = divmod(len(values), count)
    if rest or not size:
        raise UsageError(f"batch: {len(values)} micro-batches do not make {count} equal shards")
    return [values[start : start + size] for start in range(0, len(values), size)]


@dataclass(frozen=True, kw_only=True)
class BlockSum:
    """The sum of the results of some shards, a node of the tree. That of one shard is its result.

    Attributes:
        shards: which.
        loss: sum of their losses, by the tree, in float64.
        gradients: sums by name of the parameter; a parameter for which no shard of the block has a
            gradient is left out.
        buffers: by name, every buffer of the model. Of those in `changed`: the sum of a
            floating-point one, and the value of another, which all shards must have. Of the rest:
            the value before the step.
        changed: names of the buffers of which at least one of the shards left another number.
    """

    shards: range
    loss: float
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    changed: frozenset[str]


def add(left: BlockSum, right: BlockSum, taken: Taken | None = None) -> BlockSum:
    """The node above two neighbours. It takes both apart, so that their memory is free early.

    A gradient that only one side has is added to zeros (+0): -0 becomes +0.

    Args:
        left, right: the two.
        taken: takes a gradient out of the left one by name; None for one that lies in memory.

    Raises:
        JobError: a buffer of integers is not the same in all shards; names it.
    """
    take = taken if taken is not None else left.gradients.pop
    names = [*left.gradients, *(name for name in right.gradients if name not in left.gradients)]
    gradients: dict[str, Tensor] = {}
    for name in names:
        first = take(name) if name in left.gradients else None
        gradients[name] = add_gradients(first, right.gradients.pop(name, None))
    changed = left.changed | right.changed
    buffers = dict(left.buffers)  # what no shard changed is not added: it may have no addition
    for name in left.buffers:
        if name in changed:
            buffers[name] = add_buffers(name, buffer_sum(left, name), buffer_sum(right, name))
    return BlockSum(
        shards=range(left.shards.start, right.shards.stop),
        loss=left.loss + right.loss,
        gradients=gradients,
        buffers=buffers,
        changed=changed,
    )


def add_gradients(left: Tensor | None, right: Tensor | None) -> Tensor:
    """One addition of the tree; None is the side that has no gradient."""
    if left is not None and right is not None:
        return torch.add(left, right)
    some = left if left is not None else right
    if some is None:
        raise UsageError("neither side has a gradient")
    return torch.add(some, 0.0)


def buffer_sum(block: BlockSum, name: str) -> Tensor:
    """What a block counts with in the sum of a buffer that a shard, here or elsewhere, changed.

    Shards that left it alone count with the value before the step.
    """
    value = block.buffers[name]
    if name in block.changed or not value.is_floating_point():
        return value
    return _repeated(value, len(block.shards))


def _repeated(value: Tensor, count: int) -> Tensor:
    """The sum over a range of `count` shards that all have this value. Equal parts of the tree have
    equal sums, so each is added once."""
    if count == 1:
        return value
    first, second = map(len, cut(range(count)))
    left = _repeated(value, first)
    return torch.add(left, left if second == first else _repeated(value, second))


def add_buffers(name: str, left: Tensor, right: Tensor) -> Tensor:
    """The sum of floating-point buffers, or the value of others that both sides have.

    Raises:
        JobError: they have not; names the buffer.
    """
    if left.is_floating_point():
        return torch.add(left, right)
    if not torch.equal(left, right):
        raise JobError(
            f"shards: buffer {name} ({str(left.dtype).removeprefix('torch.')}) is not the same "
            "after every shard, and it has no mean; make it a floating-point buffer, or compute it "
            "from what all shards have"
        )
    return left


class Reduction(Protocol):
    """Which shards of a step this process computes, and how the sums of all processes meet."""

    def mine(self, count: int) -> range:
        """The shards, of `count`, that this process computes: at least one."""
        ...

    def total(self, sums: Sequence[BlockSum], count: int) -> BlockSum:
        """The sum at the root of the tree over `count` shards.

        It is called within the step's numerics. What it adds, it adds as `add` does.

        Args:
            sums: those of the blocks `blocks(self.mine(count), count)`, in order.
            count: shards of the step.
        """
        ...


class Alone:
    """A process that computes every shard."""

    def mine(self, count: int) -> range:
        """See `Reduction.mine`."""
        return range(count)

    def total(self, sums: Sequence[BlockSum], count: int) -> BlockSum:
        """See `Reduction.total`."""
        (whole,) = sums
        return whole


ALONE = Alone()


def joined(sums: Sequence[BlockSum], count: int) -> BlockSum:
    """The root of the tree, from sums of nodes that together cover all shards, in order.

    Raises:
        UsageError: they do not cover them, or one is not a node of the tree.
        JobError: as `add`.
    """
    known = {(item.shards.start, item.shards.stop): item for item in sums}
    if len(known) != len(sums):
        raise UsageError("shards: a block is there twice")

    def node(block: range) -> BlockSum:
        found = known.pop((block.start, block.stop), None)
        if found is not None:
            return found
        if len(block) == 1:
            raise UsageError(f"shards: the result of shard {block.start} is missing")
        left, right = cut(block)
        return add(node(left), node(right))

    whole = node(range(count))
    if known:
        raise UsageError(f"shards: {min(known)} is not a block of the tree, or lies in another one")
    return whole


class ModelBefore:
    """What every shard of a step starts from: the model's parameters and buffers.

    Args:
        model: in the state before the step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = dict(model.named_parameters())
        self.buffers = dict(model.named_buffers(remove_duplicate=False))
        self._model = model
        self._values = {name: buffer.detach().clone() for name, buffer in self.buffers.items()}
        self._versions = {name: p._version for name, p in self.parameters.items()}

    def taken(self, shard: int, loss: float, step: int) -> BlockSum:
        """The result of the shard that the model just computed; its buffers are put back.

        Raises:
            JobError: the shard wrote into a parameter, replaced one, made a gradient that is not
                dense, or left another kind of buffer.
        """
        self._require_parameters(step)
        gradients: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                if parameter.grad.layout is not torch.strided:
                    raise JobError(
                        f"step {step}: the gradient of parameter {name} is "
                        f"{parameter.grad.layout}; shards add dense gradients only (make the layer "
                        "with sparse=False, or use shards=1)"
                    )
                gradients[name] = parameter.grad
                parameter.grad = None
        buffers, changed = dict(self._values), set[str]()
        with torch.no_grad():
            for name, before in self._values.items():
                now, buffer = self._buffer(name, step), self.buffers[name]
                if not torch.equal(now, before):
                    buffers[name] = now.detach().clone()
                    changed.add(name)
                path, _, key = name.rpartition(".")
                setattr(self._model.get_submodule(path), key, buffer)
                buffer.copy_(before)  # equal numbers too: a zero may have lost its sign
        return BlockSum(
            shards=range(shard, shard + 1), loss=loss, gradients=gradients, buffers=buffers,
            changed=frozenset(changed),
        )  # fmt: skip

    def _buffer(self, name: str, step: int) -> Tensor:
        """The buffer that the model has now.

        Raises:
            JobError: it has none of that name, or another kind of one.
        """
        before, now = self._values[name], None
        with suppress(AttributeError):
            now = self._model.get_buffer(name)
        if now is None:
            raise JobError(f"model: model/{name} vanished in step {step}")
        if (now.dtype, now.shape, now.layout) != (before.dtype, before.shape, before.layout):
            raise JobError(
                f"model: model/{name} has another shape or dtype after a shard of step {step}; "
                "build it as large as it gets"
            )
        return now

    def _require_parameters(self, step: int) -> None:
        now = dict(self._model.named_parameters())
        for name, parameter in self.parameters.items():
            if now.get(name) is not parameter or parameter._version != self._versions[name]:
                raise JobError(
                    f"step {step}: the loss writes into parameter {name}, and every shard starts "
                    "from the parameters before the step: leave that to the optimiser, or use "
                    "shards=1"
                )


def mean(total: BlockSum, before: ModelBefore) -> float:
    """Give the model the mean of all shards: gradients and buffers.

    Args:
        total: the sum over all shards.
        before: what the shards started from; a buffer that no shard changed stays as it is there.

    Returns:
        The mean of the losses.
    """
    count = len(total.shards)
    for name, parameter in before.parameters.items():
        gradient = total.gradients.pop(name, None)
        parameter.grad = None if gradient is None else torch.div(gradient, count)
    with torch.no_grad():
        for name, value in total.buffers.items():
            if name in total.changed:
                is_sum = value.is_floating_point()
                before.buffers[name].copy_(torch.div(value, count) if is_sum else value)
    return total.loss / count


class Sums:
    """Adds the results of shards as they come, in the order of the tree.

    At most one sum waits in memory while a shard is computed. Older ones wait in a temporary file
    without a name, and are read back tensor by tensor. It lies where `tempfile` puts it ($TMPDIR).

    Args:
        count: shards of the step.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: list[BlockSum] = []
        self._away: list[_Away] = []  # of the oldest ones
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def make_room(self) -> None:
        """Before a shard is computed: put all sums but the newest into the file.

        Raises:
            StorageError: there is no folder for the file, or no room.
        """
        for block in self._waiting[len(self._away) : -1]:
            with _disable_current_modes():
                try:
                    if self._file is None:  # without a buffer: what does not fit is said at once
                        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - __exit__
                    self._away.append(_Away(block, self._file))
                except OSError as error:
                    raise StorageError(
                        f"the sums of shards that wait cannot be written to {_folder()} ({error}); "
                        "set TMPDIR to a folder with enough room"
                    ) from error

    def push(self, result: BlockSum) -> None:
        """Add the result of the next shard, and all nodes of the tree that it completes."""
        block = result
        while self._waiting and self._is_completed_by(block):
            away = self._away.pop() if len(self._away) == len(self._waiting) else None
            left = self._waiting.pop()
            block = add(left, block, away.take if away is not None else None)
            if away is not None:
                away.end()
        self._waiting.append(block)

    def finish(self) -> list[BlockSum]:
        """The sums of the blocks, all in memory, in order."""
        for away in reversed(self._away):
            away.take_all()
            away.end()
        self._away.clear()
        return self._waiting

    def _is_completed_by(self, block: BlockSum) -> bool:
        """Whether the newest sum that waits and `block` are the halves of a node."""
        left = self._waiting[-1].shards
        node = range(left.start, block.shards.stop)
        return is_node(node, self._count) and cut(node) == (left, block.shards)


class _Away:
    """The gradients of one sum while they lie at the end of a file.

    The tensors stay, without memory, so that in a trace they are the same cells before and after.
    """

    def __init__(self, block: BlockSum, file: FileIO) -> None:
        self._gradients = block.gradients
        self._file = file
        self._places: dict[str, int] = {}
        self._start = file.seek(0, os.SEEK_END)
        for name, tensor in block.gradients.items():
            storage = tensor.untyped_storage()
            # A gradient that autograd made may lie in memory that others use; a sum does not.
            if len(block.shards) == 1 or storage.nbytes() != tensor.nbytes:
                tensor = torch.clone(tensor, memory_format=torch.contiguous_format)
                storage = tensor.untyped_storage()
                block.gradients[name] = tensor
            if not storage.resizable():  # a trace has read it through numpy, which keeps the memory
                continue
            self._places[name] = file.tell()
            content = storage.cpu()  # a copy of a GPU's memory lives as long as its name
            _write(file, _bytes(content))
            storage.resize_(0)

    def take(self, name: str) -> Tensor:
        """Take a gradient out of the sum, back in memory."""
        tensor = self._gradients.pop(name)
        if name not in self._places:
            return tensor
        with _disable_current_modes():
            storage = tensor.untyped_storage()
            storage.resize_(tensor.nbytes)
            content = (
                storage if storage.device.type == "cpu" else torch.UntypedStorage(len(storage))
            )
            self._file.seek(self._places[name])
            _read(self._file, _bytes(content))
            if content is not storage:
                storage.copy_(content)
        return tensor

    def take_all(self) -> None:
        """Bring every gradient back into memory, and leave it in the sum."""
        for name in list(self._gradients):
            self._gradients[name] = self.take(name)

    def end(self) -> None:
        """Cut the file where this sum begins."""
        self._file.truncate(self._start)


def _folder() -> str:
    """Where temporary files lie."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return "any folder for temporary files"


def _write(file: FileIO, content: memoryview) -> None:
    """Write all of it; Linux takes at most 2 GiB at a time."""
    while content:
        content = content[file.write(content) :]


def _read(file: FileIO, into: memoryview) -> None:
    """Read all of it.

    Raises:
        StorageError: the file is shorter, or cannot be read.
    """
    try:
        while into and (count := file.readinto(into)):
            into = into[count:]
    except OSError as error:
        raise StorageError(f"the sums of shards that wait cannot be read: {error}") from error
    if into:
        raise StorageError("the file of the sums of shards that wait was cut short")


def _bytes(storage: torch.UntypedStorage) -> memoryview:
    """The memory of a storage on the CPU. Not by `Tensor.numpy`: no tensor's values are read."""
    size = storage.nbytes()
    return memoryview((ctypes.c_char * size).from_address(storage.data_ptr() if size else 0))
