"""ResNet-50 and GPT-2 on a GPU: the same digests as on the CPU, and step times beside native
numerics."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import interleaved, milliseconds, ratio
from benchmarks.models import Images, Tokens, Workload, adamw, sgd
from veritrain.job.data import Batches
from veritrain.job.state import capture
from veritrain.job.step import Program, run_step
from veritrain.transcript import state_entries, state_root

Row = dict[str, Any]

_DIGEST_STEPS = 2  # compared between the devices; the CPU takes minutes for more


def resnet50() -> nn.Module:
    """ResNet-50 for 224x224 images, 10 classes."""
    library = _transformers()
    return library.ResNetForImageClassification(library.ResNetConfig(num_labels=10))


def gpt2() -> nn.Module:
    """GPT-2 with 124 million parameters."""
    library = _transformers()
    return library.GPT2LMHeadModel(library.GPT2Config(use_cache=False))


def _transformers() -> Any:
    return import_module("transformers")  # needed here only: not among the package's dependencies


def image_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of image classes."""
    return nn.functional.cross_entropy(model(batch[0]).logits, batch[1])


def token_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of next tokens."""
    logits = model(batch[0]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten())


def workloads() -> dict[str, Workload]:
    """The models at the sizes that are trained."""
    return {
        "resnet-50": Workload(
            model=resnet50, dataset=lambda: Images(64, 3, 224), loss=image_loss, optimizer=sgd,
            batch_size=64,
        ),
        "gpt-2": Workload(
            model=gpt2, dataset=lambda: Tokens(16, 1024, 50257), loss=token_loss, optimizer=adamw,
            batch_size=8,
        ),
    }  # fmt: skip


def digests(workload: Workload, device: str, steps: int = _DIGEST_STEPS) -> list[str]:
    """State digests after each step."""
    job = workload.job("exact", 1000)
    program, batches = Program.build(job, device=device), Batches(job)
    found: list[str] = []
    for step in range(1, steps + 1):
        run_step(program, step, batches[step])
        found.append(state_root(state_entries(capture(program))).hex())
    return found


def cuda() -> list[Row]:
    """One row for each model; none where PyTorch sees no GPU."""
    if not torch.cuda.is_available():
        return []
    return [_row(name, workload) for name, workload in workloads().items()]


def _row(name: str, workload: Workload) -> Row:
    here, there = (digests(workload, device) for device in ("cpu", "cuda"))
    batch = Batches(workload.job("native", 1000))[1]
    exact, native = (
        Program.build(workload.job(numerics, 1000), device="cuda")
        for numerics in ("exact", "native")
    )
    times = interleaved(
        {
            "exact": _timed(lambda: run_step(exact, 1, batch)),
            "float32": _timed(lambda: _native_step(native, batch, tf32=False)),
            "tf32": _timed(lambda: _native_step(native, batch, tf32=True)),
            "bf16": _timed(lambda: _native_step(native, batch, tf32=True, narrow=True)),
        },
        warmup=3, runs=15,
    )  # fmt: skip
    row: Row = {
        "model": name,
        "GPU": torch.cuda.get_device_name(),
        "batch": workload.batch_size,
        "digests equal to the CPU's": here == there,
        "steps compared": len(here),
    }
    row |= {f"{kind} ms": milliseconds(seconds) for kind, seconds in times.items()}
    for kind in ("float32", "tf32", "bf16"):
        row[f"exact / {kind}"] = ratio(times, "exact", kind)["median"]
    return row


def _timed(step: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        step()
        torch.cuda.synchronize()

    return run


def _native_step(program: Program, batch: Any, *, tf32: bool, narrow: bool = False) -> None:
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    with torch.autocast("cuda", torch.bfloat16, enabled=narrow):
        run_step(program, 1, batch)
