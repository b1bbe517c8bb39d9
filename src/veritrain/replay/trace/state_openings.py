"""Openings of the state before a step, and of the step up to an entry.

A referee has neither. It learns what all tensors are called, their shapes, and those contents that
the job's Python may look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from veritrain.encoding import Digest, Value, digest
from veritrain.errors import (
    FieldError,
    JobError,
    TranscriptError,
    UsageError,
)
from veritrain.job.data import Batch, batch_digest
from veritrain.job.state import HYPER, SCHEDULER, require_fit, restore
from veritrain.job.step import Program
from veritrain.replay.trace.cells import is_short_content
from veritrain.replay.trace.entry import TraceEntry
from veritrain.replay.trace.entry_bodies import EntryBody, InputsBody
from veritrain.replay.trace.openings import (
    FalseOpeningError,
    fields_of,
    list_of,
    map_of,
    opened_entries,
)
from veritrain.replay.trace.packing import pack, unpack
from veritrain.transcript import TensorEntry, state_root
from veritrain.transcript.fields import shown
from veritrain.transcript.tensors import DTYPES, content, require_truth


@dataclass(frozen=True, kw_only=True)
class StateBefore:
    """The state that a step starts from: what all its tensors are called, and some of their
    contents."""

    tensors: tuple[TensorEntry, ...]
    contents: Mapping[str, bytes]

    @classmethod
    def opened(cls, detail: Value, root: Digest) -> StateBefore:
        """Check what `state_opening` made.

        Raises:
            FalseOpeningError: it is not the state of that root.
        """
        tensors_, contents = fields_of(detail, "state", "contents")
        try:
            tensors = tuple(TensorEntry.from_value(item) for item in list_of(tensors_))
            found = state_root(tensors)
        except (FieldError, UsageError) as error:
            raise FalseOpeningError(f"state: {error}") from None
        if found != root:
            raise FalseOpeningError("state: not the one of the agreed leaf")
        known = {tensor.name: tensor for tensor in tensors}
        given: dict[str, bytes] = {}
        for name, data in map_of(contents).items():
            tensor = known.get(name)
            if (
                tensor is None
                or not isinstance(data, bytes)
                or len(data) != tensor.num_bytes
                or digest("tensor", data) != tensor.digest
            ):
                raise FalseOpeningError(f"state: the content of {shown(name)} is another")
            given[name] = data
        for tensor in tensors:
            if _must_be_open(tensor) and tensor.name not in given:
                raise FalseOpeningError(f"state: the content of {shown(tensor.name)} is missing")
        return cls(tensors=tensors, contents=given)

    def restore(self, program: Program, unknown: int = 0) -> None:
        """Put the state into a program; the bytes of tensors whose contents are not known are
        `unknown`.

        Raises:
            FalseOpeningError: it does not fit the job.
        """
        try:
            require_fit(program, self.tensors)
            state = {tensor.name: self._tensor(tensor, unknown) for tensor in self.tensors}
            restore(program, state)
        except (FieldError, TranscriptError, UsageError) as error:
            raise FalseOpeningError(f"state: {error}") from None

    @cached_property
    def _known(self) -> dict[Digest, bytes]:
        """Contents by digest: tied tensors have one."""
        names = {tensor.name: tensor.digest for tensor in self.tensors}
        return {names[name]: data for name, data in self.contents.items()}

    def _tensor(self, tensor: TensorEntry, unknown: int) -> Tensor:
        dtype = DTYPES[tensor.dtype]
        data = self._known.get(tensor.digest)
        if data:
            require_truth(tensor, data)
            return torch.frombuffer(bytearray(data), dtype=dtype).reshape(tensor.shape)
        filler = torch.full((tensor.num_bytes,), unknown, dtype=torch.uint8)
        return filler.view(dtype).reshape(tensor.shape)


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """A step up to an entry: its entries' bodies, the state before it and its batch."""

    entries: tuple[EntryBody, ...]
    state: StateBefore
    batch: Batch

    @classmethod
    def opened(cls, detail: Value, root: Digest, last: TraceEntry, shards: int) -> Prefix:
        """Check what `prefix_opening` made, of a step in so many shards.

        Raises:
            FalseOpeningError: it does not lead from the state of that root to the last agreed
                entry.
        """
        entries_, state, packed = fields_of(detail, "entries", "state", "batch")
        entries = opened_entries({"entries": entries_}, 0, last)
        try:
            batch = tuple(unpack(micro) for micro in list_of(packed))
            found = batch_digest(batch, shards)
        except (FieldError, UsageError, JobError) as error:
            raise FalseOpeningError(f"batch: {error}") from None
        inputs = entries[0]
        if not isinstance(inputs, InputsBody) or found != inputs.batch:
            raise FalseOpeningError("batch: not the agreed one")
        return cls(entries=entries, state=StateBefore.opened(state, root), batch=batch)


def state_opening(
    tensors: Sequence[TensorEntry], state: Mapping[str, Tensor], also: Sequence[str] = ()
) -> Value:
    """What all tensors are called, and those contents that the job's Python may look at."""
    contents: dict[str, Value] = {
        tensor.name: bytes(content(state[tensor.name]))
        for tensor in tensors
        if tensor.name in also or _must_be_open(tensor)
    }
    return {"state": [tensor.to_value() for tensor in tensors], "contents": contents}


def prefix_opening(entries: Sequence[bytes], state: Value, batch: Batch) -> Value:
    """See `Prefix`."""
    return {"entries": list(entries), "state": state, "batch": [pack(micro) for micro in batch]}


def _must_be_open(tensor: TensorEntry) -> bool:
    """Whether the job's Python may look at its values: see `is_short`."""
    is_text = tensor.name in (HYPER, SCHEDULER)
    return is_text or is_short_content(tensor.num_bytes, DTYPES[tensor.dtype])
