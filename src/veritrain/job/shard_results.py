"""One shard's result as an object: what a worker commits to, and what anyone computes again.

`Shards` computes results of a job, reads those that others sent, and puts all n of them together to
the step. A `ShardResult` has one digest, that of its `ShardCommitment`. An opening shows a part of
one of its tensors against that digest alone. docs/numerics.md has the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from veritrain.encoding import Digest, Value, decode, encode
from veritrain.errors import NumericsError, TranscriptError, UsageError, VerificationError
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.shards import MAX_SHARDS, BlockSum, joined
from veritrain.job.state import capture, refuse_nan, restore
from veritrain.job.step import Program, finish_step, run_shard
from veritrain.transcript import TensorEntry, fields, merkle, slices, tensors
from veritrain.transcript.fields import shown
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.record import MAX_STEP, Record

GRADIENT, BUFFER = "gradient/", "buffer/"  # names of a result's tensors begin so
_LENGTH_BYTES = 4  # before the head of an encoded result, big-endian


@dataclass(frozen=True, kw_only=True)
class ShardCommitment(Record):
    """What a worker says of a shard. Its digest is the result's."""

    type_name: ClassVar[str] = "shard"
    max_bytes: ClassVar[int] = 256

    step: int
    shard: int
    loss: float
    count: int  # tensors of the result
    root: Digest  # Merkle root over their entries, sorted by name

    def __post_init__(self) -> None:
        fields.check_integer("step", self.step, 1, MAX_STEP)
        fields.check_integer("shard", self.shard, 0, MAX_SHARDS - 1)
        fields.check_finite("loss", self.loss)
        fields.check_integer("count", self.count, 0, 2 * LIMITS.tensors)
        fields.check_digest("root", self.root)


@dataclass(frozen=True, kw_only=True)
class ShardOpening(Record):
    """A part of one tensor of a result, with what leads to the result's digest."""

    type_name: ClassVar[str] = "shard opening"
    max_bytes: ClassVar[int] = slices.MAX_SLICES_BYTES + (1 << 16)

    place: int  # of the tensor among the result's
    entry: TensorEntry
    proof: tuple[Digest, ...]
    slices: slices.Slices

    def __post_init__(self) -> None:
        fields.check_integer("place", self.place, 0, 2 * LIMITS.tensors)
        for node in self.proof:
            fields.check_digest("proof", node)

    def to_value(self) -> dict[str, Value]:
        """The record as a map of its fields and its type."""
        return {
            "type": self.type_name,
            "place": self.place,
            "entry": self.entry.to_value(),
            "proof": list(self.proof),
            "slices": self.slices.to_value(),
        }

    @classmethod
    def from_value(cls, value: Value) -> Self:
        """See `Record.from_value`."""
        taken = cls._take(value)
        if type(taken["proof"]) is not list:
            raise fields.wrong("proof", "an array", taken["proof"])
        return cls(
            place=taken["place"],
            entry=TensorEntry.from_value(taken["entry"]),
            proof=tuple(taken["proof"]),
            slices=slices.Slices.from_value(taken["slices"]),
        )

    def verify(self, commitment: ShardCommitment, name: str) -> slices.Opened:
        """Check that this is a part of the tensor of that name in the result that is committed to.

        The checks, and what the caller must still do:
            1. the entry is the named one, and is in the commitment's tree at its place;
            2. the bytes lead to the entry's digest, in a content of the entry's size;
            the caller compares dtype and shape of the entry with the job's parameter.

        Raises:
            VerificationError: one of them fails.
        """
        # 1.
        if self.entry.name != name:
            raise VerificationError(f"expected tensor {shown(name)}")
        merkle.verify_inclusion(
            self.entry.to_bytes(), self.place, commitment.count, self.proof, commitment.root
        )
        # 2.
        return slices.verify("tensor", self.entry.digest, self.entry.num_bytes, self.slices)


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What the loss of one shard gives, from the state before the step.

    Attributes:
        step, shard: which.
        loss: mean over the shard's micro-batches.
        gradients: by name of the parameter; a parameter without a gradient is left out.
        buffers: by name, those of which the shard left another number than before.
    """

    step: int
    shard: int
    loss: float
    gradients: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, step: int, found: BlockSum) -> Self:
        """The result of one shard of a step, as it was just computed."""
        return cls(
            step=step,
            shard=found.shards.start,
            loss=found.loss,
            gradients={name: gradient.detach() for name, gradient in found.gradients.items()},
            buffers={name: found.buffers[name] for name in sorted(found.changed)},
        )

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, sorted by their names in the result."""
        every = {GRADIENT + name: tensor for name, tensor in self.gradients.items()}
        every |= {BUFFER + name: tensor for name, tensor in self.buffers.items()}
        return dict(sorted(every.items()))

    @cached_property
    def entries(self) -> tuple[TensorEntry, ...]:
        """What the result's tree is over."""
        return tensors.state_entries(self.tensors)

    @cached_property
    def commitment(self) -> ShardCommitment:
        """What stands for the result."""
        return ShardCommitment(
            step=self.step,
            shard=self.shard,
            loss=self.loss,
            count=len(self.entries),
            root=merkle.root([entry.to_bytes() for entry in self.entries]),
        )

    @property
    def digest(self) -> Digest:
        """The one digest of the result."""
        return self.commitment.digest

    def to_bytes(self) -> bytes:
        """The whole result: the length of the head, the head, and the contents of the tensors."""
        head = encode(
            {
                "type": "shard result",
                "step": self.step,
                "shard": self.shard,
                "loss": self.loss,
                "tensors": [entry.to_value() for entry in self.entries],
            }
        )
        contents = (tensors.content(tensor) for tensor in self.tensors.values())
        return b"".join([len(head).to_bytes(_LENGTH_BYTES, "big"), head, *contents])

    def open(self, name: str, ranges: Iterable[tuple[int, int]]) -> ShardOpening:
        """Open byte ranges of one tensor, by its name in the result ("gradient/head.weight").

        Raises:
            UsageError: there is no such tensor, or a range is not inside of it.
        """
        if name not in self.tensors:
            raise UsageError(f"the result has no tensor {shown(name)}")
        place = list(self.tensors).index(name)
        encoded = [entry.to_bytes() for entry in self.entries]
        content = tensors.content(self.tensors[name])
        return ShardOpening(
            place=place,
            entry=self.entries[place],
            proof=merkle.inclusion_proof(encoded, place),
            slices=slices.SliceTree("tensor", content).open(ranges),
        )


