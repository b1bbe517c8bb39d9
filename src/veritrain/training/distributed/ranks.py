"""The ranks of a run: how they meet, and how bytes and tensors go between them.

`torchrun` tells a process its rank by environment variables. `Ranks.join` reads them and takes them
out of the environment. It also leaves PyTorch's default process group alone. So the job's code
cannot see that it runs on one of several ranks; it does what it does for an auditor.

Every wait ends: `signs` notices a rank that is gone, and then every exchange raises
`LostRankError`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous

from veritrain.errors import LostRankError, UsageError, VeritrainError
from veritrain.job.step import find_device
from veritrain.training.distributed.signs import Sign, SignKind, Watch

_MEETING = timedelta(minutes=5)  # until all ranks have come
_NO_LIMIT = timedelta(days=365)  # for one exchange: the signs of life end it
_MOST_RANKS = 4095
# What torchrun sets. Frameworks act upon these, and an auditor's process has none.
_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
_PREFIX = "TORCHELASTIC_"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of the processes this one is."""

    rank: int
    size: int  # ranks on all nodes
    local_rank: int  # on this node
    local_size: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """What torchrun said.

        Raises:
            UsageError: a variable is missing, or is no number that it could be.
        """
        size = _number(environment, "WORLD_SIZE", 1, _MOST_RANKS)
        return cls(
            rank=_number(environment, "RANK", 0, size - 1),
            size=size,
            local_rank=_number(environment, "LOCAL_RANK", 0, size - 1, 0),
            local_size=_number(environment, "LOCAL_WORLD_SIZE", 1, size, size),
        )

    @property
    def command(self) -> list[str]:
        """The words that start such ranks; of several nodes only the user knows all."""
        nodes = ["--nproc-per-node", str(self.size)] if self.local_size == self.size else ["..."]
        return ["torchrun", *nodes, "-m"]


