"""`veritrain referee`: decide disputes about a run, and sign verdicts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veritrain.cli import access, keys, output, serving, verdicts
from veritrain.cli.serving import Serving
from veritrain.errors import VeritrainError

if TYPE_CHECKING:
    from veritrain.encoding import Digest
    from veritrain.protocols.dispute.verdict import DisputeVerdict
    from veritrain.transcript import Header

_COLLECT_SECONDS = 30.0  # for a challenger to fetch the verdict, before --once ends
_SECONDS = click.FloatRange(0, min_open=True)


@click.command(
    "referee",
    short_help="Decide disputes about a run, and sign verdicts.",
    epilog="""\b
Examples:
  veritrain referee https://trainer.example:8470 --job job.py --key referee.key
  veritrain referee http://127.0.0.1:8470 --job job.py --key referee.key --port 8471 --once

Exit status of --once: 0 challenge refuted, 1 run rejected, 3 inconclusive.""",
)
@click.argument("run_url")
@click.option(
    "--job",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Your own copy of the job file.",
)
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The referee's key, see `veritrain keygen`.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="disputes",
    show_default=True,
    help="Folder for disputes and verdicts of this run.",
)
@click.option(
    "--challenger",
    "challengers",
    multiple=True,
    metavar="HEX",
    help="Public key or fingerprint of who may challenge; may be repeated. [default: everyone]",
)
@click.option(
    "--deadline-answer",
    type=_SECONDS,
    default=300.0,
    show_default=True,
    help="Seconds for an answer that a party has at hand.",
)
@click.option(
    "--deadline-replay",
    type=_SECONDS,
    default=86400.0,
    show_default=True,
    help="Seconds for an answer that needs a replay of the step.",
)
@click.option("--once", is_flag=True, help="End after the first verdict.")
@serving.options
@access.run_options
@output.json_option
def command(
    run_url: str,
    job: Path,
    key: Path,
    out: Path,
    challengers: tuple[str, ...],
    deadline_answer: float,
    deadline_replay: float,
    once: bool,
    serving: Serving,
    as_json: bool,
) -> int:
    """Decide disputes about the run at RUN_URL, which its trainer serves, until Ctrl-C.

    Challengers come to this address. Questions for the trainer go to RUN_URL, and nowhere else.
    Each verdict is printed, and written with its evidence to --out (ID.verdict.json, ID.bundle).
    The job is executed: of a dispute, one operator of one step. With --json the command prints an
    object when it is ready, and one for each verdict. Needs the extra `service`.
    """
    prepared = serving.prepared()
    from veritrain.job.load import load_job
    from veritrain.job.sources import require_job
    from veritrain.net.http_client import HttpClient
    from veritrain.protocols.dispute.judging.operator_judge import OperatorJudge
    from veritrain.protocols.dispute.referee import Deadlines
    from veritrain.protocols.dispute.versions import require_versions
    from veritrain.service.app import make_app
    from veritrain.service.question_forwarder import forward
    from veritrain.service.run_referee import RunReferee
    from veritrain.transcript.download import TOKEN_VARIABLE

    signer, token = keys.load(key), os.environ.get(TOKEN_VARIABLE)
    may = [keys.trusted(text, "--challenger") for text in challengers]
    HttpClient(run_url, token)  # an address that cannot be used is an error now
    over: list[tuple[Digest, DisputeVerdict, float]] = []
    with output.only_results_on_stdout() as stdout:
        loaded = load_job(job)
        header = _header(run_url, out)
        require_job(loaded, header.job, run_url)
        require_versions(header.environment)

        def on_verdict(dispute: Digest, verdict: DisputeVerdict) -> None:
            data = {**verdicts.data(verdict), "bundle": str(out / f"{dispute.hex()}.bundle")}
            output.emit(data, verdicts.lines(verdict), as_json=as_json, stream=stdout)
            over.append((dispute, verdict, time.monotonic()))

        referee = RunReferee(
            signer=signer,
            judge=OperatorJudge(loaded),
            header=header,
            deadlines=Deadlines(memory=deadline_answer, replay=deadline_replay),
            folder=out,
            challengers=may,
            forward=lambda dispute: forward(dispute, HttpClient(run_url, token), output.warn),
            on_verdict=on_verdict,
            report=output.warn,
        )

        def on_start(url: str) -> None:
            key = signer.public_key.hex()
            lines = [f"referee {signer.fingerprint} of the run at {run_url}, listening at {url}"]
            data = {"url": url, "run": header.digest, "fingerprint": signer.fingerprint, "key": key}
            output.emit(data, lines, as_json=as_json, stream=stdout)

        def is_over() -> bool:
            if not once or not over:
                return False
            dispute, _, when = over[0]
            return referee.is_collected(dispute) or time.monotonic() - when > _COLLECT_SECONDS

        app = make_app(
            referee=referee, token=prepared.token, limits=prepared.limits, log=prepared.log
        )
        prepared.serve(app, on_start, is_over)
    return verdicts.exit_code(over[0][1]) if once and over else 0


def _header(run_url: str, folder: Path) -> Header:
    """The header of the run; where the trainer cannot be reached, the one that was kept."""
    from veritrain.transcript.limits import LIMITS
    from veritrain.transcript.records import Header
    from veritrain.transcript.stores import open_store

    kept = folder / "header"
    try:
        data = open_store(run_url).read("header", LIMITS.header_bytes)
    except VeritrainError:
        if not kept.is_file():
            raise
        data = kept.read_bytes()
    return Header.from_bytes(data, where="header")
