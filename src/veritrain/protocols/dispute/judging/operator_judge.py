"""The judge of a dispute over real steps: the checks in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from veritrain.encoding import encode
from veritrain.errors import InconclusiveError
from veritrain.job.job import Job
from veritrain.job.sources import commitment
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Ruling
from veritrain.protocols.dispute.judging.form import initial_state, malformed
from veritrain.protocols.dispute.judging.inputs import false_inputs
from veritrain.protocols.dispute.judging.judged_case import (
    CaughtError,
    JudgedCase,
    OpeningNeededError,
)
from veritrain.protocols.dispute.judging.leaves import outcome_is_the_leaf, rounding_log_is_named
from veritrain.protocols.dispute.judging.next_call import false_structure
from veritrain.protocols.dispute.judging.parts import false_bookkeeping, false_layout, false_part
from veritrain.protocols.dispute.judging.reads import false_position, false_read
from veritrain.protocols.dispute.judging.results import false_result

# The first check with a ruling decides. A check may rely on what those before it found in order.
_CHECKS: tuple[Callable[[JudgedCase], Ruling | None], ...] = (
    rounding_log_is_named,
    malformed,
    outcome_is_the_leaf,
    initial_state,
    false_inputs,
    false_structure,
    false_read,
    false_position,
    false_bookkeeping,
    false_layout,
    false_part,
    false_result,
)


class OperatorJudge:
    """A `Judge` who needs neither data set nor a big machine.

    With the job it decides all that can be decided. Without, it decides what follows from the
    entries and from computing an operator again, whose settings are in the header. What the job's
    code says is INCONCLUSIVE then.
    """

    def __init__(self, job: Job | None) -> None:
        self._job = job
        self._commitment = None if job is None else encode(commitment(job))

    def next(self, case: Case, answered: Sequence[Answered]) -> Ruling | Ask:
        """See `Judge.next`."""
        if self._commitment is not None and encode(case.header.job) != self._commitment:
            raise InconclusiveError("the run is of another job than the referee's")
        judged = JudgedCase(self._job, case, answered)
        try:
            for check in _CHECKS:
                ruling = check(judged)
                if ruling is not None:
                    return ruling
        except OpeningNeededError as needed:
            return needed.ask
        except CaughtError as caught:
            return caught.ruling
        raise InconclusiveError("nothing in which the entries differ was found false")
