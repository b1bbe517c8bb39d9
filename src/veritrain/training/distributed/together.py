"""What a rank does with the others in the course of a run, in the order in which all ranks do it.

Rank 0 records the run; `follow` is what every other rank does. Both hold a `Together`.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from veritrain.encoding import Digest
from veritrain.job.data import Batches, shard_digests
from veritrain.job.job import Job
from veritrain.job.state import capture, refuse_nan, require_fit, restore
from veritrain.job.step import Program, run_step
from veritrain.training.distributed import agreement
from veritrain.training.distributed.ranks import Ranks
from veritrain.training.distributed.reduction import RankReduction, shards_of
from veritrain.training.fresh import Fresh
from veritrain.training.recorder import TerminatedError
from veritrain.transcript import TensorEntry, state_entries

if TYPE_CHECKING:
    from veritrain.job.shards import Reduction


class Together:
    """One rank's part in a run; the `Companions` of a recorder on rank 0.

    Args:
        ranks: who takes part.
        job: what they train. All ranks compare it now.

    Raises:
        JobError: a rank has another job, numerics or packages, or there are more ranks than shards;
            names what differs, and whose it is.
        LostRankError: a rank is gone; so do all methods.
    """

    def __init__(self, ranks: Ranks, job: Job) -> None:
        agreement.require_same_job(ranks, job)
        self._ranks = ranks
        self._job = job
        self._stop = _Stop()

    @property
    def shards(self) -> range:
        """See `Companions.shards`."""
        return shards_of(self._ranks.rank, self._ranks.size, self._job.shards)

    def reduction(self, program: Program) -> Reduction:
        """See `Companions.reduction`."""
        return RankReduction(self._ranks, program.model)

    def start(self, program: Program, step: int, environment: Mapping[str, str] | None) -> int:
        """Bring all programs into the state of rank 0's.

        Args:
            program: on rank 0 in the state after `step`, on the others as built.
            step: rank 0's last committed one, or 0.
            environment: the header's; None but on rank 0.

        Returns:
            The step after which the run goes on.

        Raises:
            JobError: a rank has other packages; names them.
            UnlikeRanksError: a rank built another initial state; names the tensor.
        """
        agreement.require_same_packages(self._ranks, environment)
        check = partial(require_fit, program)
        step, state = agreement.shared_state(self._ranks, step, capture(program), check)
        if state is not None:
            restore(program, state)
        self._stop.waits = True
        return step

    def agree(
        self, step: int, entries: Sequence[TensorEntry], batches: Sequence[Digest]
    ) -> list[Digest]:
        """See `Companions.agree`."""
        outcome = agreement.agree(
            self._ranks,
            step,
            entries,
            batches,
            self._job.shards,
            stops=self._stop.asked is not None,
        )
        if outcome.is_last and self._stop.asked is None:
            self._stop.asked = signal.SIGTERM
        return outcome.batches

    def end_if_asked(self) -> None:
        """See `Companions.end_if_asked`."""
        if self._stop.asked is not None:
            self._stop.end(self._stop.asked)

    @contextmanager
    def stoppable(self) -> Generator[None]:
        """Within it, SIGINT and SIGTERM to any rank end all ranks after the step that is under way.

        Before the first step, and the second time, they end this rank at once.
        """
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._stop.hear) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Stop:
    """Whether this rank was asked to stop. A signal waits once steps have begun."""

    def __init__(self) -> None:
        self.waits = False
        self.asked: signal.Signals | None = None

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        if not self.waits or self.asked is not None:
            self.end(signal.Signals(number))
        self.asked = signal.Signals(number)

    def end(self, number: signal.Signals) -> None:
        """Raise what a signal stands for."""
        if number is signal.SIGINT:
            raise KeyboardInterrupt
        raise TerminatedError("terminated by SIGTERM")


def follow(together: Together, job: Job, *, processes: int, device: str) -> None:
    """Compute this rank's shards of every step, and write nothing: what ranks but the first do.

    Args:
        together: with the others.
        job: what to train.
        processes: that prepare batches.
        device: where steps are computed.

    Raises:
        JobError, NumericsError: as `Recorder`.
        UnlikeRanksError: the ranks do not have one state after a step.
        KeyboardInterrupt: a rank was asked to stop.
    """
    batches = Batches(job, shards=together.shards)
    program = Program.build(job, device=device)
    fresh = Fresh(program)
    last = together.start(program, 0, None)
    reduction = together.reduction(program)
    with closing(batches.iterate(last + 1, job.steps, processes)) as ahead:
        for step, batch in enumerate(ahead, last + 1):
            digests = shard_digests(batch, len(together.shards))
            run_step(program, step, batch, reduction=reduction, after_shard=fresh.after_shard)
            state = capture(program)
            refuse_nan(state, step)
            fresh.require_kept(step)
            together.agree(step, state_entries(state), digests)
            together.end_if_asked()
