"""How many bytes a run will take, from the encoders that will write it.

Every record is made as at the run's last step, where its numbers are longest. What cannot be known
before is which tensors will differ from one checkpoint to the next: that is taken from the first
    steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from veritrain.encoding import DIGEST_BYTES
from veritrain.errors import UsageError
from veritrain.transcript.files import CARRIED
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.packs import pack_layout
from veritrain.transcript.records import (
    SIGNATURE_BYTES,
    Checkpoint,
    Head,
    Header,
    Leaf,
    SignedHead,
    TensorEntry,
    encode_segment,
)

_DIGEST = bytes(DIGEST_BYTES)
_SIGNATURE = bytes(SIGNATURE_BYTES)
_FILES_PER_COMMIT = 4

State = tuple[TensorEntry, ...]


@dataclass(frozen=True, kw_only=True)
class DiskUse:
    """Bytes of a whole run. A checkpoint has its pack, its manifest and its signed head."""

    header: int
    carried: int  # source files, digests and forms of records
    leaf: int  # of each step
    log: int  # of roundings, of each step; 0 where the numerics have none
    first_checkpoint: int  # the initial state, with its leaf
    checkpoint: int  # each later one
    checkpoints: int  # how many, the first included
    total: int


def disk_use(
    header: Header,
    states: Sequence[State],
    loss: float,
    steps: int,
    checkpoint_every: int,
    *,
    log: int | None = None,
    carried: int = 0,
) -> DiskUse:
    """The bytes that a run of `steps` steps will take.

    Args:
        header: of the run; its digests may stand for others.
        states: after the steps 0, 1 and, where there are more, 2; sorted by name.
        loss: of one of the steps.
        steps: of the whole run.
        checkpoint_every: steps from one checkpoint to the next.
        log: bytes of a step's rounding log, where the numerics have one.
        carried: bytes of what the run carries beside its commitments.

    Raises:
        UsageError: the run would go over a limit of the format; says which.
    """
    checkpoints = 1 + -(-steps // checkpoint_every)
    _require_limits(steps, checkpoints, logs=0 if log is None else steps)
    rounding = None if log is None else _DIGEST
    leaf, count = _leaf(steps, loss, rounding), min(steps, checkpoint_every)
    segment = encode_segment([leaf] * count)
    initial = len(encode_segment([_leaf(0, None)])) + _commit(0, states[0], ())
    second = _commit(steps, states[-1], states[0])
    later = _commit(steps, states[-1], states[-2])
    head = len(header.to_bytes())
    leaves = len(segment) * steps // count
    return DiskUse(
        header=head,
        carried=carried,
        leaf=len(leaf.to_bytes()),
        log=log or 0,
        first_checkpoint=initial,
        checkpoint=later,
        checkpoints=checkpoints,
        total=head
        + carried
        + initial
        + leaves
        + second
        + later * (checkpoints - 2)
        + (log or 0) * steps,
    )


def _require_limits(steps: int, checkpoints: int, logs: int) -> None:
    files = 1 + len(CARRIED) + checkpoints * _FILES_PER_COMMIT + logs
    if steps + 1 > LIMITS.leaves:
        raise UsageError(f"steps: a run has at most {LIMITS.leaves - 1}, got {steps}")
    if files > LIMITS.files:
        raise UsageError(
            f"checkpoint_every: a run has at most {LIMITS.files} files, and this one would have "
            f"{files}; raise it"
        )


def _leaf(step: int, loss: float | None, rounding: bytes | None = None) -> Leaf:
    batch = _DIGEST if step else None
    return Leaf(
        step=step, state=_DIGEST, batch=batch, loss=loss, rounding=rounding, previous=_DIGEST
    )


def _commit(step: int, state: State, before: State) -> int:
    """The pack with what the state before does not hold, the manifest and the signed head."""
    known = {entry.digest for entry in before}
    sizes = {entry.digest: entry.num_bytes for entry in state if entry.digest not in known}
    manifest = Checkpoint(step=step, tensors=state, packs=(step,) * len(state))
    head = Head(
        run=_DIGEST,
        size=step + 1,
        root=_DIGEST,
        segment=_DIGEST,
        checkpoint=_DIGEST,
        previous=_DIGEST if step else None,
    )
    signed = SignedHead(head=head, signature=_SIGNATURE)
    return pack_layout(sizes).total_bytes + len(manifest.to_bytes()) + len(signed.to_bytes())
