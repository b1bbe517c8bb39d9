"""`veritrain train`: train a job and record it."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

import click

from veritrain.cli import keys, output
from veritrain.errors import StorageError, VeritrainError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM


class StoppedRunError(VeritrainError):
    """Training stopped before its end. What is recorded is on disk; the message says how to go on."""

    def __init__(self, why: str, how: str, exit_code: int) -> None:
        super().__init__(f"{why}, {how}")
        self.exit_code = exit_code


@click.command(
    "train",
    short_help="Train a job, with every step committed to and signed.",
    epilog="""\b
Examples:
  veritrain train job.py --out runs/a
  veritrain train job.py --out runs/a --resume
  veritrain train job.py --out runs/a --workers 4 --json

Ctrl-C loses nothing: the run goes on with --resume, to the
same digest as without the interruption.""",
)
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, metavar="RUN", help="Folder or fsspec URL to make.")
@click.option("--resume", is_flag=True, help="Go on after the last commit of RUN.")
@click.option(
    "--workers", type=click.IntRange(0), default=0, help="Processes that prepare batches."
)
@click.option(
    "--device",
    default="cpu",
    metavar="NAME",
    help="cpu, cuda or cuda:N; exact numerics gives the same bits on each.",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="PEM file of the key that signs; default $VERITRAIN_KEY or ~/.config/veritrain/.",
)
@click.option(
    "--secret",
    is_flag=True,
    help="Let RUN carry neither the job's source files nor the digests of single records.",
)
@output.json_option
def command(
    job: Path,
    out: str,
    resume: bool,
    workers: int,
    device: str,
    key: Path | None,
    secret: bool,
    as_json: bool,
) -> int:
    """Train JOB with every step committed to, signed and checkable.

    JOB is an ordinary Python file with `def job() -> veritrain.Job`. The run's final digest stands
    for every step of it.

    RUN carries the job's source files, for everyone who has it to read, and a digest of each record, so that
    a rejection can say what differs. With --secret it does not.
    """
    from veritrain.job.load import load_job
    from veritrain.job.step import find_device
    from veritrain.training.recorder import Recorder, TerminatedError
    from veritrain.transcript import TranscriptWriter

    how = partial(_how_to_go_on, job, out, key, workers, device, secret)
    first: tuple[int, float] | None = None
    last: tuple[int, float] | None = None
    with output.only_results_on_stdout(), output.progress():
        signer = keys.load(key)
        find_device(device)
        TranscriptWriter.examine(out, signer, resume=resume)  # before the job reads its data
        loaded = load_job(job)
        recorder = Recorder(
            loaded,
            out,
            signer=signer,
            resume=resume,
            workers=workers,
            device=device,
            secret=secret,
        )
        try:
            with recorder as run:
                for _ in run:
                    report = run.advance()
                    last = (report.step, report.loss)
                    first = first or last
        except TerminatedError:
            raise StoppedRunError("terminated", how(), TERMINATED) from None
        except KeyboardInterrupt:
            raise StoppedRunError("interrupted", how(), INTERRUPTED) from None
        except StorageError as error:
            raise StoppedRunError(str(error), how(), error.exit_code) from error
        digest = recorder.digest
    data = {
        "run": out,
        "steps": loaded.steps,
        "loss": last[1] if last else None,
        "digest": digest.hex(),
        "key": signer.fingerprint,
    }
    lines: list[output.Line] = [
        f"run     {output.escape(out)}",
        f"steps   {loaded.steps}" + ("" if last else ", all recorded before"),
        *(
            [f"loss    {first[1]:.4f} at step {first[0]}, {last[1]:.4f} at the end"]
            if first and last
            else []
        ),
        f"key     {signer.fingerprint}",
        (f"digest  {digest.hex()}", "bold"),
    ]
    output.emit(data, lines, as_json=as_json)
    return 0


def _how_to_go_on(
    job: Path, out: str, key: Path | None, workers: int, device: str, secret: bool
) -> str:
    words = ["veritrain", "train", str(job), "--out", out, "--resume"]
    words += ["--key", str(key)] if key is not None else []
    words += ["--workers", str(workers)] if workers else []
    words += ["--device", device] if device != "cpu" else []
    words += ["--secret"] if secret else []
    return f"{_recorded(out)}; go on with: {shlex.join(words)}"


def _recorded(out: str) -> str:
    from veritrain.transcript import Transcript

    try:
        leaves = Transcript.open(out).leaves
    except VeritrainError:  # so early that there is no run yet
        leaves = ()
    return f"recorded up to step {len(leaves) - 1}" if leaves else "nothing recorded yet"
