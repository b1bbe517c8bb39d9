"""An error as one line for people: what happened, and in which line of the user's own code."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

from veritrain.errors import VeritrainError

_FOREIGN = tuple(
    Path(path).resolve()
    for path in (
        str(Path(__file__).parents[1]),
        *(sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")),
    )
)


def describe(error: BaseException) -> str:
    """The error's message; where it came out of the user's own code, with the line."""
    if isinstance(error, VeritrainError):
        text, source = str(error), error.__cause__
    else:
        text, source = f"{type(error).__name__}: {error}", error
    line = None if source is None else _users_line(source)
    if line is None and not isinstance(error, VeritrainError):
        line = f"unexpected, at {_last_line(error)}; please report it"
    if line is None or line.partition(", line")[0] in text:  # it names the place already
        return text
    return f"{text} ({line})"


def _users_line(error: BaseException) -> str | None:
    """`FILE, line N: LINE`: the last line of the traceback that is not of an installed package."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and not _is_foreign(file.resolve()):
            return f"{file}, line {frame.lineno}: {frame.line}"
    return None


def _is_foreign(file: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    # An installed script, `veritrain` itself for example, is the first frame of everything.
    script = file == Path(sys.argv[0]).resolve()
    return script or any(file.is_relative_to(folder) for folder in _FOREIGN)


def _last_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "an unknown place"
