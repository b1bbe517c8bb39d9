"""Logged numerics: step time, log, audit, memory and corrections, beside the unrounded step and the
published log.

The unrounded step is PyTorch's own, with model and data in the computing precision. The published
encoding takes 1.6 bits for every rounded value; both counts are of this run. Corrections are those
of an auditor whose sums run the other way round, on one thread; those of attention are of the same
model without dropout there, since PyTorch fuses it then.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from benchmarks.large import MODELS, gpt2, peak
from benchmarks.measure import interleaved, milliseconds, ratio
from benchmarks.models import Workload
from veritrain.adversaries import rounders
from veritrain.job.data import Batches
from veritrain.job.step import Program, run_step
from veritrain.numerics.logged.rounding import Recording, Rounding
from veritrain.numerics.logged.samples import Comparing, Sampling
from veritrain.numerics.logged.thresholds import CLASSES

_PUBLISHED_BITS = 1.6  # of a value: five of three kinds to the byte
_NUMERICS = {"logged": torch.float64, "logged-bf16": torch.float32}
_WITHOUT_DROPOUT = {
    "GPT-2 124M": replace(MODELS["GPT-2 124M"], model=partial(gpt2, attn_pdrop=0.0))
}
Row = dict[str, Any]


def logged() -> list[Row]:
    """One row for each model and target."""
    return [_row(model, numerics) for model in MODELS for numerics in _NUMERICS]


def _row(model: str, numerics: str) -> Row:
    workload = MODELS[model]
    plain = _step(model, "native", _NUMERICS[numerics])
    program, batch = Program.build(workload.job(numerics, 1000)), _batch(workload)
    auditor = Program.build(workload.job(numerics, 1000))
    logs: list[bytes] = []

    def train() -> None:
        rounding = _required(program.recording())
        run_step(program, 1, batch, rounding)
        logs.append(rounding.finish())

    def audit() -> None:
        run_step(auditor, 1, batch, auditor.following(logs[-1]))

    times = interleaved({"plain": plain, "train": train, "audit": audit}, warmup=1, runs=3)
    rounding = _required(program.recording())
    run_step(program, 1, batch, rounding)
    values = sum(tally.values for tally in rounding.tally.values())
    peaks = {name: _peak_of(model, name, numerics) for name in ("native", numerics)}
    return {
        "run": f"{model} {numerics}",
        "unrounded ms": milliseconds(times["plain"]),
        "step / unrounded": ratio(times, "train", "plain")["median"],
        "audit / step": ratio(times, "audit", "train")["median"],
        "memory / unrounded": peaks[numerics] / peaks["native"],
        "rounded values": values,
        "log kB": max(map(len, logs)) / 1e3,
        "published log kB": values * _PUBLISHED_BITS / 8e3,
        **_corrections(workload, numerics),
        **_of_attention(model, numerics),
        **_steered(workload, numerics),
    }


def _corrections(workload: Workload, numerics: str) -> Row:
    """Decisions that another machine takes over, for each million values, by class; largest gap
    over threshold.

    The gaps are those of samples of all values, whether a decision hung on them or not; None where
    the model has no operator of a class.
    """
    trainer, auditor = (Program.build(workload.job(numerics, 1000)) for _ in range(2))
    batch = _batch(workload)
    plain = _required(trainer.recording())
    decided = Sampling(plain.target, plain.thresholds)
    run_step(trainer, 1, batch, decided)
    following = Comparing(
        plain.target, plain.thresholds, decided.finish(), decided.decisions(), decided.samples(),
        reordered=True,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_step(auditor, 1, batch, following)
    finally:
        torch.set_num_threads(threads)
    found: Row = {}
    for name in CLASSES:
        tally, gap = following.tally.get(name), following.gaps.get(name)
        found[f"{name} corrected / million"] = (
            None if tally is None else tally.corrected / tally.values * 1e6
        )
        found[f"{name} gap / threshold"] = None if gap is None else gap.share
    return found


def _of_attention(model: str, numerics: str) -> Row:
    """Corrections of the class attention, which PyTorch fuses without dropout only: of another
    model."""
    if model not in _WITHOUT_DROPOUT:
        return {}
    found = _corrections(_WITHOUT_DROPOUT[model], numerics)
    return {name: value for name, value in found.items() if name.startswith("attention")}


def _steered(workload: Workload, numerics: str) -> Row:
    """How far steering moves the weights in a step, over how far the step itself does: 2-norms.

    Once with every decision down, and once with as many as audits accept, all in the largest
    parameter.
    """
    start = _weights(Program.build(workload.job(numerics, 1000)))
    honest = _weights_after(workload, numerics, Recording)
    size = max(weight.numel() for weight in start)
    cheats = {
        "steered / honest step": rounders.Steering,
        "accepted steering / honest step": partial(rounders.Concentrating, size=size),
    }
    return {
        name: _distance(_weights_after(workload, numerics, make), honest) / _distance(honest, start)
        for name, make in cheats.items()
    }


def _weights_after(workload: Workload, numerics: str, make: rounders.MakeRecording) -> list[Tensor]:
    program = Program.build(workload.job(numerics, 1000))
    plain = _required(program.recording())
    run_step(program, 1, _batch(workload), make(plain.target, plain.thresholds))
    return _weights(program)


def _weights(program: Program) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in program.model.parameters()]


def _distance(a: list[Tensor], b: list[Tensor]) -> float:
    squares = ((x - y).double().square().sum() for x, y in zip(a, b, strict=True))
    return float(torch.stack(list(squares)).sum().sqrt())


def _required(rounding: Rounding | None) -> Rounding:
    assert rounding is not None
    return rounding


def _batch(workload: Workload) -> Any:
    return Batches(workload.job("native", 1000))[1]


def _step(model: str, numerics: str, dtype: torch.dtype) -> Callable[[], object]:
    """A step of `numerics`; a native one with model and data in `dtype`."""
    workload = MODELS[model]
    if numerics == "native":
        workload = _in(workload, dtype)
    program, batch = Program.build(workload.job(numerics, 1000)), _batch(workload)
    return lambda: run_step(program, 1, batch)


def _in(workload: Workload, dtype: torch.dtype) -> Workload:
    """The workload with floating-point numbers of `dtype`."""

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    def model() -> nn.Module:
        return workload.model().to(dtype)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return workload.loss(model, tree_map_only(Tensor, cast, batch))

    return replace(workload, model=model, loss=loss)


def _peak_of(model: str, numerics: str, target: str) -> int:
    """Bytes of memory that a process takes at most which does three steps."""
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-m", "benchmarks.logged", model, numerics, target, threads]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[4]))
    step = _step(sys.argv[1], sys.argv[2], _NUMERICS[sys.argv[3]])
    for _ in range(3):
        step()
    print(peak())
