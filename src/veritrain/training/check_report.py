"""What a check of a job found: what would be refused, what else is wrong, and what a run would cost.

A report has no truth value on purpose; `is_ok` and `require_ok` say what they mean.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import NoReturn

from veritrain.encoding import Value
from veritrain.errors import JobError, NumericsError, UnsupportedOperatorError
from veritrain.runtime.text import plain
from veritrain.training.check_lines import check_lines
from veritrain.transcript.sizes import DiskUse


@dataclass(frozen=True, kw_only=True)
class RefusedOperator:
    """One operator (or optimiser) without a rule, in one place of the job.

    Attributes:
        operator: PyTorch's name, "aten._fft_r2c.default" for example.
        where: the module's path, "backward of" one, or the part of the job.
        line: file and line of the job's own code that called it; None in the backward pass.
        arguments: dtype and shape of the tensors that it met first.
        times: how often it ran there in one step; what is not part of a step, in all.
        error: the message that a run would end with.
    """

    operator: str
    where: str
    line: str | None
    arguments: str
    times: int
    error: NumericsError

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return remedy(self.operator, self.error)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Anything else that would end a run, or have its audit fail. `part` is the part of the job."""

    part: str
    message: str
    error: Exception | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Time that an operator, or the operators of a place, took in one step: calls and seconds."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """What the whole run would take on this machine.

    Attributes:
        step_seconds: mean of `timed_steps` steps: fetching the batch, computing and hashing.
        record_seconds: to fetch and hash one record, once for each before the first step.
        seconds: of the whole run, without writing.
        peak_bytes: most memory that this process held while it had one program; Python, PyTorch
            and the data set are in it, worker processes are not.
        state_bytes: all tensors of the state after the last step done here.
        disk: what the run writes.
        operators, places: what took longest in one step, the longest first, forward and backward
            of a module together.
    """

    step_seconds: float
    timed_steps: int
    record_seconds: float
    seconds: float
    peak_bytes: int
    state_bytes: int
    disk: DiskUse
    operators: tuple[Cost, ...]
    places: tuple[Cost, ...]

    def to_dict(self) -> dict[str, Value]:
        """See `CheckReport.to_dict`."""
        plain = asdict(self)
        return {**plain, "operators": [*plain["operators"]], "places": [*plain["places"]]}


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The result of `veritrain.check`.

    Attributes:
        numerics: the job's.
        steps: the job's.
        operators: what has no rule, in the order in which it was met.
        problems: what else is wrong.
        records_checked, records: how many records of the data set were looked at, of how many.
        estimates: None where no whole step could be computed. With refused operators they include
            PyTorch's own kernels for those.
    """

    numerics: str
    steps: int
    operators: tuple[RefusedOperator, ...]
    problems: tuple[Problem, ...]
    records_checked: int
    records: int
    estimates: Estimates | None

    def __str__(self) -> str:
        """As `veritrain check` prints it."""
        return plain(check_lines(self, lambda problem: problem.message))

    def __bool__(self) -> NoReturn:
        raise TypeError("a report has no truth value; use .is_ok or .require_ok()")

    @property
    def is_ok(self) -> bool:
        """Was nothing found?"""
        return not self.operators and not self.problems

    def require_ok(self) -> None:
        """Return only if nothing was found.

        Raises:
            UnsupportedOperatorError: operators would be refused; names the first.
            JobError: something else is wrong; names the first.
        """
        if self.operators:
            first = self.operators[0]
            raise UnsupportedOperatorError(f"{first.where}: {first.error}")
        if self.problems:
            raise JobError(f"{self.problems[0].part}: {self.problems[0].message}")

    def to_dict(self) -> dict[str, Value]:
        """The report for programs: text, numbers, lists and maps only."""
        operators: list[Value] = [
            {
                "operator": item.operator,
                "where": item.where,
                "line": item.line,
                "arguments": item.arguments,
                "times": item.times,
                "message": str(item.error),
                "remedy": item.remedy,
            }
            for item in self.operators
        ]
        problems: list[Value] = [
            {"part": item.part, "message": item.message} for item in self.problems
        ]
        estimates = None if self.estimates is None else self.estimates.to_dict()
        return {
            "ok": self.is_ok,
            "numerics": self.numerics,
            "steps": self.steps,
            "operators": operators,
            "problems": problems,
            "records_checked": self.records_checked,
            "records": self.records,
            "estimates": estimates,
        }


def remedy(operator: str, error: NumericsError) -> str:
    """What to do about a refused operator: the last part of the error's message."""
    text = str(error).removeprefix(f"operator {operator} ")
    for mark in ("; ", ": "):
        if mark in text:
            return text.partition(mark)[2]
    return text
