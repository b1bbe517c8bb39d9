"""Whole trainings, `exact` beside `native`: is the loss that they reach the same within seed noise?

For each seed all numerics start from the same weights and see the same batches, so that what
differs is rounding alone; seeds differ in both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import veritrain as vt
from benchmarks import models
from benchmarks.data import Data, images, text
from veritrain.job.data import Batches
from veritrain.job.state import capture, restore
from veritrain.job.step import Program, run_step

NUMERICS = ("native", "exact", "exact14")
SEEDS = (1, 2, 3, 4, 5)
_EVERY = 10  # steps between points of a curve
Row = dict[str, Any]


def training(folder: Path | None, out: Path, steps: int = 200) -> list[Row]:
    """Train both models with every numerics and seed; writes a plot of the curves."""
    found: list[Row] = []
    for name, data, job_of in _workloads(folder, steps):
        curves = {n: [_train(job_of(n, seed), data, job_of("exact", seed)) for seed in SEEDS]
                  for n in NUMERICS}  # fmt: skip
        finals = {n: [curve[-1] for curve in many] for n, many in curves.items()}
        found.extend(_row(name, data.name, steps, n, finals) for n in NUMERICS)
        _plot(out / f"training_{name}.svg", f"{name} on {data.name}", curves)
    return found


def _workloads(
    folder: Path | None, steps: int
) -> list[tuple[str, Data, Callable[[str, int], vt.Job]]]:
    pictures, characters = images(folder), text(folder, 64)
    vocabulary = int(max(part.max() for part in characters.train.tensors)) + 1

    def resnet(numerics: str, seed: int) -> vt.Job:
        return vt.Job(
            model=models.resnet, dataset=pictures.train, loss=models.image_loss,
            optimizer=models.sgd, batch_size=64, steps=steps, seed=seed, numerics=numerics,
        )  # fmt: skip

    def language(numerics: str, seed: int) -> vt.Job:
        return vt.Job(
            model=lambda: models.Transformer(vocabulary), dataset=characters.train,
            loss=models.token_loss, optimizer=models.adamw, batch_size=16, steps=steps, seed=seed,
            numerics=numerics,
        )  # fmt: skip

    return [("resnet", pictures, resnet), ("language", characters, language)]


def _train(job: vt.Job, data: Data, reference: vt.Job) -> list[float]:
    """Loss on the test data at every tenth step; start and batches are those of `reference`."""
    program = Program.build(job)
    restore(program, capture(Program.build(reference)))
    batches = Batches(reference)
    curve = [_loss(program.model, data.test)]
    for step in range(1, job.steps + 1):
        run_step(program, step, batches[step])
        if step % _EVERY == 0:
            curve.append(_loss(program.model, data.test))
    return curve


def _loss(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Mean cross-entropy, computed alike for all numerics."""
    inputs, targets = test
    model.eval()
    with torch.no_grad():
        found = model(inputs)
    model.train()
    flat = found.flatten(0, -2)
    return float(nn.functional.cross_entropy(flat, targets.flatten()))


def _row(model: str, data: str, steps: int, numerics: str, finals: dict[str, list[float]]) -> Row:
    own, native = finals[numerics], finals["native"]
    return {
        "run": f"{model} {numerics}",
        "data": data,
        "steps": steps,
        "seeds": len(own),
        "loss": statistics.mean(own),
        "spread over seeds": statistics.stdev(own),
        "mean difference to native": statistics.mean(
            a - b for a, b in zip(own, native, strict=True)
        ),
        "largest difference": max(abs(a - b) for a, b in zip(own, native, strict=True)),
    }


def _plot(path: Path, title: str, curves: dict[str, list[list[float]]]) -> None:
    """Each seed a thin line, each numerics a colour."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for colour, (numerics, many) in zip(
        ("black", "tab:blue", "tab:orange"), curves.items(), strict=True
    ):
        for i, curve in enumerate(many):
            steps = [point * _EVERY for point in range(len(curve))]
            label = numerics if i == 0 else None
            axes.plot(steps, curve, color=colour, linewidth=0.8, alpha=0.7, label=label)
    axes.set(title=title, xlabel="step", ylabel="loss on test data")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
