"""What all commands print, and how: results to stdout, errors and progress to stderr.

Text that comes out of a run folder may hold anything, terminal control sequences too: everything
printed here is escaped first. Colours and progress bars appear on a terminal only.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, cast

import click

from veritrain.runtime.progress import Compiling, Event, Lines, Narrator, Stage, told_to
from veritrain.runtime.text import Line as Line
from veritrain.runtime.text import escape as escape
from veritrain.runtime.text import one_line as one_line
from veritrain.runtime.text import table as table

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def tolerate_any_text() -> None:
    """Print `?` where the terminal's encoding lacks a character, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            cast("Any", stream).reconfigure(errors="replace")


def emit(
    data: Mapping[str, object],
    lines: Sequence[Line],
    *,
    as_json: bool,
    stream: TextIO | None = None,
) -> None:
    """Print a command's result: `data` for programs, or `lines` for people. `stream`: where, inside
    of `only_results_on_stdout`."""
    to = stream if stream is not None else sys.stdout
    if as_json:
        print(json.dumps(_jsonable(data), indent=2, allow_nan=False), file=to)
    else:
        _print(lines, to)
    to.flush()


def warn(message: str) -> None:
    """Print one line on stderr: something that does not end the command."""
    print(f"veritrain: {one_line(message)}", file=sys.stderr, flush=True)


def fail(message: str, kind: str, code: int, *, as_json: bool) -> int:
    """Print an error: one line on stderr, and for programs one object on stdout.

    Returns:
        `code`.
    """
    text = one_line(message)
    _print([(f"veritrain: {text}", "red")], sys.stderr)
    if as_json:
        print(json.dumps({"error": {"kind": kind, "message": text}, "exit_code": code}, indent=2))
    return code


def diff_style(line: str) -> str:
    """The style of a line of a unified diff; none for other lines."""
    if line.startswith(("---", "+++")):
        return "bold"
    return {"-": "red", "+": "green", "@": "cyan"}.get(line[:1], "")


@contextmanager
def only_results_on_stdout() -> Generator[TextIO]:
    """Within it, whatever writes to stdout (the job's own prints, worker processes too) writes to
    stderr: stdout is for the result. Gives the real stdout, for a result that comes in the
        middle."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr), open(os.dup(kept), "w", errors="replace") as stdout:
            yield stdout
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def progress() -> Generator[None]:
    """Within it, stderr shows what work tells (`veritrain.runtime.progress`): a bar on a terminal,
    else lines."""
    if not sys.stderr.isatty():
        with told_to(Lines(warn)):
            yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    narrator, before = Narrator(), ""
    task = bar.add_task("", total=None)

    def show(event: Event) -> None:
        nonlocal before
        text = one_line(narrator.describe(event))
        if isinstance(event, Compiling):  # in the midst of something else, which then goes on
            bar.update(task, description=text if event.kernel is not None else before)
            return
        before = text
        if isinstance(event, Stage):
            bar.reset(task, description=text, total=None)
        else:
            bar.update(task, description=text, completed=event.done, total=event.total)

    with bar, told_to(show):
        yield


def _print(lines: Sequence[Line], stream: Any) -> None:
    pairs = [(line, "") if isinstance(line, str) else line for line in lines]
    if not stream.isatty():
        for text, _ in pairs:
            print(text, file=stream)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    for text, style in pairs:
        console.print(Text(text, style=style), soft_wrap=True)


def _jsonable(value: object) -> object:
    """Bytes as hexadecimal digits, infinite numbers as text: JSON has neither."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in cast("Mapping[str, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in cast("Sequence[object]", value)]
    return value