class Shards:
    """Computes, reads and puts together the results of a job's shards.

    Args:
        job: in two shards or more.
        device: where steps are computed; under `exact` it changes no bit.

    Raises:
        UsageError: the job has one shard: its step is computed whole.
        JobError: the job cannot be built.
    """

    def __init__(self, job: Job, device: str = "cpu") -> None:
        if job.shards < 2:
            raise UsageError("shards: expected a job with shards=2 or more, got one with 1")
        self.job = job
        self._batches = Batches(job)
        self._program = Program.build(job, device=device)
        parameters = dict(self._program.model.named_parameters())
        buffers = dict(self._program.model.named_buffers(remove_duplicate=False))
        named = {GRADIENT + name: tensor for name, tensor in parameters.items()}
        named |= {BUFFER + name: tensor for name, tensor in buffers.items()}
        self._forms = {
            name: (tensors.dtype_name(tensor), tuple(tensor.shape))
            for name, tensor in named.items()
        }

    def shard_result(self, state: Mapping[str, Tensor], step: int, index: int) -> ShardResult:
        """Compute one shard.

        Args:
            state: before the step, as `state.capture` gives it.
            step: from 1.
            index: of the shard, from 0.

        Raises:
            UsageError: there is no such step or shard.
            TranscriptError: the state is not one of this job.
            NumericsError, JobError: as `run_step`; the result holds a NaN.
        """
        self._require_step(step)
        if not 0 <= index < self.job.shards:
            raise UsageError(f"shard {index}: the job has shards 0 to {self.job.shards - 1}")
        restore(self._program, state)
        batch = self._batches.of_shards(step, range(index, index + 1))
        result = ShardResult.of(step, run_shard(self._program, step, index, batch))
        refuse_nan(result.tensors, step)  # a NaN has many forms, and processors differ in which
        return result

    def decode(self, data: bytes) -> ShardResult:
        """Read a result that someone else sent: `ShardResult.to_bytes`.

        Nothing is allocated for a tensor before its name, dtype, shape and size are found to be
        those of the job's model. Whether the numbers are right, only computing them again says.

        Raises:
            TranscriptError: the bytes are not those of a result that this job can have.
        """
        where = "shard result"
        stop = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
        if len(data) < stop or stop > LIMITS.record_bytes:
            raise TranscriptError(where, f"{len(data)} bytes, with a head of {stop}")
        head = decode(data[_LENGTH_BYTES:stop], where=where)
        try:
            step, shard, loss, entries = _head(head)
        except UsageError as error:
            raise TranscriptError(where, str(error)) from None
        if step > self.job.steps or shard >= self.job.shards:
            raise TranscriptError(where, f"the job has no shard {shard} of step {step}")
        for entry in entries:
            if self._forms.get(entry.name) != (entry.dtype, entry.shape):
                raise TranscriptError(where, f"{shown(entry.name)} is not as in the job's model")
        total = sum(entry.num_bytes for entry in entries)
        if len(data) != stop + total:
            raise TranscriptError(
                where, f"expected {total} bytes of tensors, got {len(data) - stop}"
            )
        found: dict[str, Tensor] = {}
        for entry in entries:
            tensor, into = tensors.empty(entry)
            into[:] = data[stop : stop + entry.num_bytes]
            stop += entry.num_bytes
            try:
                tensors.require_truth(entry, into)
            except UsageError as error:
                raise TranscriptError(where, f"{shown(entry.name)}: {error}") from None
            if tensors.entry(entry.name, tensor) != entry:
                raise TranscriptError(where, f"{shown(entry.name)} has another digest")
            found[entry.name] = tensor
        try:
            refuse_nan(found, step)  # `shard_result` gives none
        except NumericsError as error:
            raise TranscriptError(where, str(error)) from None
        return ShardResult(
            step=step, shard=shard, loss=loss, gradients=_below(GRADIENT, found),
            buffers=_below(BUFFER, found),
        )  # fmt: skip

    def finish(
        self, state: Mapping[str, Tensor], step: int, results: Sequence[ShardResult]
    ) -> tuple[dict[str, Tensor], float]:
        """The step, from the results of all its shards, in any order.

        Returns:
            The state after the step, which the next call overwrites, and the step's loss.

        Raises:
            UsageError: a shard is missing, is there twice, or is of another step.
            TranscriptError: the state is not one of this job.
            NumericsError, JobError: as `run_step`; the state holds a NaN.
        """
        self._require_step(step)
        if any(result.step != step for result in results):
            raise UsageError(f"expected results of step {step} alone")
        restore(self._program, state)
        before = dict(self._program.model.named_buffers(remove_duplicate=False))
        with self._program.profile.active(
            seed=self.job.seed, purpose="step", step=step, device=self._program.device
        ):
            device = self._program.device
            total = joined([_block(result, before, device) for result in results], self.job.shards)
        loss = finish_step(self._program, step, total)
        after = capture(self._program)
        refuse_nan(after, step)
        return after, loss

    def _require_step(self, step: int) -> None:
        if not 1 <= step <= self.job.steps:
            raise UsageError(f"step {step}: the job has the steps 1 to {self.job.steps}")


