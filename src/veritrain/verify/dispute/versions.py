"""A judge runs the job's code on PyTorch: what one release calls next, another may not.

Under another release a true entry could look false, at just the place that a liar picks. So a judge decides nothing
about a run whose header names other releases than the judge has.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence

from veritrain.errors import InconclusiveError, UsageError
from veritrain.transcript.fields import differences
from veritrain.verify.dispute.judge import Answered, Ask, Case, Judge, Ruling

# Named by every header. They do not decide which operators a job calls.
_NOT_COMPARED = {"python", "numpy", "numba", "veritrain"}


class SameVersions:
    """A `Judge` that decides where PyTorch, and the packages that define the job's parts, are those of the run."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def next(self, case: Case, answered: Sequence[Answered]) -> Ruling | Ask:
        """See `Judge.next`."""
        problem = _problem(case.header.environment)
        if problem is not None:
            raise InconclusiveError(problem)
        return self._judge.next(case, answered)


def require_versions(environment: Mapping[str, str]) -> None:
    """Check that a judge here can decide about a run of this `environment`.

    Raises:
        UsageError: names the packages of which another release is installed.
    """
    problem = _problem(environment)
    if problem is not None:
        raise UsageError(problem)


def _problem(environment: Mapping[str, str]) -> str | None:
    """What is installed here in another release. A package that is missing here is not needed to judge,
    or the job says so; one that the header does not name is none of the job's, but for PyTorch."""
    named = {"torch", *environment} - _NOT_COMPARED
    own = {name: found for name in named if (found := _installed(name)) is not None}
    claimed = {name: _release(environment[name]) for name in own if name in environment}
    if own == claimed:
        return None
    return (
        "the run was recorded with other versions than those here "
        f"({'; '.join(differences(claimed, own))}): judge it with the recorded ones"
    )


def _installed(name: str) -> str | None:
    try:
        return _release(importlib.metadata.version(name))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _release(version: str) -> str:
    """Without the label of a build, as in `2.9.0+cpu`: it says for which machine."""
    return version.partition("+")[0]
