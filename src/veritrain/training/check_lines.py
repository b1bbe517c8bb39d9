"""The report of a check for people: lines of text, some with a style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from veritrain.runtime.progress import duration
from veritrain.runtime.text import Line, escape, one_line, table

if TYPE_CHECKING:
    from veritrain.training.check_report import (
        CheckReport,
        Cost,
        Estimates,
        Problem,
        RefusedOperator,
    )

_SHOWN_PLACES = 3
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


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
    return [f"{name:<10} {escape(text)}" for name, text in facts.items()]


def _estimate_facts(report: CheckReport, estimates: Estimates) -> dict[str, str]:
    disk = estimates.disk
    native = ", with PyTorch's own kernels for what is refused" if report.operators else ""
    return {
        "time": f"{duration(estimates.seconds)} for {report.steps} steps of "
        f"{duration(estimates.step_seconds)} (mean of {estimates.timed_steps}) and "
        f"{report.records} records of {duration(estimates.record_seconds)}, "
        f"without writing{native}",
        "memory": f"{_size(estimates.peak_bytes)} at most in this process, with Python, PyTorch and "
        f"the data set; the state has {_size(estimates.state_bytes)}",
        "disk": f"{_size(disk.total)}: {disk.checkpoints} checkpoints, the first of "
        f"{_size(disk.first_checkpoint)}, the others of {_size(disk.checkpoint)}, "
        f"{disk.leaf} bytes for each step, {_size(disk.carried)} of source files and digests of records"
        + (f", with a rounding log of {_size(disk.log)}" if disk.log else ""),
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
