"""`veritrain init`: a job to begin with."""

from __future__ import annotations

import os
import re
import shlex
from importlib.resources import files
from pathlib import Path

import click

from veritrain.cli import output
from veritrain.errors import UsageError


@click.command(
    "init",
    short_help="Write a commented job to begin with.",
    epilog="""\b
Examples:
  veritrain init
  veritrain init experiments/first.py

What to do then is printed, and stands in the file.""",
)
@click.argument("file", type=click.Path(path_type=Path), default=Path("job.py"))
@output.json_option
def command(file: Path, as_json: bool) -> int:
    """Write a commented job to FILE (job.py), to begin with. It runs as it is.

    Nothing is ever overwritten.
    """
    if os.path.isdir(file):
        raise UsageError(f"{file}: is a folder; name a file: veritrain init {file / 'job.py'}")
    if file.suffix != ".py":
        raise UsageError(f"{file}: a job is a Python file; name it {file}.py")
    text = files("veritrain.cli").joinpath("starter.py").read_text(encoding="utf-8")
    if re.fullmatch(r"[\w.-]+", file.name):  # it stands in a docstring
        text = text.replace("job.py", file.name)
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise UsageError(f"{file}: exists already; nothing is overwritten") from None
    except FileNotFoundError:
        raise UsageError(f"{file}: there is no folder {file.parent}; make it first") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}") from error
    name = shlex.quote(str(file))
    steps = [
        f"veritrain check {name}",
        f"veritrain train {name} --out runs/first",
        f"veritrain audit runs/first --job {name}",
    ]
    lines: list[output.Line] = [
        f"wrote {output.escape(str(file))}; try:",
        *("  " + s for s in steps),
    ]
    output.emit({"path": str(file), "next": steps}, lines, as_json=as_json)
    return 0
