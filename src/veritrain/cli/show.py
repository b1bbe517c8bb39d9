"""`veritrain show`: what a run says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import click

from veritrain.cli import access, output, params
from veritrain.cli.plot import plot
from veritrain.errors import UsageError

if TYPE_CHECKING:
    from veritrain.encoding import Value
    from veritrain.transcript import Transcript

_SHOWN_STEPS = 8


@click.command(
    "show",
    short_help="Show what a run says of itself.",
    epilog="""\b
Examples:
  veritrain show runs/a
  veritrain show runs/a --json
  veritrain show runs/a --csv > losses.csv

To find out whether it is true: veritrain audit runs/a --job job.py""",
)
@click.argument("run", type=params.Run())
@click.option("--csv", "as_csv", is_flag=True, help="Print step and loss as CSV, nothing else.")
@access.options
@output.json_option
def command(run: str, as_csv: bool, as_json: bool) -> int:
    """Show what RUN, a folder, HTTP address or fsspec URL, says: job, key, losses, checkpoints, digest.

    It executes nothing, needs no job file, and judges nothing.
    """
    from veritrain.transcript import Transcript

    if as_csv and as_json:
        raise UsageError("--csv and --json: give one of them")
    transcript = Transcript.open(run)
    if as_csv:
        output.emit({}, _csv(transcript), as_json=False)
        return 0
    size = transcript.total_bytes()
    output.emit(_data(transcript, size), _lines(transcript, size), as_json=as_json)
    return 0


def _data(transcript: Transcript, size: int) -> dict[str, object]:
    from veritrain.transcript.signing import fingerprint

    header = transcript.header
    return {
        "location": transcript.location,
        "run": header.digest,
        "key": fingerprint(header.public_key),
        "public_key": header.public_key,
        "numerics": {"name": header.numerics, "version": header.numerics_version},
        "job": header.job,
        "dataset": {"count": header.dataset_count, "root": header.dataset_root},
        "environment": header.environment,
        "steps": _last_step(transcript),
        "losses": _losses(transcript),
        "checkpoints": list(transcript.checkpoint_steps),
        "leftovers": list(transcript.leftovers),
        "bytes": size,
        "digest": _digest(transcript),
    }


def _lines(transcript: Transcript, size: int) -> list[output.Line]:
    from veritrain.transcript.signing import fingerprint

    header = transcript.header
    digest = _digest(transcript)
    config, sources = header.job.get("config"), header.job.get("sources")
    facts = {
        "run": transcript.location,
        "key": fingerprint(header.public_key),
        "public key": header.public_key.hex(),
        "numerics": f"{header.numerics}, version {header.numerics_version}",
        "job": _pairs(config),
        "sources": _pairs(sources),
        "data set": f"{header.dataset_count} records, root {header.dataset_root.hex()}",
        "environment": _pairs(header.environment),
        "steps": str(_last_step(transcript)),
        "checkpoints": _steps(transcript.checkpoint_steps),
        "size": f"{size:,} bytes",
        "digest": digest.hex() if digest else "none: nothing is committed yet",
    }
    if transcript.leftovers:
        facts["leftovers"] = f"{len(transcript.leftovers)} files of an interrupted commit"
    lines: list[output.Line] = [f"{name:<12} {output.escape(text)}" for name, text in facts.items()]
    losses = _losses(transcript)
    if losses:
        lines += ["", "loss", *plot(losses)]
    return [*lines, "", "This is what the run says. To check it: veritrain audit RUN --job JOB"]


def _losses(transcript: Transcript) -> list[float]:
    return [leaf.loss for leaf in transcript.leaves if leaf.loss is not None]


def _csv(transcript: Transcript) -> list[output.Line]:
    """A line for each step, with all digits of its loss; step 0 has none."""
    steps = (f"{leaf.step},{leaf.loss!r}" for leaf in transcript.leaves if leaf.loss is not None)
    return ["step,loss", *steps]


def _last_step(transcript: Transcript) -> int:
    return max(0, len(transcript.leaves) - 1)


def _digest(transcript: Transcript) -> bytes | None:
    return transcript.heads[-1].head.root if transcript.heads else None


def _pairs(value: Value | Mapping[str, str]) -> str:
    """`name value, name value`: what a map of the header holds, whoever wrote it."""
    if not isinstance(value, Mapping):
        return "not stated"
    return ", ".join(f"{name} {_short(item)}" for name, item in value.items())


def _short(value: Value) -> str:
    if isinstance(value, bytes):
        number = int.from_bytes(value, "big")  # a seed is often a small one
        return str(number) if number < 2**53 else f"{value.hex()[:16]}…"
    return "none" if value is None else str(value)


def _steps(steps: tuple[int, ...]) -> str:
    names: Iterable[str] = map(str, steps)
    if len(steps) > _SHOWN_STEPS:
        half = _SHOWN_STEPS // 2
        names = [*map(str, steps[:half]), "…", *map(str, steps[-half:])]
    return f"{len(steps)} ({', '.join(names)})" if steps else "none"
