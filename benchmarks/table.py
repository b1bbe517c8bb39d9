"""The figures of README.md and docs/benchmarks.md, made from the committed results.

`python -m benchmarks.table` prints them. `tests/test_figures.py` compares them with the pages.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def rows(name: str) -> dict[str, dict[str, Any]]:
    """The rows of a result by their first column."""
    found = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return {next(iter(row.values())): row for row in found}


def machine(name: str = "step") -> str:
    """Where the figures of a result were measured."""
    found = json.loads((RESULTS / f"{name}.json").read_text())["machine"]
    return f"{found['cpu']}, {found['threads']} threads, torch {found['torch']}"


def headlines() -> tuple[str, str, str]:
    """The three figures of the README: a step, an audit, a dispute."""
    large, commits, audits = rows("large"), rows("commit"), rows("audit")
    resnet, gpt2 = (
        large[f"{model} exact"]["step / native"] for model in ("ResNet-50", "GPT-2 124M")
    )
    added = max(row["committing / step"] for row in commits.values())
    audit = max(row["audit / training"] for row in audits.values())
    dispute = rows("dispute")["GPT-2 124M 1000000 steps, operators' quantile 0.5"]
    return (
        (
            f"A step under `exact` takes {resnet:.2f} times PyTorch's own for ResNet-50, "
            f"and {gpt2:.2f} times for GPT-2 124M."
        ),
        (
            f"In three small models committing adds at most {added:.1%} to a step, "
            f"and a full audit takes at most {audit:.2f} times the training."
        ),
        (
            "A dispute about one bit of GPT-2 124M, in a run of a million steps, takes "
            f"{dispute['rounds']} questions and {dispute['MB sent']:.2f} MB; "
            f"the referee computes {dispute['referee / step']:.1%} of a step."
        ),
    )


def step_table() -> str:
    """Markdown: one line per model."""
    steps, commits, audits = rows("step"), rows("commit"), rows("audit")
    lines = [
        (
            "| model | parameters | `native` | `exact` | ratio | commit adds | written | audit /"
            " training |"
        ),
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model, row in steps.items():
        commit = commits[model]
        lines.append(
            f"| {model} | {row['parameters']:,} | {row['native ms']:.1f} ms "
            f"| {row['exact ms']:.1f} ms | {row['exact / native']:.2f} "
            f"| {commit['committing / step']:.1%} "
            f"| {commit['all bytes per step'] / 1000:,.1f} kB "
            f"| {audits[model]['audit / training']:.2f} |"
        )
    return "\n".join(lines)


def large_table() -> str:
    """Markdown: full-size models, one line each, a column for each method."""
    found = rows("large")
    methods = ("exact", "exact by float64", "exact14", "fp64 with hooks")
    models = [run.removesuffix(" native") for run in found if run.endswith(" native")]
    lines = [
        "| model | `native` step | `exact` | `exact` in float64 | `exact14` | published method |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for model in models:
        ratios = [f"{found[f'{model} {method}']['step / native']:.2f}" for method in methods]
        native = found[f"{model} native"]["step ms"] / 1000
        lines.append(f"| {model} | {native:.2f} s | {' | '.join(ratios)} |")
    return "\n".join(lines)


def logged_table() -> str:
    """Markdown: logged numerics, one line for each model and target."""
    lines = [
        "| model | rounded to | step | audit | memory | log | published log |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for run, row in rows("logged").items():
        model, numerics = run.rsplit(" ", 1)
        target = "bfloat16" if numerics.endswith("bf16") else "float32"
        lines.append(
            f"| {model} | {target} | {row['step / unrounded']:.2f} | {row['audit / step']:.2f} "
            f"| {row['memory / unrounded']:.2f} | {row['log kB']:,.0f} kB "
            f"| {row['published log kB'] / 1000:,.0f} MB |"
        )
    return "\n".join(lines)


def dispute_table() -> str:
    """Markdown: disputes, one line for each model, length of run and operator."""
    lines = [
        (
            "| model | steps | operator | rounds | sent | trainer | challenger | referee | peak |"
            " evidence |"
        ),
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run, row in rows("dispute").items():
        named = re.fullmatch(r"(.+) (\d+) steps, operators' quantile ([\d.]+)", run)
        assert named is not None, run
        step = row["step s"]
        lines.append(
            f"| {named[1]} | {int(named[2]):,} | {named[3]} | {row['rounds']} of {row['bound']} "
            f"| {row['MB sent']:.2f} MB | {row['trainer s'] / step:.1f} "
            f"| {row['challenger s'] / step:.1f} | {row['referee / step']:.3f} "
            f"| {row['referee peak MB']:.0f} MB | {row['evidence kB']:,.0f} kB |"
        )
    return "\n".join(lines)


def service_table() -> str:
    """Markdown: a served run, one line for each number of attackers."""
    lines = [
        "| readers | attackers | requests/s | median | p99 | errors | wrong answers |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in json.loads((RESULTS / "service.json").read_text())["rows"]:
        lines.append(
            f"| {row['readers']} | {row['attackers']} | {row['requests/s']:,.0f} "
            f"| {row['median ms']:.0f} ms | {row['p99 ms']:.0f} ms | {row['errors']} "
            f"| {row['wrong answers']} |"
        )
    return "\n".join(lines)


TABLES = {
    "step": step_table,
    "large": large_table,
    "logged": logged_table,
    "dispute": dispute_table,
    "service": service_table,
}

if __name__ == "__main__":
    print(*(f"- {line}" for line in headlines()), sep="\n")
    for name, table in TABLES.items():
        print(f"\n{name}: {machine(name)}\n\n{table()}")
