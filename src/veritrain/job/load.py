"""From a job file to a job: executed from the bytes that were read once, and loaded anew from
them."""

from __future__ import annotations

import ast
import itertools
import sys
import traceback
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

from veritrain.errors import JobError
from veritrain.job.job import Job, Loaded, Source
from veritrain.job.loading import gates
from veritrain.job.loading.modules import JobModules
from veritrain.job.loading.snapshot import Snapshot

_SHOWN_FILES = 5  # job files of a folder, in a message


def load_job(path: Source) -> Job:
    """Execute a job file, an ordinary Python file with `def job() -> veritrain.Job`.

    The file and the modules that it imports from its own folder are read once, and executed from
    what was read, now and whenever they are imported; so the job's digest is of the code that runs.
    It is code: load only job files that you would run.

    Raises:
        JobError: no such file, no `job` function, it raised (the message shows the line), it
            returned something else than a `Job`, or it imports what nothing commits to.
    """
    file = _job_file(Path(path))
    outer = gates.calling_job()
    if outer is not None:
        raise JobError(
            f"{outer.snapshot.file}: loads {file}, and nothing would commit to that file; import "
            f"what you need of it instead: `from {file.stem} import job`"
        )
    gates.install()
    return _make(Snapshot(file), f"_veritrain_job_{next(_module_numbers)}_{file.stem}")


def reload(job: Job) -> Job:
    """The same job, loaded anew from the bytes that were read first, with fresh modules.

    Nothing that the job kept in globals, modules or data set objects of its own survives; what was
    changed by `dataclasses.replace` stays changed. No file is read for it. A job that was made in
    a script comes back as it is.

    Raises:
        JobError: as `load_job`.
    """
    old = job.loaded
    if old is None:
        return job
    fresh = _make(old.snapshot, old.module)
    kept = {item.name: getattr(job, item.name) for item in fields(Job)}
    changed = {
        name: value
        for name, value in kept.items()
        if name not in ("origin", "loaded") and value is not getattr(old.made, name)
    }
    return replace(fresh, **changed)


_module_numbers = itertools.count()


def _make(snapshot: Snapshot, name: str) -> Job:
    """Execute a job file, and its `job` function."""
    file, modules = snapshot.file, JobModules(snapshot, name)
    try:
        made = _called(modules.run(), file)
        snapshot.add(snapshot.named(made.sources, file.parent))
        modules.seal()
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        modules.withdraw()
        sys.modules.pop(name, None)
        raise JobError(_described(snapshot, error)) from error
    return replace(made, origin=file, loaded=Loaded(snapshot=snapshot, module=name, made=made))


def _called(module: ModuleType, file: Path) -> Job:
    """What the `job` function of a job file returns."""
    make = getattr(module, "job", None)
    if not callable(make):
        raise JobError(f"{file}: expected a function `def job() -> veritrain.Job`, got none")
    made = make()
    if not isinstance(made, Job):
        raise JobError(f"{file}: job() must return a veritrain.Job, got {type(made).__name__}")
    return made


def _job_file(path: Path) -> Path:
    """The file that a path names, absolute.

    Raises:
        JobError: it names none, or one that is no Python file; says what to name.
    """
    file = path.resolve()
    if file.is_dir():
        found = [f"`{path / name}`" for name in _job_files_in(file)]
        if len(found) == 1:
            raise JobError(f"{path}: is a folder; name the job file in it: {found[0]}")
        if found:
            raise JobError(f"{path}: is a folder; name one job file in it: {', '.join(found)}")
        raise JobError(
            f"{path}: is a folder, and no file in it has `def job() -> veritrain.Job`; name a "
            "job file"
        )
    if not file.is_file():
        raise JobError(f"{path}: expected a Python file with `def job()`, got no such file")
    if file.suffix != ".py":
        raise JobError(
            f"{path}: expected a Python file with `def job()`, its name ends in "
            f"{file.suffix or 'nothing'!r}; rename it to {file.stem}.py"
        )
    return file


def _job_files_in(folder: Path) -> list[str]:
    """Names of the Python files of a folder that define a function `job`, sorted."""
    found: list[str] = []
    for file in sorted(folder.glob("*.py")):
        try:
            body = ast.parse(file.read_bytes()).body
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if any(isinstance(node, ast.FunctionDef) and node.name == "job" for node in body):
            found.append(file.name)
    return found[:_SHOWN_FILES]


def _described(snapshot: Snapshot, error: BaseException) -> str:
    """`FILE, line N: LINE` with the error, for the last line of the job file that was reached."""
    file, what = snapshot.file, f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        line = f", line {error.lineno}" if error.lineno else ""  # a binary file has none
        return f"{error.filename or file}{line}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename == str(file)]
    if isinstance(error, JobError) and (not inside or str(error).startswith(str(file))):
        return f"{error} (line {inside[-1].lineno})" if inside else str(error)
    if not inside:
        return f"{file}: raised {what}"
    number = inside[-1].lineno or 0
    lines = snapshot.text(file).decode(errors="replace").splitlines()[number - 1 : number]
    return f"{file}, line {number}: `{''.join(lines).strip()}` raised {what}"
