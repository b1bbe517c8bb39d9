"""`veritrain audit`: recompute a run and give a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from veritrain.cli import access, keys, output, params
from veritrain.runtime.progress import Step, tell

if TYPE_CHECKING:
    from veritrain.replay.report import AuditReport

_STYLES = {"accepted": "bold green", "rejected": "bold red", "inconclusive": "bold yellow"}
_CHECK_STYLES = {"passed": "", "failed": "red", "inconclusive": "yellow", "not run": "dim"}


@click.command(
    "audit",
    short_help="Recompute a run and give a verdict.",
    epilog="""\b
Examples:
  veritrain audit runs/a --job job.py
  veritrain audit runs/a --job job.py --steps 100:200
  veritrain audit runs/a --job job.py --sample 3 --processes 2
  veritrain audit runs/a --job job.py --key 0b9c...e1 --json
  veritrain audit https://host:8470 --job job.py --sample 3

Exit status: 0 accepted, 1 rejected, 3 inconclusive,
2 bad usage or a folder that is not a readable run.""",
)
@click.argument("run", type=params.Run())
@click.option(
    "--job", required=True, type=click.Path(path_type=Path), help="Your own copy of the job file."
)
@click.option("--steps", type=params.StepRange(), help="Recompute these steps only, both included.")
@click.option(
    "--sample",
    type=click.IntRange(1),
    metavar="N",
    help="Recompute N intervals between checkpoints, drawn at random now.",
)
@params.processes(1, "Processes that recompute intervals.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where these are: processes of this machine, or tasks of a Ray cluster that you trust.",
)
@click.option(
    "--device",
    default="cpu",
    metavar="NAME",
    help="cpu, cuda or cuda:N; exact numerics gives the same bits on each.",
)
@click.option("--key", metavar="HEX", help="Public key or fingerprint of the trainer you expect.")
@click.option(
    "--stored",
    type=click.Choice(["all", "needed"]),
    help=(
        "With --steps or --sample: check all stored states, or those that are needed. "
        "[default: needed at an HTTP address, all elsewhere]"
    ),
)
@access.options
@output.json_option
def command(
    run: str,
    job: Path,
    steps: tuple[int, int] | None,
    sample: int | None,
    processes: int,
    engine: Literal["local", "ray"],
    device: str,
    key: str | None,
    stored: Literal["all", "needed"] | None,
    as_json: bool,
) -> int:
    """Recompute RUN, a folder, HTTP address or fsspec URL, and say ACCEPTED, REJECTED or
    INCONCLUSIVE.

    It executes the job file: use your own copy, or read it first. Nothing in RUN is executed.
    """
    from veritrain.job.load import load_job
    from veritrain.job.step import find_device
    from veritrain.replay.auditor import audit

    trusted = keys.trusted(key) if key is not None else None
    find_device(device)  # before the job reads its data
    with output.only_results_on_stdout(), output.progress():
        loaded = load_job(job)
        total = steps[1] - steps[0] + 1 if steps is not None else loaded.steps
        done = 0

        def on_step(step: int) -> None:
            nonlocal done
            done += 1
            tell(Step(doing="recomputed step", number=step, done=done, total=max(done, total)))

        report = audit(
            run,
            loaded,
            steps=steps,
            sample=sample,
            processes=processes,
            engine=engine,
            device=device,
            trusted_key=trusted,
            stored=stored,
            on_step=on_step,
        )
    output.emit(report.to_dict(), _lines(report), as_json=as_json)
    return report.verdict.exit_code


def _lines(report: AuditReport) -> list[output.Line]:
    from veritrain.replay.report import check_line

    checks = [(check_line(check), _CHECK_STYLES[check.outcome.value]) for check in report.checks]
    facts = [(line, output.diff_style(line)) for line in report.facts()]
    return [*checks, "", *facts, (report.verdict_line(), _STYLES[report.verdict.value])]
