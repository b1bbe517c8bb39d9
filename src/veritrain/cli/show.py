"""`veritrain show`: what a run says of itself."""

from __future__ import annotations

import sys
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
_SEED_BYTES = 32


@click.command(
    "show",
    short_help="Show what a run says of itself.",
    epilog="""\b
Examples:
  veritrain show runs/a
  veritrain show runs/a --json
  veritrain show runs/a --csv > losses.csv
  veritrain show runs/a --sources
  veritrain show runs/a --source job.py > job.py

To find out whether it is true: veritrain audit runs/a --job job.py""",
)
@click.argument("run", type=params.Run())
@click.option("--csv", "as_csv", is_flag=True, help="Print step and loss as CSV, nothing else.")
@click.option("--sources", is_flag=True, help="List the job's source files instead.")
@click.option("--source", metavar="NAME", help="Print this source file instead, if RUN carries it.")
@access.options
@output.json_option
def command(run: str, as_csv: bool, sources: bool, source: str | None, as_json: bool) -> int:
    """Show what RUN, a folder, HTTP address or fsspec URL, says: job, key, losses, checkpoints,
    digest.

    It executes nothing, needs no job file, and judges nothing.
    """
    from veritrain.transcript import Transcript

    if as_csv and as_json:
        raise UsageError("--csv and --json: give one of them")
    if as_csv + sources + (source is not None) > 1:
        raise UsageError("--csv, --sources and --source: give one of them")
    transcript = Transcript.open(run)
    if as_csv:
        output.emit({}, _csv(transcript), as_json=False)
        return 0
    if source is not None:
        return _show_source(transcript, source, as_json=as_json)
    if sources:
        return _list_sources(transcript, as_json=as_json)
    size = transcript.total_bytes()
    output.emit(_data(transcript, size), _lines(transcript, size), as_json=as_json)
    return 0


def _list_sources(transcript: Transcript, *, as_json: bool) -> int:
    """Names and digests of the header, and the sizes of the files where the run carries them."""
    carried = transcript.sources()
    claimed = transcript.header.job.get("sources")
    files = [
        {"name": name, "digest": digest, "bytes": len(carried[name]) if carried else None}
        for name, digest in (claimed.items() if isinstance(claimed, dict) else ())
    ]
    rows = [
        (str(file["name"]), "-" if carried is None else str(file["bytes"]), _short(file["digest"]))
        for file in files
    ]
    how = "print one by --source NAME" if carried else "the run does not carry the files themselves"
    lines = [*output.table(("name", "bytes", "digest"), rows), "", how]
    output.emit({"carried": carried is not None, "sources": files}, lines, as_json=as_json)
    return 0


def _show_source(transcript: Transcript, name: str, *, as_json: bool) -> int:
    """One file: as it is where stdout is a file or a pipe, escaped where it is a terminal."""
    carried = transcript.sources()
    if carried is None:
        raise UsageError(f"{transcript.location} does not carry its source files")
    if name not in carried:
        names = ", ".join(map(output.escape, list(carried)[:_SHOWN_STEPS]))
        raise UsageError(f"--source: {name!r} is not one of them: {names}")
    data = carried[name]
    text = data.decode(errors="replace")
    if as_json or sys.stdout.isatty():
        output.emit({"name": name, "text": text}, _safe_lines(text), as_json=as_json)
    else:
        sys.stdout.buffer.write(data)
    return 0


def _safe_lines(text: str) -> list[output.Line]:
    return [output.escape(line.replace("\t", "    ")) for line in text.splitlines()]


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
        "carried": list(transcript.carried),
        "steps": _last_step(transcript),
        "job_steps": _job_steps(transcript),
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
        "location": transcript.location,
        "run": f"{header.digest.hex()} (of the header: names the run, in verdicts too)",
        "key": fingerprint(header.public_key),
        "public key": header.public_key.hex(),
        "numerics": f"{header.numerics}, version {header.numerics_version}",
        "job": _pairs(config),
        "sources": _pairs(sources),
        "data set": f"{header.dataset_count} records, root {header.dataset_root.hex()}",
        "environment": _pairs(header.environment),
        "carries": _carried(transcript),
        "steps": _progress(transcript),
        "checkpoints": _steps(transcript.checkpoint_steps),
        "size": f"{size:,} bytes",
        "digest": (
            f"{digest.hex()} (of all steps up to the last commit)"
            if digest
            else "none: nothing is committed yet"
        ),
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


def _job_steps(transcript: Transcript) -> int | None:
    """How many steps the job has, if the header says so."""
    config = transcript.header.job.get("config")
    steps = config.get("steps") if isinstance(config, dict) else None
    return steps if type(steps) is int else None


def _progress(transcript: Transcript) -> str:
    done, wanted = _last_step(transcript), _job_steps(transcript)
    return str(done) if wanted is None or wanted == done else f"{done} of {wanted}: unfinished"


def _carried(transcript: Transcript) -> str:
    names = {"sources": "source files", "records": "digests of records"}
    found = [names[path] for path in transcript.carried]
    return " and ".join(found) or "neither source files nor digests of records"


def _digest(transcript: Transcript) -> bytes | None:
    return transcript.heads[-1].head.root if transcript.heads else None


def _pairs(value: Value | Mapping[str, str]) -> str:
    """`name value, name value`: what a map of the header holds; anybody may have written it."""
    if not isinstance(value, Mapping):
        return "not stated"
    return ", ".join(
        f"{name} {_seed(item) if name == 'seed' else _short(item)}" for name, item in value.items()
    )


def _seed(value: Value) -> str:
    """A seed is 32 bytes, and often a small number."""
    if not isinstance(value, bytes) or len(value) != _SEED_BYTES:
        return f"{_short(value)} (no seed of {_SEED_BYTES} bytes)"
    number = int.from_bytes(value, "big")
    return str(number) if number < 2**53 else _short(value)


def _short(value: Value) -> str:
    if isinstance(value, bytes):
        text = value.hex()
        return f"{text[:16]}…" if len(text) > 16 else text
    return "none" if value is None else str(value)


def _steps(steps: tuple[int, ...]) -> str:
    names: Iterable[str] = map(str, steps)
    if len(steps) > _SHOWN_STEPS:
        half = _SHOWN_STEPS // 2
        names = [*map(str, steps[:half]), "…", *map(str, steps[-half:])]
    return f"{len(steps)} ({', '.join(names)})" if steps else "none"