class Ranks:
    """All ranks of a run, as one of them sees them. Made by `join`, and to be left by `with`."""

    def __init__(self, place: Place, store: Any, deadline: float, device: torch.device) -> None:
        self.place = place
        self.device = device
        self.bytes_sent = 0  # of tensors, without what the network adds
        try:
            self._gloo = _gloo("tensors", store, place)
            watched = _gloo("signs", store, place)
            self._nccl = _nccl(store, place) if device.type == "cuda" else None
        except RuntimeError as error:
            raise LostRankError(f"rank {self.rank}: not all ranks have met: {error}") from error
        self._watch = Watch(watched, deadline, self._end_waiting)

    @classmethod
    def join(cls, *, deadline: float, device: str = "cpu") -> Self:
        """Meet the other ranks, as the environment says.

        Args:
            deadline: seconds of silence after which a rank is lost.
            device: where steps are computed; "cuda" is a GPU for each rank of a node, in order.

        Raises:
            UsageError: the environment does not say which rank this is, the deadline is none, or
                there is no such device.
            LostRankError: not all ranks came.
        """
        if not deadline > 0:
            raise UsageError(f"deadline: expected a number of seconds above 0, got {deadline}")
        place = Place.of(os.environ)
        found_device = find_device(f"cuda:{place.local_rank}" if device == "cuda" else device)
        try:
            found = rendezvous("env://", place.rank, place.size, timeout=_MEETING)
            store, _, _ = next(iter(found))
        except (RuntimeError, ValueError) as error:
            raise LostRankError(f"rank {place.rank}: no way to the others: {error}") from error
        # torchrun's store outlives a restart of the ranks, and has the addresses of dead ones.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = c10d.PrefixStore(attempt, store)
        _take_out(os.environ)
        return cls(place, store, deadline, found_device)

    @property
    def rank(self) -> int:
        """The number of this one."""
        return self.place.rank

    @property
    def size(self) -> int:
        """How many there are."""
        return self.place.size

    @property
    def is_first_lost(self) -> bool:
        """Whether rank 0, which speaks for all, is gone without a word."""
        return self._watch.lost == 0

    @property
    def others(self) -> list[int]:
        """All ranks but this one, beginning with the next: so not all send to one at a time."""
        return [(self.rank + step) % self.size for step in range(1, self.size)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the others that this rank ends, and why."""
        if error is None:
            sign = Sign(kind=SignKind.DONE)
        elif isinstance(error, LostRankError):
            sign = Sign(kind=SignKind.BEREFT, text=str(error))
        elif isinstance(error, KeyboardInterrupt):
            sign = Sign(kind=SignKind.FAILED, text="it was interrupted")
        else:
            is_ours = isinstance(error, VeritrainError)
            text = str(error) if is_ours else f"{type(error).__name__}: {error}"
            sign = Sign(kind=SignKind.FAILED, text=text)
        self._watch.leave(sign)

    def gather(self, data: bytes) -> list[bytes]:
        """The bytes of every rank, in order; all ranks give equally many."""
        own = _tensor_of(data)
        found = [torch.empty_like(own) for _ in range(self.size)]
        self.bytes_sent += len(data) * (self.size - 1)
        self._finish([self._gloo.allgather([found], [own])])
        return [_bytes_of(item) for item in found]

    def gather_texts(self, data: bytes, limit: int) -> list[bytes]:
        """The bytes of every rank, in order, of any length up to `limit`.

        Raises:
            UsageError: a rank has more.
        """
        sizes = [int.from_bytes(size, "little") for size in self.gather(_size(data))]
        if max(sizes) > limit:
            big = sizes.index(max(sizes))
            raise UsageError(f"rank {big}: {sizes[big]} bytes to compare, expected at most {limit}")
        padded = self.gather(data.ljust(max(sizes), b"\0"))
        return [text[:size] for text, size in zip(padded, sizes, strict=True)]

    def from_first(self, data: bytes | None, limit: int) -> bytes:
        """The bytes that rank 0 gives, up to `limit`, for every rank.

        Raises:
            UsageError: rank 0 has more.
        """
        size = torch.tensor([0 if data is None else len(data)], dtype=torch.int64)
        self.share(size)
        if not 0 <= int(size) <= limit:
            raise UsageError(f"rank 0: {int(size)} bytes to share, expected at most {limit}")
        text = torch.empty(int(size), dtype=torch.uint8) if data is None else _tensor_of(data)
        self.share(text)
        return _bytes_of(text)

    def share(self, tensor: Tensor) -> None:
        """Give every rank the content of rank 0's tensor, which is contiguous and on the CPU."""
        if tensor.numel():
            options: Any = c10d.BroadcastOptions()
            options.rootRank, options.rootTensor = 0, 0
            self._finish([self._gloo.broadcast([tensor.view(torch.uint8)], options)])

    def begin_exchange(
        self, sent: Mapping[int, Tensor], received: Mapping[int, Tensor], tag: int
    ) -> list[Any]:
        """Begin to send a tensor to each of some ranks and to receive one of each of some.

        Both sides know how large a tensor is. The tensors are contiguous, and stay as they are
        until `finish_exchange` has returned.
        """
        group = self._gloo if self._nccl is None else self._nccl
        if self._nccl is not None:
            self._nccl._start_coalescing()
        works: list[Any] = []
        for offset in range(1, self.size):
            to, of = (self.rank + offset) % self.size, (self.rank - offset) % self.size
            if to in sent and sent[to].numel():
                self.bytes_sent += sent[to].nbytes
                works.append(self._attempt(group.send, sent[to], to, tag))
            if of in received and received[of].numel():
                works.append(self._attempt(group.recv, received[of], of, tag))
        return works if self._nccl is None else [self._nccl._end_coalescing()]

    def finish_exchange(self, works: Sequence[Any]) -> None:
        """Wait until an exchange is through.

        Raises:
            LostRankError: a rank is gone.
        """
        self._finish(works)

    def _attempt(self, act: Any, tensor: Tensor, other: int, tag: int) -> Any:
        try:
            return act([tensor], other, tag)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _finish(self, works: Sequence[Any]) -> None:
        try:
            for work in works:
                work.wait()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> LostRankError:
        loss = self._watch.loss()
        return LostRankError(loss.text if loss is not None else f"another rank is lost: {error}")

    def _end_waiting(self, other: int) -> None:
        """Let every exchange of tensors fail, now and from here on; called by the watching thread.

        A gloo wait that runs out of time closes all connections of its group, and whatever waits
        for one of them ends. Source: gloo, transport/tcp/unbound_buffer.cc, waitRecv.
        """
        if self._nccl is not None:
            self._nccl.abort()
        with suppress(RuntimeError):
            nothing = torch.empty(1, dtype=torch.uint8)
            self._gloo.recv([nothing], other, _UNUSED_TAG).wait(timedelta(milliseconds=1))


_UNUSED_TAG = 1 << 20


def _gloo(name: str, store: Any, place: Place) -> Any:
    group = c10d.ProcessGroupGloo(
        c10d.PrefixStore(f"veritrain/{name}", store), place.rank, place.size, _MEETING
    )
    group._set_default_timeout(_NO_LIMIT)
    return group


def _nccl(store: Any, place: Place) -> Any:
    kind: Any = c10d.ProcessGroupNCCL
    return kind(c10d.PrefixStore("veritrain/nccl", store), place.rank, place.size)


def _take_out(environment: MutableMapping[str, str]) -> None:
    for name in [n for n in environment if n in _VARIABLES or n.startswith(_PREFIX)]:
        del environment[name]


def _number(
    environment: Mapping[str, str], name: str, low: int, high: int, missing: int | None = None
) -> int:
    text = environment.get(name)
    if text is None and missing is not None:
        return missing
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise UsageError(f"{name}: expected an integer, got {text!r}; start the ranks by torchrun")
    if not low <= int(text) <= high:
        raise UsageError(f"{name}: expected {low} to {high}, got {text}")
    return int(text)


def _size(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little")


def _tensor_of(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
