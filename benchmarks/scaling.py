"""Cost of a step from one to 124 million parameters: language models of the same make, larger and
larger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.large import language_loss
from benchmarks.measure import interleaved, milliseconds, ratio
from benchmarks.models import Tokens, Workload, adamw
from veritrain.job.data import Batches
from veritrain.job.step import Program, run_step

NUMERICS = ("native", "exact", "exact14")
_SIZES = (  # vocabulary, width, layers, heads
    (1024, 128, 4, 4), (4096, 192, 6, 6), (8192, 288, 8, 6), (16_384, 448, 10, 8),
    (32_768, 576, 12, 8), (50_257, 768, 12, 12),
)  # fmt: skip
Row = dict[str, Any]


def scaling(out: Path) -> list[Row]:
    """Step time by size; writes a plot."""
    rows = [_row(*size) for size in _SIZES]
    _plot(out / "scaling.svg", rows)
    return rows


def _row(vocabulary: int, width: int, layers: int, heads: int) -> Row:
    def model() -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=vocabulary, n_positions=64, n_embd=width, n_layer=layers, n_head=heads,
            use_cache=False, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return GPT2LMHeadModel(config)

    workload = Workload(
        model=model, dataset=lambda: Tokens(64, 64, vocabulary), loss=language_loss,
        optimizer=adamw, batch_size=8,
    )  # fmt: skip
    programs = {n: Program.build(workload.job(n, 1000)) for n in NUMERICS}
    batch = Batches(workload.job("native", 1000))[1]
    times = interleaved(
        {n: lambda p=p: run_step(p, 1, batch) for n, p in programs.items()}, warmup=2, runs=7
    )
    parameters = sum(p.numel() for p in programs["native"].model.parameters())
    return {
        "parameters": parameters,
        **{f"{n} ms": milliseconds(times[n]) for n in NUMERICS},
        **{f"{n} / native": ratio(times, n, "native")["median"] for n in NUMERICS[1:]},
    }


def _plot(path: Path, rows: list[Row]) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for colour, numerics in zip(("black", "tab:blue", "tab:orange"), NUMERICS, strict=True):
        axes.plot(
            [row["parameters"] for row in rows], [row[f"{numerics} ms"] for row in rows],
            marker="o", color=colour, label=numerics,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="ms per step of 8 x 64 tokens")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
