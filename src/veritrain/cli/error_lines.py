"""An error as one line for people: what happened, and in which line of the user's own code."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from veritrain.errors import NumericsError, VeritrainError

_FOREIGN = tuple(
    Path(path).resolve()
    for path in (
        str(Path(__file__).parents[1]),
        *(sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")),
    )
)
_BACKWARD = "_engine_run_backward"  # torch.autograd.graph: what a backward pass goes through


def describe(error: BaseException) -> str:
    """The error's message; where it came out of the user's own code, with the line.

    Of what numerics refuse, also in which module or other part of a step it was.
    """
    is_ours = isinstance(error, VeritrainError)
    text = str(error) if is_ours else f"{type(error).__name__}: {error}"
    line = _users_line(error)
    if is_ours and error.__cause__ is not None:
        line = _users_line(error.__cause__) or line
    if line is None and not is_ours:
        line = f"unexpected, at {_last_line(error)}; please report it"
    if line is not None and line.partition(", line")[0] in text:  # it names the place already
        line = None
    part = _part_of_step(error) if isinstance(error, NumericsError) else None
    where = "; ".join(filter(None, (part, line)))
    return f"{text} ({where})" if where else text


def _part_of_step(error: NumericsError) -> str | None:
    """The part of a step that the traceback shows: backward pass, module or optimiser."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(frame.f_code.co_name == _BACKWARD for frame in frames):
        return "in the backward pass, `veritrain check` names the module"
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return None
    owners: list[Any] = [owner for frame in frames if (owner := _owner(frame)) is not None]
    modules = [owner for owner in owners if isinstance(owner, torch.nn.Module)]
    if modules:
        paths = {id(module): path for path, module in modules[0].named_modules()}
        path = paths.get(id(modules[-1]))
        return f"in module {path} of {type(modules[0]).__name__}" if path else None
    optimisers = [owner for owner in owners if isinstance(owner, torch.optim.Optimizer)]
    return f"in the step of {type(optimisers[0]).__name__}" if optimisers else None


def _owner(frame: FrameType) -> Any:
    """The object whose method the frame runs."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


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
