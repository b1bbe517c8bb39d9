"""`veritrain warmup`: compile now what the first run would compile."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import click

from veritrain.cli import output
from veritrain.errors import UsageError
from veritrain.runtime.progress import Count, duration, tell


@click.command(
    "warmup",
    short_help="Compile the kernels of a job ahead of time.",
    epilog="""\b
Examples:
  veritrain warmup
  veritrain warmup --processes 4
  veritrain warmup job.py

Once for each machine, installation and user: in an image
of a container, say, while it is built.""",
)
@click.argument("job", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="That compile at one time; without JOB.",
)
@output.json_option
def command(job: Path | None, processes: int, as_json: bool) -> int:
    """Compile kernels for this machine and keep them on the disk for every later run.

    Without JOB: those of usual networks, optimisers and losses. With JOB: just those that this job
    meets, by doing two steps of it; nothing is written but the kernels.
    """
    began = time.monotonic()
    with output.only_results_on_stdout(), output.progress():
        compiled = _families(processes) if job is None else _job(job)
    from veritrain.runtime import kernels

    seconds, folder = time.monotonic() - began, kernels.writable_folder()
    if folder is None:
        tried = ", ".join(map(str, kernels.folders()))
        raise UsageError(f"kernels cannot be kept: no folder can be written; tried {tried}")
    data = {"compiled": compiled, "seconds": seconds, "folder": str(folder)}
    lines = [
        f"{compiled} kernels compiled in {duration(seconds)}, kept in {output.escape(str(folder))}"
    ]
    output.emit(data, lines, as_json=as_json)
    return 0


def _families(processes: int) -> int:
    """Compile by computing known answers, one family of them in one process at a time; how many."""
    import multiprocessing

    from veritrain.training import selftest

    families = selftest.families()
    compiled = 0
    context = multiprocessing.get_context("spawn")  # a fork of threads that compile would hang
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        ahead = [pool.submit(_compile, family) for family in families]
        for done, future in enumerate(as_completed(ahead), 1):
            compiled += future.result()
            tell(
                Count(doing="compiling", done=done, total=len(families), unit="families of kernels")
            )
    return compiled


def _compile(family: str) -> int:
    """Compile a family; how many kernels were not on the disk yet."""
    from veritrain.runtime import kernels
    from veritrain.training import selftest

    before = kernels.number_compiled()
    selftest.run(family)
    return kernels.number_compiled() - before


def _job(file: Path) -> int:
    from veritrain.job.load import load_job
    from veritrain.runtime import kernels
    from veritrain.training.observe import observe

    seen = observe(load_job(file), records=1)
    for problem in seen.problems:
        output.warn(f"{problem.part}: {problem.message}")
    return kernels.number_compiled()
