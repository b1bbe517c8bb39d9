"""A judge runs the job's code on PyTorch: what one release calls next, another may not.

Under another release a true entry could look false, at just the place that a liar picks. So a judge
decides nothing about a run whose header names other releases than the judge has.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from typing import cast

from veritrain.errors import InconclusiveError, UsageError
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Judge, Ruling
from veritrain.transcript.fields import differences

# Named by every header. They do not decide which operators a job calls.
_NOT_COMPARED = {"python", "numpy", "numba", "veritrain"}


class SameVersions:
    """A `Judge` that decides only with the run's releases of PyTorch and of the job's packages."""

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
    """Which packages are installed here in another release, as a sentence; None if there are none.

    A package that is missing here is not needed to judge, or the job says so. A package that the
    header does not name is none of the job's; PyTorch always is.
    """
    installed = _installed()
    named = {"torch", *environment} - _NOT_COMPARED
    found = {name: installed.get(_normal(name)) for name in named}
    own = {name: version for name, version in found.items() if version is not None}
    claimed = {name: _release(environment[name]) for name in own if name in environment}
    if own == claimed:
        return None
    return (
        "the run was recorded with other versions than those here "
        f"({'; '.join(differences(claimed, own))}): judge it with the recorded ones"
    )


def _installed() -> dict[str, str]:
    """Releases of the packages that are installed here, by name. One look serves all names."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = cast("str | None", distribution.metadata["Name"])  # none in a broken one
        if name is not None:
            found.setdefault(_normal(name), _release(distribution.version))
    return found


def _normal(name: str) -> str:
    """The one form of a distribution's name: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _release(version: str) -> str:
    """Without the label of a build, as in `2.9.0+cpu`: it says for which machine."""
    return version.partition("+")[0]
