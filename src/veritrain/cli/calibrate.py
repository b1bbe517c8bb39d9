"""`veritrain calibrate`: the thresholds of a job with logged numerics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from veritrain.cli import output
from veritrain.errors import UsageError
from veritrain.runtime.progress import Stage, tell

if TYPE_CHECKING:
    from veritrain.training.calibration import Calibration

DISAGREED = 1
_MAX_RESULT_BYTES = 1 << 20


@click.command(
    "calibrate",
    short_help="Measure thresholds for logged numerics.",
    epilog="""\b
Examples:
  veritrain calibrate job.py
  veritrain calibrate job.py --steps 10 --safety 16
With other computers:
  veritrain calibrate job.py --write samples           # here
  veritrain calibrate job.py --against samples --json > there.json   # on each of them
  veritrain calibrate job.py --measured there.json     # here

Exit status: 0 all machines agree with the thresholds found, 1 some do not,
2 bad usage or a job that cannot be used.""",
)
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(1), metavar="N", default=3, show_default=True,
              help="Steps to do on each machine.")  # fmt: skip
@click.option("--safety", type=click.FloatRange(1), metavar="X", default=8.0, show_default=True,
              help="Threshold over largest gap.")  # fmt: skip
@click.option("--measured", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="Result of --against on another computer; may be given again.")  # fmt: skip
@click.option("--write", "write_to", type=click.Path(path_type=Path), metavar="FILE",
              help="Only do the steps here, and write logs and samples.")  # fmt: skip
@click.option("--against", type=click.Path(path_type=Path), metavar="FILE",
              help="Only do the steps here by such a file, and measure gaps.")  # fmt: skip
@click.option(
    "--reordered",
    is_flag=True,
    help="For --against: sums run the other way round, as on another machine.",
)
@click.option(
    "--thresholds", metavar="JSON", help="For --write and --against: others than the a-priori ones."
)
@output.json_option
def command(
    job: Path,
    steps: int,
    safety: float,
    measured: tuple[Path, ...],
    write_to: Path | None,
    against: Path | None,
    reordered: bool,
    thresholds: str | None,
    as_json: bool,
) -> int:
    """Measure how far machines lie apart on JOB, and print the thresholds for it.

    This computer plays several machines, by its thread counts and instruction sets. It writes
    nothing but what is asked for.
    """
    from veritrain.job.load import load_job
    from veritrain.training import calibration as calibrate

    if write_to is not None and against is not None:
        raise UsageError("--write and --against: give one of them")
    given = _map(thresholds or "{}", "--thresholds")
    with output.only_results_on_stdout(), output.progress():
        loaded = load_job(job)
        if write_to is not None:
            result: dict[str, Any] | Calibration = calibrate.write(
                loaded, write_to, steps=steps, thresholds=given
            )
        elif against is not None:
            result = calibrate.compare(
                loaded, against, steps=steps, thresholds=given, reordered=reordered
            )
        else:
            results = {str(path): _map(_text(path), str(path)) for path in measured}
            result = calibrate.calibrate(
                loaded, steps=steps, safety=safety, measured=results, on_machine=_tell
            )
    if isinstance(result, dict):
        output.emit(result, [json.dumps(result)], as_json=as_json)
        return 0
    output.emit(result.to_dict(), _lines(result), as_json=as_json)
    return DISAGREED if result.disagreements else 0


def _tell(done: int, total: int, machine: str) -> None:
    tell(Stage(doing=f"doing the steps as {machine}, machine {done + 1} of {total}"))


def _lines(found: Calibration) -> list[output.Line]:
    rows = [
        (item.name, str(item.samples), f"{item.gap:.3g}", _threshold(item.threshold), item.operator)
        for item in found.classes
    ]
    header = ("class", "values", "largest gap", "threshold", "where")
    lines: list[output.Line] = [*output.table(header, rows), ""]
    lines.append(f"machines    {', '.join(found.machines)}")
    lines.append("units       u * S, u the roundoff of the arithmetic, S the scale of the result")
    lines.append(f"log         {found.log_bytes[1]} bytes a step ({found.log_bytes[0]} a priori)")
    lines.append(f"job         thresholds={found.thresholds}")
    if found.disagreements_before:
        lines += ["", "While measuring, with other thresholds:"]
        lines += [(text, "yellow") for text in found.disagreements_before]
    if found.disagreements:
        lines += ["", *((text, "red") for text in found.disagreements)]
        return [*lines, ("DISAGREEMENT: raise --safety or --steps", "bold red")]
    return [*lines, "", (f"OK: all machines agree over {found.steps} steps", "bold green")]


def _threshold(value: float | None) -> str:
    return "a priori" if value is None else f"{value:g}"


def _text(path: Path) -> str:
    from veritrain.transcript.given import read_given

    return read_given(path, _MAX_RESULT_BYTES).decode(errors="replace")


def _map(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a JSON object")
    return value
