"""`veritrain diff`: what differs between the job of a run and one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from veritrain.cli import access, output, params

if TYPE_CHECKING:
    from veritrain.replay.compare import Comparison
    from veritrain.transcript import Transcript

DIFFERENT = 1


@click.command(
    "diff",
    short_help="Say how a run's job differs from one's own.",
    epilog="""\b
Examples:
  veritrain diff runs/a job.py
  veritrain diff runs/a job.py --data
  veritrain diff https://host:8470 job.py --json

Exit status: 0 the same job, 1 another one,
2 bad usage or a folder that is not a readable run.""",
)
@click.argument("run", type=params.Run())
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--data", is_flag=True, help="Compare the data sets too: every record is read.")
@access.options
@output.json_option
def command(run: str, job: Path, data: bool, as_json: bool) -> int:
    """Say how the job of RUN differs from JOB: settings, source files, numerics, versions.

    It executes JOB, recomputes no step and looks at no signature: `veritrain audit` judges.
    Versions are no part of the job and are shown only. Source files are shown as a diff where RUN
    carries them.
    """
    from veritrain.job.load import load_job
    from veritrain.replay.compare import compare
    from veritrain.transcript import Transcript

    with output.only_results_on_stdout(), output.progress():
        transcript = Transcript.open(run)
        found = compare(transcript, load_job(job), data=data)
    output.emit(_data(found), _lines(found, transcript), as_json=as_json)
    return 0 if found.is_same else DIFFERENT


def _data(found: Comparison) -> dict[str, object]:
    return {
        "same": found.is_same,
        "settings": found.settings,
        "sources": None if found.sources is None else found.sources.words,
        "diff": [] if found.sources is None else [*found.sources.diff],
        "numerics": found.numerics,
        "versions": found.versions,
        "data_compared": found.has_dataset,
        "data": found.dataset,
    }


def _lines(found: Comparison, transcript: Transcript) -> list[output.Line]:
    parts = {
        "settings": found.settings,
        "sources": None if found.sources is None else found.sources.words,
        "numerics": found.numerics,
        "versions": found.versions,
        "data set": found.dataset,
    }
    lines: list[output.Line] = []
    for name, words in parts.items():
        is_left_out = name == "data set" and not found.has_dataset
        text = words or ("not compared; give --data" if is_left_out else "the same")
        style = "yellow" if words and name == "versions" else "red" if words else ""
        lines.append((f"{name:<10} {output.one_line(text)}", style))
        if name == "sources" and found.sources is not None and found.sources.diff:
            lines += ["", *((line, output.diff_style(line)) for line in found.sources.diff), ""]
    if found.is_same:
        return [*lines, ("SAME JOB", "bold green")]
    names = [name for name, words in parts.items() if words and name != "versions"]
    return [
        *lines,
        (
            f"ANOTHER JOB: {', '.join(names)} of {output.escape(transcript.location)} differ",
            "bold red",
        ),
    ]
