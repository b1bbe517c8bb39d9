"""What ranks compare: the job before the first step, and the state after every one.

They compare digests of a fixed size. Only where these differ do they exchange the texts behind
them, of a bounded size, so that every rank can name what differs and whose it is. Ranks trust each
other to follow the job; this finds faults (another file, another package, a flipped bit), not lies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from veritrain.encoding import DIGEST_BYTES, Digest, Value, decode, digest, encode
from veritrain.errors import JobError, TranscriptError, UnlikeRanksError, UsageError
from veritrain.job.job import Job
from veritrain.job.loading.installed import found
from veritrain.job.sources import ALWAYS, commitment
from veritrain.numerics import resolve
from veritrain.training.distributed.ranks import Ranks
from veritrain.training.distributed.reduction import shards_of
from veritrain.transcript import TensorEntry, state_entries, state_root
from veritrain.transcript.fields import differences, shown
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.tensors import content, diff, empty

_STEP_BYTES = 8


def require_divisible(job: Job, size: int) -> None:
    """Check that each of `size` ranks has a shard to compute.

    Raises:
        JobError: there are more ranks than shards; says what to set.
    """
    if size <= job.shards:
        return
    if job.shards == 1:
        raise JobError(
            f"shards: the job's step is not divided (shards=1), and {size} processes were "
            f"started; set shards={size} or a multiple of it in the job, or start one process"
        )
    raise JobError(
        f"shards: the job's step has {job.shards} shards, too few for {size} processes; start at "
        f"most {job.shards}, or set more shards in the job"
    )


def require_same_job(ranks: Ranks, job: Job) -> None:
    """Check that all ranks have one job, one definition of numerics, and the same versions.

    Raises:
        JobError: a rank has others, or there are more ranks than shards; names what differs, and
            whose it is.
    """
    profile = resolve(job.numerics)
    own: dict[str, Value] = {
        "job": commitment(job),
        "numerics": {"name": profile.name, "version": profile.version},
        "packages": {**found(ALWAYS)},
        "device": ranks.device.type,
    }
    _require_same(ranks, own)
    require_divisible(job, ranks.size)


def require_same_packages(ranks: Ranks, environment: Mapping[str, str] | None) -> None:
    """Check that all ranks have the packages that the run's header names.

    Args:
        environment: the header's; None but on rank 0.

    Raises:
        JobError: a rank has others; names them, and whose.
    """
    text = None if environment is None else encode([*sorted(environment)])
    names = decode(ranks.from_first(text, LIMITS.header_bytes), where="packages of rank 0")
    if not isinstance(names, list):
        raise TranscriptError("packages of rank 0", "expected a list")
    own = found(name for name in names if isinstance(name, str))
    _require_same(ranks, {"packages": {**own}})


def _require_same(ranks: Ranks, own: Mapping[str, Value]) -> None:
    text = encode(dict(own))
    digests = ranks.gather(digest("rank", text))
    if len(set(digests)) == 1:
        return
    reference, odd = _odd(digests)
    values = [
        decode(text, where=f"what rank {rank} compares")
        for rank, text in enumerate(ranks.gather_texts(text, LIMITS.header_bytes))
    ]
    expected = cast("dict[str, Value]", values[reference])
    parts: list[str] = []
    for group in odd:
        value = values[group[0]]
        texts = differences(expected, value) if isinstance(value, dict) else ["no map"]
        parts.append(f"{_named(group)}: {'; '.join(texts)}")
    raise JobError(f"the ranks are not alike; beside rank {reference}, {'. '.join(parts)}")


def shared_state(
    ranks: Ranks,
    step: int,
    state: Mapping[str, Tensor],
    check: Callable[[Sequence[TensorEntry]], None],
) -> tuple[int, dict[str, Tensor] | None]:
    """Give all ranks the state from which the run goes on.

    Args:
        step: rank 0's last committed one, or 0; of the others, not looked at.
        state: as this rank's program is: on rank 0 after that step, on the others as built.
        check: refuses entries that are not of a state of the program, before memory is taken.

    Returns:
        The step, and the state to put into the program: None where it needs none.

    Raises:
        UnlikeRanksError: this rank built another initial state; names the tensor.
        TranscriptError: what rank 0 sent is no state.
    """
    is_first = ranks.rank == 0
    said = ranks.from_first(step.to_bytes(_STEP_BYTES, "little") if is_first else None, _STEP_BYTES)
    step = int.from_bytes(said, "little")
    if step == 0:
        require_same_state(ranks, 0, state_entries(state))
        return 0, None
    entries = _entries(
        ranks.from_first(_text(state_entries(state)) if is_first else None, LIMITS.record_bytes), 0
    )
    if sum(entry.num_bytes for entry in entries) > LIMITS.state_bytes:
        raise TranscriptError("the state of rank 0", "is larger than a state can be")
    check(entries)
    received: dict[str, Tensor] = {}
    for entry in entries:
        if is_first:
            tensor = state[entry.name].detach().cpu().contiguous()
        else:
            tensor, _ = empty(entry)
            received[entry.name] = tensor
        ranks.share(tensor.reshape(-1))
        if digest("tensor", content(tensor)) != entry.digest:
            raise UnlikeRanksError(
                f"tensor {shown(entry.name)}: another one arrived than rank 0 sent"
            )
    return step, None if is_first else received


@dataclass(frozen=True, kw_only=True)
class StepAgreement:
    """What all ranks say after a step."""

    batches: list[Digest]  # by shard
    is_last: bool  # a rank was asked to stop, so all do


def agree(
    ranks: Ranks,
    step: int,
    entries: Sequence[TensorEntry],
    batches: Sequence[Digest],
    shards: int,
    *,
    stops: bool,
) -> StepAgreement:
    """Compare the states after a step, and tell all ranks the digests of each one's batches.

    Args:
        entries: of this rank's state.
        batches: digests of the batches of the shards that this rank computed.
        shards: of a step.
        stops: whether this rank was asked to stop after the step.

    Raises:
        UnlikeRanksError: a rank has another state; names it, and the first tensor that differs.
    """
    held = [len(shards_of(rank, ranks.size, shards)) for rank in range(ranks.size)]
    own = bytes([stops]) + state_root(entries) + b"".join(batches)
    head = 1 + DIGEST_BYTES
    texts = ranks.gather(own.ljust(head + DIGEST_BYTES * max(held), b"\0"))
    _require_same_roots(ranks, step, entries, [text[1:head] for text in texts])
    digests = [
        text[at : at + DIGEST_BYTES]
        for text, count in zip(texts, held, strict=True)
        for at in range(head, head + DIGEST_BYTES * count, DIGEST_BYTES)
    ]
    return StepAgreement(batches=digests, is_last=any(text[0] for text in texts))


def require_same_state(ranks: Ranks, step: int, entries: Sequence[TensorEntry]) -> None:
    """Check that all ranks have one state.

    Raises:
        UnlikeRanksError: a rank has another; names it, and the first tensor that differs.
    """
    _require_same_roots(ranks, step, entries, ranks.gather(state_root(entries)))


def _require_same_roots(
    ranks: Ranks, step: int, entries: Sequence[TensorEntry], roots: list[bytes]
) -> None:
    if len(set(roots)) == 1:
        return
    reference, odd = _odd(roots)
    texts = ranks.gather_texts(_text(entries), LIMITS.record_bytes)
    expected = _entries(texts[reference], reference)
    parts = [
        f"{_named(group)}: {diff(expected, _entries(texts[group[0]], group[0]))}" for group in odd
    ]
    raise UnlikeRanksError(
        f"step {step}: the ranks do not have one state; beside rank {reference}, {'. '.join(parts)}"
    )


def _odd(values: Sequence[bytes]) -> tuple[int, list[list[int]]]:
    """The rank that the others are compared with, and the ranks that differ from it, in groups of
    those that are alike. It is of the majority, or rank 0 where there is none."""
    (common, count), *_ = Counter(values).most_common(1)
    reference = values.index(common) if 2 * count > len(values) else 0
    groups: dict[bytes, list[int]] = {}
    for rank, value in enumerate(values):
        if value != values[reference]:
            groups.setdefault(value, []).append(rank)
    return reference, list(groups.values())


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _text(entries: Sequence[TensorEntry]) -> bytes:
    return encode([entry.to_value() for entry in entries])


def _entries(text: bytes, rank: int) -> tuple[TensorEntry, ...]:
    """The entries that a rank sent.

    Raises:
        TranscriptError: they are none.
    """
    where = f"the state of rank {rank}"
    values = decode(text, where=where)
    if not isinstance(values, list) or len(values) > LIMITS.tensors:
        raise TranscriptError(where, "expected a list of tensors")
    try:
        return tuple(map(TensorEntry.from_value, values))
    except UsageError as error:
        raise TranscriptError(where, str(error)) from None
