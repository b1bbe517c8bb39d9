"""The claims of a party that replays: its leaves, and what replays of the disputed step show.

Trainer and challenger use the same code; they differ in their leaves alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from veritrain.encoding import Value
from veritrain.errors import FieldError
from veritrain.job.job import Job
from veritrain.protocols.dispute.claims import Entries
from veritrain.protocols.dispute.messages import Opening, TraceClaim
from veritrain.replay.trace.replayed_step import ALONE, ReplayedStep, Traces
from veritrain.replay.trace.requests import read_request
from veritrain.transcript import Leaf, Transcript


class ReplayedClaims:
    """Answers for one side of a dispute; `Claims` of a `DisputeParty`.

    A referee's question may ask for anything, so each answer raises `FieldError` where there is
    nothing of the kind.

    Args:
        job: the party's own.
        transcript: the run in dispute.
        leaves: encoded; those under the challenged head for its trainer, up to the challenge's for
            a challenger.
        traces: where the computed traces are kept; None for in memory alone.
        replaying: is held while the job computes; what is at hand is opened without it. Reentrant.
    """

    def __init__(
        self,
        job: Job,
        transcript: Transcript,
        leaves: Sequence[bytes],
        *,
        traces: Traces | None = None,
        replaying: AbstractContextManager[Any, Any] = ALONE,
    ) -> None:
        self._job = job
        self._transcript = transcript
        self._traces = traces
        self._replaying = replaying
        self._encoded = leaves
        self._leaves = Entries(leaves)
        self._replays: dict[int, _Replay] = {}  # of one step at most

    def own_leaf(self, step: int) -> Leaf:
        """See `ReplayedStep.own_leaf`."""
        with self._replaying:
            return self.replayed(step).own_leaf()

    def with_leaves(self, leaves: Sequence[bytes]) -> ReplayedClaims:
        """The same party with other leaves; what it replayed is not replayed again."""
        made = ReplayedClaims(
            self._job, self._transcript, leaves, traces=self._traces, replaying=self._replaying
        )
        made._replays = self._replays
        return made

    @property
    def leaves(self) -> Entries:
        """What the party is bound to."""
        return self._leaves

    def leaf(self, index: int) -> Opening:
        """See `Claims.leaf`."""
        if index >= len(self._encoded):
            raise FieldError(f"this party claims the leaves 0 to {len(self._encoded) - 1}")
        return self._leaves.opening(index)

    def trace(self, step: int) -> TraceClaim:
        """See `Claims.trace`."""
        return self._replay(step).trace().claim()

    def operator(self, step: int, index: int) -> Opening:
        """See `Claims.operator`."""
        entries = self._replay(step).trace()
        if index >= entries.commitment.size:
            raise FieldError(f"the trace of step {step} has no entry {index}")
        return entries.opening(index)

    def detail(self, step: int, index: int, what: Value) -> Value:
        """See `Claims.detail`."""
        request = read_request(what)
        with self._replaying:
            return self.replayed(step).open(index, request)

    def replayed(self, step: int) -> ReplayedStep:
        """A step of the run; the one asked for last stays at hand."""
        return self._replay(step).step

    def _replay(self, step: int) -> _Replay:
        last = len(self._transcript.leaves) - 1
        if step > last:
            raise FieldError(f"the run has steps 0 to {last}")
        if step not in self._replays:
            self._replays.clear()
            self._replays[step] = _Replay(
                ReplayedStep(self._job, self._transcript, step, self._traces, self._replaying)
            )
        return self._replays[step]


class _Replay:
    """A replayed step, and the commitment to its trace once it was needed."""

    def __init__(self, step: ReplayedStep) -> None:
        self.step = step
        self._trace: Entries | None = None

    def trace(self) -> Entries:
        if self._trace is None:
            self._trace = Entries(self.step.entries)
        return self._trace
