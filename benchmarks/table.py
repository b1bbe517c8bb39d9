"""The README's figures, made from the committed results: `python -m benchmarks.table`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def rows(name: str) -> dict[str, dict[str, Any]]:
    """The rows of a result by their first column."""
    found = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return {next(iter(row.values())): row for row in found}


def table() -> str:
    """Markdown: one line per model."""
    steps, commits, audits = rows("step"), rows("commit"), rows("audit")
    lines = [
        "| model | parameters | `native` step | `exact` step | ratio | committing adds | written per step "
        "| audit / training |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model, row in steps.items():
        commit = commits[model]
        lines.append(
            f"| {model} | {row['parameters']:,} | {row['native ms']:.1f} ms | {row['exact ms']:.1f} ms "
            f"| {row['exact / native']:.2f} | {commit['committing / step']:.1%} "
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
        "| model | `native` step | `exact` | `exact`, float64 engine | `exact14` | published method |",
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
        "| model | rounded to | step / unrounded | audit / step | memory / unrounded | log of a step "
        "| published log |",
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
        "| dispute | rounds (at most) | sent | trainer | challenger | referee | referee's peak | evidence |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run, row in rows("dispute").items():
        step = row["step s"]
        lines.append(
            f"| {run} | {row['rounds']} ({row['bound']}) | {row['MB sent']:.2f} MB "
            f"| {row['trainer s'] / step:.1f} | {row['challenger s'] / step:.1f} "
            f"| {row['referee / step']:.3f} | {row['referee peak MB']:.0f} MB "
            f"| {row['evidence kB']:,.0f} kB |"
        )
    return "\n".join(lines)


def service_table() -> str:
    """Markdown: a served run, one line for each kind of company."""
    lines = [
        "| readers | attackers beside them | requests/s | median | 99 of 100 within | errors "
        "| wrong answers |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in json.loads((RESULTS / "service.json").read_text())["rows"]:
        lines.append(
            f"| {row['readers']} | {row['attackers']} | {row['requests/s']:,.0f} "
            f"| {row['median ms']:.0f} ms | {row['p99 ms']:.0f} ms | {row['errors']} "
            f"| {row['wrong answers']} |"
        )
    return "\n".join(lines)


def machine(name: str = "step") -> str:
    """Where the figures of a result were measured."""
    found = json.loads((RESULTS / f"{name}.json").read_text())["machine"]
    return f"{found['cpu']}, {found['threads']} threads, torch {found['torch']}"


if __name__ == "__main__":
    print(table())
    print(machine())
    print(large_table())
    print(machine("large"))
    print(logged_table())
    print(machine("logged"))
    print(dispute_table())
    print(machine("dispute"))
    print(service_table())
    print(machine("service"))
