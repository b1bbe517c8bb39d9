"""python -m benchmarks [--only NAME ...] [--out FOLDER] [--threads N] [--data FOLDER]

    step         step time of `exact` against `native`, same process, interleaved
    commit       what committing adds to a step: hashing, signing, writing; bytes per step written
    audit        audit time against training time
    startup      commands of the README as whole processes, with kernels to compile and without
    large        ResNet-50 and GPT-2 124M: step time, beside the published method
    memory       their peak memory, each in a process of its own
    profile      where a step of them goes, by operator
    contraction  matrix products and convolutions by grade and kernel, against float32 and float64
    elementwise  single operators on one thread, but for products and convolutions
    accuracy     error of contractions against float64, beside float32, TF32 and bfloat16
    scaling      step time from 1M to 124M parameters (and a plot)
    logged       logged numerics: step, audit, log, memory, corrections; beside the published log
    training     the loss that whole trainings reach, several seeds (and a plot); `--data`: its data
    dispute      disputes over steps of full-size models: rounds, bytes, times, evidence
    service      200 readers of one server, alone and beside attackers: requests/s, latency, errors
    distributed  the sum over ranks beside gloo's all-reduce: time, and bytes that each rank sends
    distributed_step   a step of two ranks with one thread each beside one process with two
    cuda         on a GPU: digests against the CPU's, step times against native numerics

Each that can run here writes FOLDER/NAME.json and prints a table. The figures of README.md and
docs/benchmarks.md come from these files.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import veritrain as vt
from benchmarks.accuracy import accuracy
from benchmarks.contraction import contraction
from benchmarks.cuda import cuda
from benchmarks.dispute import dispute
from benchmarks.distributed import distributed, distributed_step
from benchmarks.elementwise import elementwise
from benchmarks.large import large, memory, profile
from benchmarks.logged import logged
from benchmarks.measure import interleaved, machine, milliseconds, ratio, timers
from benchmarks.models import WORKLOADS, Workload
from benchmarks.scaling import scaling
from benchmarks.service import service
from benchmarks.shards import shards
from benchmarks.startup import startup
from benchmarks.training import training
from veritrain.job.data import Batches
from veritrain.job.step import Program, run_step
from veritrain.training import recorder
from veritrain.transcript import TranscriptWriter

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def step() -> list[Row]:
    """Step time by numerics."""
    return [_step_row(name, workload) for name, workload in WORKLOADS.items()]


def _step_row(name: str, workload: Workload) -> Row:
    programs = {n: Program.build(workload.job(n, 1000)) for n in ("native", "exact")}
    batch = Batches(workload.job("native", 1000))[1]
    times = interleaved(
        {n: (lambda p=p: run_step(p, 1, batch)) for n, p in programs.items()},
        warmup=3, runs=40 if name == "digits" else 15,
    )  # fmt: skip
    parameters = sum(p.numel() for p in programs["exact"].model.parameters())
    both = ratio(times, "exact", "native")
    return {
        "model": name,
        "parameters": parameters,
        "native ms": milliseconds(times["native"]),
        "exact ms": milliseconds(times["exact"]),
        "exact / native": both["median"],
        "min": both["min"],
        "max": both["max"],
    }


def commit(steps: int = 40, every: int = 20) -> list[Row]:
    """Shares of a recorded step, and what it writes."""
    rows: list[Row] = []
    for name in WORKLOADS:
        job = WORKLOADS[name].job("exact", steps, every)
        places = {
            "step": (recorder, "run_step"),
            "hash": (recorder, "state_entries"),
            "batch": (recorder, "batch_digest"),
            "write": (TranscriptWriter, "commit"),
            "whole": (recorder.Recorder, "train_step"),
            "data": (recorder._Run, "next_batch"),  # pyright: ignore[reportPrivateUsage]
        }
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            with vt.Recorder(job, run, signer=vt.Signer.generate()) as recorded:
                next(iter(recorded)).train()  # compiles and warms up
                with timers(places) as spent:
                    for one in recorded:
                        one.train()
            size = {part: _size(run / part) for part in ("leaves", "checkpoints", "signatures")}
        counted = steps - 1
        base = spent["step"] + spent["data"]
        rows.append({
            "model": name,
            "step ms": spent["step"] / counted * 1e3,
            "hash ms": (spent["hash"] + spent["batch"]) / counted * 1e3,
            "write and sign ms": spent["write"] / counted * 1e3,
            "all committing ms": (spent["whole"] - base) / counted * 1e3,
            "committing / step": (spent["whole"] - base) / base,
            "checkpoint every": every,
            "leaf bytes per step": size["leaves"] / steps,
            "all bytes per step": sum(size.values()) / steps,
        })  # fmt: skip
    return rows


def audit(steps: int = 40) -> list[Row]:
    """A full audit against the training that it checks."""
    rows: list[Row] = []
    for name, workload in WORKLOADS.items():
        job = workload.job("exact", steps, 20)
        warm = workload.job("exact", 2, 20)
        with tempfile.TemporaryDirectory() as folder:
            signer = vt.Signer.generate()
            vt.train(warm, Path(folder) / "warm", signer=signer)
            start = time.perf_counter()
            vt.train(job, Path(folder) / "run", signer=signer)
            trained = time.perf_counter() - start
            start = time.perf_counter()
            vt.audit(Path(folder) / "run", job).require_accepted()
            audited = time.perf_counter() - start
        rows.append({
            "model": name,
            "steps": steps,
            "training s": trained,
            "audit s": audited,
            "audit / training": audited / trained,
        })  # fmt: skip
    return rows


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


BENCHMARKS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "step": lambda options: step(),
    "commit": lambda options: commit(),
    "audit": lambda options: audit(),
    "startup": lambda options: startup(),
    "large": lambda options: large(),
    "memory": lambda options: memory(),
    "profile": lambda options: profile(),
    "logged": lambda options: logged(),
    "contraction": lambda options: contraction(),
    "elementwise": lambda options: elementwise(),
    "accuracy": lambda options: accuracy(),
    "scaling": lambda options: scaling(options.out),
    "dispute": lambda options: dispute(),
    "service": lambda options: service(),
    "shards": lambda options: shards(),
    "distributed": lambda options: distributed(),
    "distributed_step": lambda options: distributed_step(),
    "cuda": lambda options: cuda(),
    "training": lambda options: training(options.data, options.out),
}


_MOST_COLUMNS = 10  # that a terminal of 160 characters shows


def show(name: str, rows: list[Row]) -> None:
    """Print one benchmark's rows, in several tables where they are wide."""
    first, *others = rows[0]
    for start in range(0, max(1, len(others)), _MOST_COLUMNS):
        table = Table(title=name)
        columns = [first, *others[start : start + _MOST_COLUMNS]]
        for column in columns:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*(_shown(row[column]) for column in columns))
        Console(width=160).print(table)


def _shown(value: object) -> str:
    if value is None:
        return "-"  # not measured
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data", type=Path, help="with cifar10.npz and shakespeare.txt")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        rows = BENCHMARKS[name](options)
        if not rows:
            print(f"{name}: skipped, since PyTorch sees no GPU here; no result is written")
            continue
        show(name, rows)
        record = {"benchmark": name, "machine": machine(), "rows": rows}
        (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
