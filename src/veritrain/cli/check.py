"""`veritrain check`: what would be refused, and what a run would cost, before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from veritrain.cli import output
from veritrain.cli.error_lines import describe

if TYPE_CHECKING:
    from veritrain.training.check_report import Problem

REFUSED = 1


@click.command(
    "check",
    short_help="Find out what would be refused, and what a run takes.",
    epilog="""\b
Examples:
  veritrain check job.py
  veritrain check job.py --records 50000
  veritrain check job.py --json

Exit status: 0 nothing would be refused, 1 something would,
2 bad usage or a job file that cannot be loaded.""",
)
@click.argument("job", type=click.Path(path_type=Path))
@click.option(
    "--records",
    type=click.IntRange(1),
    metavar="N",
    default=1000,
    show_default=True,
    help="Records of the data set to look at, evenly spread.",
)
@output.json_option
def command(job: Path, records: int, as_json: bool) -> int:
    """Find out, before a long run, what would be refused in JOB and what the run would take.

    It does two steps on the real model and data, and the second one again by a program built anew.
    It writes nothing.
    """
    from veritrain.job.load import load_job
    from veritrain.training.check_report import check_lines
    from veritrain.training.checker import check

    with output.only_results_on_stdout(), output.progress():
        report = check(load_job(job), records=records)
    problems = [{"part": item.part, "message": _described(item)} for item in report.problems]
    lines = check_lines(report, _described)
    output.emit({**report.to_dict(), "problems": problems}, lines, as_json=as_json)
    return 0 if report.is_ok else REFUSED


def _described(problem: Problem) -> str:
    """The message; with the line of the job that raised, where one did."""
    return problem.message if problem.error is None else describe(problem.error)