def _head(value: Value) -> tuple[int, int, float, list[TensorEntry]]:
    """Step, shard, loss and entries of an encoded result.

    Raises:
        UsageError: the head is not of the form.
    """
    if not isinstance(value, dict):
        raise fields.wrong("head", "a map", value)
    fields.check_names("head", value, ("type", "step", "shard", "loss", "tensors"))
    taken = cast("dict[str, Any]", value)
    if taken["type"] != "shard result":
        raise fields.wrong("type", "'shard result'", taken["type"])
    fields.check_integer("step", taken["step"], 1, MAX_STEP)
    fields.check_integer("shard", taken["shard"], 0, MAX_SHARDS - 1)
    fields.check_finite("loss", taken["loss"])
    if type(taken["tensors"]) is not list:
        raise fields.wrong("tensors", "an array", taken["tensors"])
    entries = [TensorEntry.from_value(item) for item in taken["tensors"]]
    if any(one.name >= other.name for one, other in pairwise(entries)):
        raise UsageError("tensors: expected names in strictly rising order")
    return taken["step"], taken["shard"], taken["loss"], entries


def _below(prefix: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}


def _block(result: ShardResult, before: Mapping[str, Tensor], device: torch.device) -> BlockSum:
    """A result as a leaf of the tree: with the buffers that the shard left as they were."""
    buffers = {name: result.buffers.get(name, own).to(device) for name, own in before.items()}
    return BlockSum(
        shards=range(result.shard, result.shard + 1),
        loss=result.loss,
        gradients={name: gradient.to(device) for name, gradient in result.gradients.items()},
        buffers=buffers,
        changed=frozenset(result.buffers),
    )
