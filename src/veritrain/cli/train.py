"""`veritrain train`: train a job and record it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veritrain.cli import keys, output, params
from veritrain.errors import LostRankError, StorageError, UnlikeRanksError, VeritrainError

if TYPE_CHECKING:
    from veritrain.job.job import Job
    from veritrain.training.distributed.ranks import Ranks
    from veritrain.training.distributed.together import Together

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM
DEADLINE = 60.0  # seconds


class StoppedRunError(VeritrainError):
    """Training stopped before its end. What is recorded is on disk; the message says how to go
    on."""

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
  veritrain train job.py --out runs/a --processes 4 --json
  torchrun --nproc-per-node 2 -m veritrain train job.py --out runs/a

Ctrl-C loses nothing: the run goes on with --resume, to the
same digest as without the interruption.""",
)
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, metavar="RUN", help="Folder or fsspec URL to make.")
@click.option("--resume", is_flag=True, help="Go on after the last commit of RUN.")
@params.processes(0, "Processes that prepare batches (of each rank, under torchrun).")
@click.option(
    "--device",
    default="cpu",
    metavar="NAME",
    help="cpu, cuda or cuda:N; exact numerics gives the same bits on each.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(0, min_open=True),
    default=DEADLINE,
    show_default=True,
    metavar="SECONDS",
    help="Under torchrun: a rank that is silent for so long is lost, and the others end.",
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
    processes: int,
    device: str,
    deadline: float,
    key: Path | None,
    secret: bool,
    as_json: bool,
) -> int:
    """Train JOB with every step committed to, signed and checkable.

    JOB is an ordinary Python file with `def job() -> veritrain.Job`. The run's final digest stands
    for every step of it.

    Under torchrun several processes compute the shards of each step, and the first of them writes
    RUN, the same as one process would have written.

    RUN carries the job's source files, for everyone who has it to read, and a digest of each
    record, so that a rejection can say what differs. With --secret it does not.
    """
    from veritrain.job.step import find_device

    options = _TrainOptions(
        job=job,
        out=out,
        resume=resume,
        processes=processes,
        device=device,
        deadline=deadline,
        key=key,
        secret=secret,
    )
    find_device(device)  # before the job reads its data
    with output.only_results_on_stdout(), _ranks(device, deadline) as ranks:
        if ranks is not None and ranks.rank > 0:
            return _follow(options, ranks)
        result = _record(options, ranks)
    _print(options, result, as_json=as_json)
    return 0


@contextmanager
def _ranks(device: str, deadline: float) -> Generator[Ranks | None]:
    """The ranks that torchrun has started; None where this process is alone."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield None
        return
    from veritrain.training.distributed.ranks import Ranks
    from veritrain.training.recorder import TerminatedError

    is_silent = False
    try:
        with Ranks.join(device=device, deadline=deadline) as ranks:
            try:
                yield ranks
            finally:  # rank 0 speaks for all, while it is there
                is_silent = ranks.rank > 0 and not ranks.is_first_lost
    except (VeritrainError, KeyboardInterrupt) as error:
        if not is_silent:
            raise
        code = TERMINATED if isinstance(error, TerminatedError) else INTERRUPTED
        code = error.exit_code if isinstance(error, VeritrainError) else code
        raise click.exceptions.Exit(code) from error


@dataclass(frozen=True, kw_only=True)
class _TrainOptions:
    """What the command was given."""

    job: Path
    out: str
    resume: bool
    processes: int
    device: str
    deadline: float
    key: Path | None
    secret: bool

    def how_to_go_on(self, ranks: Ranks | None) -> str:
        """How far the run is, and the command that continues it."""
        words = [*(() if ranks is None else ranks.place.command), "veritrain", "train"]
        words += [str(self.job)]
        words += ["--out", self.out, "--resume"]
        words += ["--key", str(self.key)] if self.key is not None else []
        words += ["--processes", str(self.processes)] if self.processes else []
        words += ["--device", self.device] if self.device != "cpu" else []
        words += ["--deadline", f"{self.deadline:g}"] if self.deadline != DEADLINE else []
        words += ["--secret"] if self.secret else []
        return f"{_recorded(self.out)}; go on with: {shlex.join(words)}"


@dataclass(frozen=True, kw_only=True)
class _Result:
    """A complete run; `first` and `last` are number and loss of the steps that were done now."""

    steps: int
    first: tuple[int, float] | None
    last: tuple[int, float] | None
    digest: bytes
    key: str


def _record(options: _TrainOptions, ranks: Ranks | None) -> _Result:
    """Train and record, alone or as the first of several ranks."""
    from veritrain.job.load import load_job
    from veritrain.training.recorder import Recorder, TerminatedError
    from veritrain.transcript import TranscriptWriter

    how = partial(options.how_to_go_on, ranks)
    first: tuple[int, float] | None = None
    last: tuple[int, float] | None = None
    with output.progress():
        signer = keys.load(options.key)
        # before the job reads its data
        TranscriptWriter.examine(options.out, signer, resume=options.resume)
        loaded = load_job(options.job)
        together = _with_others(ranks, loaded)
        recorder = Recorder(
            loaded,
            options.out,
            signer=signer,
            resume=options.resume,
            processes=options.processes,
            device=options.device if ranks is None else str(ranks.device),
            secret=options.secret,
            companions=together,
        )
        try:
            with together.stoppable() if together else nullcontext(), recorder as run:
                for _ in run:
                    report = run.advance()
                    last = (report.step, report.loss)
                    first = first or last
        except TerminatedError:
            raise StoppedRunError("terminated", how(), TERMINATED) from None
        except KeyboardInterrupt:
            raise StoppedRunError("interrupted", how(), INTERRUPTED) from None
        except (StorageError, LostRankError, UnlikeRanksError) as error:
            raise StoppedRunError(str(error), how(), error.exit_code) from error
    return _Result(
        steps=loaded.steps,
        first=first,
        last=last,
        digest=recorder.digest,
        key=signer.fingerprint,
    )


def _with_others(ranks: Ranks | None, job: Job) -> Together | None:
    """The first rank's part in the run of several; None where there is one process."""
    if ranks is None:
        return None
    from veritrain.training.distributed.together import Together

    return Together(ranks, job)


def _follow(options: _TrainOptions, ranks: Ranks) -> int:
    """Train as a rank that writes nothing."""
    from veritrain.job.load import load_job
    from veritrain.training.distributed.together import Together, follow

    job = load_job(options.job)
    together = Together(ranks, job)
    with together.stoppable():
        follow(together, job, processes=options.processes, device=str(ranks.device))
    return 0


def _print(options: _TrainOptions, result: _Result, *, as_json: bool) -> None:
    first, last = result.first, result.last
    data = {
        "run": options.out,
        "steps": result.steps,
        "loss": last[1] if last else None,
        "digest": result.digest.hex(),
        "key": result.key,
    }
    lines: list[output.Line] = [
        f"run     {output.escape(options.out)}",
        f"steps   {result.steps}" + ("" if last else ", all recorded before"),
        *(
            [f"loss    {first[1]:.4f} at step {first[0]}, {last[1]:.4f} at the end"]
            if first and last
            else []
        ),
        f"key     {result.key}",
        (f"digest  {result.digest.hex()}", "bold"),
    ]
    output.emit(data, lines, as_json=as_json)


def _recorded(out: str) -> str:
    from veritrain.transcript import Transcript

    try:
        leaves = Transcript.open(out).leaves
    except VeritrainError:  # so early that there is no run yet
        leaves = ()
    return f"recorded up to step {len(leaves) - 1}" if leaves else "nothing recorded yet"
