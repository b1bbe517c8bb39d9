"""Full-size models: step time and peak memory of each numerics, and of the published method.

ResNet-50 for 32x32 images (batch 64) and GPT-2 124M (8 x 64 tokens), whole training steps on
generated data. Times are interleaved in one process; each peak is that of a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import published
from benchmarks.measure import interleaved, milliseconds, ratio
from benchmarks.models import Images, Tokens, Workload, adamw, image_loss, resnet50, sgd
from veritrain.job.data import Batches
from veritrain.job.step import Program, run_step
from veritrain.numerics.cpu import products
from veritrain.numerics.observed import Indifferent, observed

METHODS = ("native", "exact", "exact by float64", "exact14", "fp64 with hooks")
Row = dict[str, Any]


def gpt2(**changes: Any) -> nn.Module:
    """GPT-2 of 124M parameters, random weights; `changes` of its configuration."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(use_cache=False, **changes))


def language_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of next tokens, of a model of `transformers`."""
    tokens, targets = batch
    logits = model(input_ids=tokens).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


MODELS = {
    "ResNet-50": Workload(
        model=resnet50, dataset=lambda: Images(256, 3, 32), loss=image_loss, optimizer=sgd,
        batch_size=64,
    ),
    "GPT-2 124M": Workload(
        model=gpt2, dataset=lambda: Tokens(64, 64, 50257), loss=language_loss, optimizer=adamw,
        batch_size=8,
    ),
}  # fmt: skip


def large() -> list[Row]:
    """Step time of each model by each method."""
    found: list[Row] = []
    for model in MODELS:
        times = interleaved({m: _step(model, m) for m in METHODS}, warmup=1, runs=5)
        found.extend(
            {
                "run": f"{model} {method}",
                "step ms": milliseconds(times[method]),
                "step / native": ratio(times, method, "native")["median"],
                "min": ratio(times, method, "native")["min"],
                "max": ratio(times, method, "native")["max"],
            }
            for method in METHODS
        )
    return found


def memory() -> list[Row]:
    """Peak memory of a process that trains each model by each method."""
    found: list[Row] = []
    for model in MODELS:
        peaks = {method: _peak_of(model, method) for method in METHODS}
        found.extend(
            {
                "run": f"{model} {method}",
                "peak MB": peaks[method] / 1e6,
                "peak / native": peaks[method] / peaks["native"],
            }
            for method in METHODS
        )
    return found


def _step(model: str, method: str) -> Callable[[], object]:
    """A whole training step, ready to be called again and again."""
    workload = MODELS[model]
    numerics = {"exact": "exact", "exact by float64": "exact", "exact14": "exact14"}.get(
        method, "native"
    )
    program = Program.build(workload.job(numerics, 1000))
    batch = Batches(workload.job("native", 1000))[1]
    if method == "exact by float64":
        return lambda: _by_float64(lambda: run_step(program, 1, batch))
    if method != "fp64 with hooks":
        return lambda: run_step(program, 1, batch)
    hooked, log = published.hooked(program.model)
    optimizer = workload.optimizer(hooked)
    inputs, targets = batch[0]
    inputs = inputs.double() if inputs.is_floating_point() else inputs

    def step() -> None:
        log.packed.clear()
        optimizer.zero_grad()
        workload.loss(hooked, (inputs, targets)).backward()
        optimizer.step()

    return step


def _by_float64(step: Callable[[], object]) -> None:
    """As on a processor that multiplies bytes no faster than other numbers."""
    choose = products.choose
    products.choose = lambda bits, inner, results: products.float64
    try:
        step()
    finally:
        products.choose = choose


def _peak_of(model: str, method: str) -> int:
    """Bytes of memory that a process takes at most which trains three steps."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.large",
        model,
        method,
        str(torch.get_num_threads()),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def peak() -> int:
    """Largest resident size of this process so far, bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def profile() -> list[Row]:
    """Where an `exact` step goes, by operator, beside the same operator under `native`."""
    found: list[Row] = []
    for model in MODELS:
        spent = {numerics: _by_operator(model, numerics) for numerics in ("native", "exact")}
        whole = {numerics: sum(times.values()) for numerics, times in spent.items()}
        names = sorted(spent["exact"], key=lambda name: -spent["exact"][name])[:12]
        found.extend(
            {
                "operator": f"{model} {name}",
                "exact ms": spent["exact"][name] * 1e3,
                "share": spent["exact"][name] / whole["exact"],
                "native ms": spent["native"].get(name, 0.0) * 1e3,
            }
            for name in names
        )
        found.append({
            "operator": f"{model} all",
            "exact ms": whole["exact"] * 1e3,
            "share": 1.0,
            "native ms": whole["native"] * 1e3,
        })  # fmt: skip
    return found


class _Times(Indifferent):
    """Adds up the seconds of each operator."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)

    def computed(self, operator: str, seconds: float) -> None:
        self.spent[operator.removeprefix("aten.").partition(".")[0]] += seconds


def _by_operator(model: str, numerics: str, steps: int = 3) -> dict[str, float]:
    """Seconds of a step by operator: mean of some steps after the first two."""
    job = MODELS[model].job(numerics, 1000)
    times = _Times()
    program = Program.build(job, observed(numerics, times))
    batch = Batches(job)[1]
    for _ in range(2):
        run_step(program, 1, batch)
    times.spent.clear()
    for _ in range(steps):
        run_step(program, 1, batch)
    return {name: seconds / steps for name, seconds in times.spent.items()}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    train = _step(sys.argv[1], sys.argv[2])
    for _ in range(3):
        train()
    print(peak())
