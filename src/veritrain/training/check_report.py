"""What a check of a job found: what would be refused, what else is wrong, and what a run would
cost.

A report has no truth value on purpose; `is_ok` and `require_ok` say what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

from veritrain.encoding import Value
from veritrain.errors import JobError, NumericsError, UnsupportedOperatorError
from veritrain.runtime.progress import duration
from veritrain.runtime.text import Line, escape, one_line, plain, table
from veritrain.transcript.sizes import DiskUse

_SHOWN_PLACES = 3
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


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
class ShardNeeds:
    """What a process needs that computes one shard of a step.

    Attributes:
        count: shards of a step.
        records: of the data set in each.
        peak_bytes: most memory that this process held up to the end of the first shard, with
            Python, PyTorch and the data set, before the optimiser made its tensors.
        gradient_bytes: of all parameters that require one: what a process sends, or keeps waiting.
    """

    count: int
    records: int
    peak_bytes: int
    gradient_bytes: int


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
        shards: what one shard takes; None where the job has one, or none could be computed.
    """

    numerics: str
    steps: int
    operators: tuple[RefusedOperator, ...]
    problems: tuple[Problem, ...]
    records_checked: int
    records: int
    estimates: Estimates | None
    shards: ShardNeeds | None = None

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
            "shards": None if self.shards is None else {**asdict(self.shards)},
        }


def remedy(operator: str, error: NumericsError) -> str:
    """What to do about a refused operator: the last part of the error's message."""
    text = str(error).removeprefix(f"operator {operator} ")
    for mark in ("; ", ": "):
        if mark in text:
            return text.partition(mark)[2]
    return text


def check_lines(report: CheckReport, described: Callable[[Problem], str]) -> list[Line]:
    """What a check found, line by line; `described` puts a problem into words."""
    lines: list[Line] = []
    if report.operators:
        lines += [*_operator_lines(report.operators), ""]
    if report.problems:
        for problem in report.problems:
            lines.append((f"{problem.part}: {one_line(described(problem))}", "red"))
        lines.append("")
    lines += _facts(report)
    if report.estimates is not None:
        lines += ["", *_cost_lines("operator", report.estimates.operators)]
        lines += ["", *_cost_lines("where", report.estimates.places)]
    return [*lines, "", _verdict(report)]


def _operator_lines(operators: Sequence[RefusedOperator]) -> list[Line]:
    """One line for each operator, remedy and line of the job, with the first few of its places."""
    groups: dict[tuple[str, str, str | None], list[RefusedOperator]] = {}
    for item in operators:
        groups.setdefault((item.operator, item.remedy, item.line), []).append(item)
    rows = [
        (
            items[0].operator,
            _places(items),
            items[0].arguments,
            str(sum(item.times for item in items)),
            items[0].remedy,
        )
        for items in groups.values()
    ]
    names = {item.operator for item in operators}
    title = f"{_count(len(names), 'operator')} would be refused"
    return [
        (title, "bold"),
        "",
        *table(("operator", "where", "on", "times", "what to do"), rows),
    ]


def _places(items: Sequence[RefusedOperator]) -> str:
    shown = ", ".join(item.where for item in items[:_SHOWN_PLACES])
    more = len(items) - _SHOWN_PLACES
    shown += f" and {more} more" if more > 0 else ""
    line = items[0].line
    return shown if line is None else f"{shown} ({Path(line).name})"


def _facts(report: CheckReport) -> list[Line]:
    promise = "the same bits on every machine"
    if report.numerics == "native":
        promise = "nothing is promised across machines, and an audit accepts nothing"
    elif report.operators:
        promise = "but for what is refused"
    facts = {
        "numerics": f"{report.numerics}: {promise}",
        "data set": f"{report.records_checked} of {report.records} records looked at",
    }
    if report.estimates is None:
        facts["estimates"] = "none: no whole step could be done"
    else:
        facts |= _estimate_facts(report, report.estimates)
    if (needs := report.shards) is not None:
        facts["shards"] = (
            f"{needs.count} of {needs.records} records each; up to the end of the first one "
            f"{_size(needs.peak_bytes)} of memory, its gradient has {_size(needs.gradient_bytes)}"
        )
    return [f"{name:<10} {escape(text)}" for name, text in facts.items()]


def _estimate_facts(report: CheckReport, estimates: Estimates) -> dict[str, str]:
    disk = estimates.disk
    native = ", with PyTorch's own kernels for what is refused" if report.operators else ""
    return {
        "time": (
            f"{duration(estimates.seconds)} for {report.steps} steps of "
            f"{duration(estimates.step_seconds)} (mean of {estimates.timed_steps}) and "
            f"{report.records} records of {duration(estimates.record_seconds)}, "
            f"without writing{native}"
        ),
        "memory": (
            f"{_size(estimates.peak_bytes)} at most in this process, with Python, PyTorch and "
            f"the data set; the state has {_size(estimates.state_bytes)}"
        ),
        "disk": (
            f"{_size(disk.total)}: {disk.checkpoints} checkpoints, the first of"
            f" {_size(disk.first_checkpoint)}, the others of {_size(disk.checkpoint)}, {disk.leaf}"
            f" bytes for each step, {_size(disk.carried)} of source files and digests of records"
            + (f", with a rounding log of {_size(disk.log)}" if disk.log else "")
        ),
    }


def _cost_lines(title: str, costs: Sequence[Cost]) -> list[Line]:
    rows = [(cost.name, str(cost.calls), duration(cost.seconds)) for cost in costs]
    return table((title, "calls", "time in a step"), rows)


def _verdict(report: CheckReport) -> Line:
    if report.is_ok:
        return "OK: nothing would be refused", "bold green"
    names = {item.operator for item in report.operators}
    found = [_count(len(names), "operator")] if names else []
    found += [_count(len(report.problems), "problem")] if report.problems else []
    return f"REFUSED: {' and '.join(found)}", "bold red"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(count: int) -> str:
    for factor, unit in _UNITS:
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
