"""`veritrain serve`: show a run to others over HTTP, and answer a referee's questions about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veritrain.cli import keys, output, serving, verdicts
from veritrain.cli.serving import Serving
from veritrain.errors import UsageError

if TYPE_CHECKING:
    from veritrain.protocols.dispute.verdict import DisputeVerdict
    from veritrain.service.backends import TrainerBackend

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(
    "serve",
    short_help="Show a run over HTTP; answer in disputes over it.",
    epilog="""\b
Examples:
  veritrain serve runs/a
  veritrain serve runs/a --host 0.0.0.0 --certificate c.pem --certificate-key k.pem
  veritrain serve runs/a --token-file token
  veritrain serve runs/a --job job.py --key trainer.key --referee 0b9c...e1

Others then: veritrain audit https://host:8470 --job job.py""",
)
@click.argument("run", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--job", type=_FILE, help="The job of the run: answer questions in disputes.")
@click.option("--key", type=_FILE, help="The key that signed the run.")
@click.option(
    "--referee",
    "referees",
    multiple=True,
    metavar="HEX",
    help="Public key or fingerprint of a referee to answer; may be repeated.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for what was signed in disputes; never lose it. [default: RUN.disputes]",
)
@serving.options
@output.json_option
def command(
    run: Path,
    job: Path | None,
    key: Path | None,
    referees: tuple[str, ...],
    state: Path | None,
    serving: Serving,
    as_json: bool,
) -> int:
    """Show RUN, a local folder, to others over HTTP, until Ctrl-C. They can change nothing.

    The files have the paths that they have in the folder; a run that is still being trained grows
    as it is shown. Prints its address when it is ready. Needs the extra `service`.

    With --job and --referee it answers that referee's questions in disputes over the run. For that
    it replays steps: the job is executed. Verdicts are printed as they come. Two different answers
    to one question convict the trainer. So each answer is kept in --state before it is sent, and
    one process at a time uses that folder.
    """
    prepared = serving.prepared()
    from veritrain.service.app import make_app
    from veritrain.service.served import ServedRun

    _require_all(job, key, referees, state)
    shown = ServedRun(run)
    with output.only_results_on_stdout() as stdout:

        def on_verdict(verdict: DisputeVerdict) -> None:
            data, lines = verdicts.data(verdict), verdicts.lines(verdict)
            output.emit(data, lines, as_json=as_json, stream=stdout)

        trainer = None if job is None else _trainer(run, job, key, referees, state, on_verdict)
        app = make_app(
            shown, trainer=trainer, token=prepared.token, limits=prepared.limits, log=prepared.log
        )

        def on_start(url: str) -> None:
            data = {"url": url, "run": str(run), "disputes": trainer is not None}
            also = "" if trainer is None else ", and answering in disputes"
            lines = [f"serving {output.escape(str(run))} at {url}{also}"]
            output.emit(data, lines, as_json=as_json, stream=stdout)

        prepared.serve(app, on_start)
    return 0


def _require_all(
    job: Path | None, key: Path | None, referees: tuple[str, ...], state: Path | None
) -> None:
    if job is not None and not referees:
        raise UsageError("--job: say with --referee whose questions are to be answered")
    if job is None and (key is not None or referees or state is not None):
        raise UsageError("--key, --referee and --state are for disputes, which need --job too")


def _trainer(
    run: Path,
    job: Path,
    key: Path | None,
    referees: tuple[str, ...],
    state: Path | None,
    on_verdict: Callable[[DisputeVerdict], None],
) -> TrainerBackend:
    from veritrain.job.load import load_job
    from veritrain.service.run_trainer import RunTrainer

    trusted = [keys.trusted(text, "--referee") for text in referees]
    folder = state if state is not None else run.with_name(f"{run.resolve().name}.disputes")
    if folder.resolve().is_relative_to(run.resolve()):
        raise UsageError("--state: expected a folder outside of the run")
    return RunTrainer(
        job=load_job(job),
        run=run,
        signer=keys.load(key),
        referees=trusted,
        state=folder,
        on_verdict=on_verdict,
        report=output.warn,
    )
