"""What someone without the job can check of a bundle: all but what the judge finds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NoReturn

from veritrain.encoding import Digest
from veritrain.errors import InconclusiveError
from veritrain.verify.dispute.check import check
from veritrain.verify.dispute.judge import Answered, Case
from veritrain.verify.dispute.verdict import Verdict


def check_unjudged(
    data: bytes, *, referees: Collection[bytes], run: Digest | None = None
) -> Verdict:
    """The verdict in a bundle, where it follows without a judge: somebody resigned, was silent, said two
    things, or sent what breaks a rule. Arguments and errors are those of `check`.

    Raises:
        InconclusiveError: the dispute went as it should up to where a judge is needed; what the
            judge found was not recomputed.
    """
    return check(data, judge=Absent(), referees=referees, run=run)


class Absent:
    """A judge that cannot say anything."""

    def next(self, case: Case, answered: Sequence[Answered]) -> NoReturn:
        """See `Judge.next`."""
        raise InconclusiveError(
            "the signatures and the order of the dispute are right, but what one operator comes to was "
            "not recomputed: that needs the job"
        )
