"""What a job's commitment covers: settings, the bytes of its source files, and the environment.

The source files are those of the job's snapshot (`loading/snapshot.py`), and what is executed are
their bytes; a job that was made in a script has been executed already, so it is looked at whether
its files are what ran. Installed packages are covered by their versions in the environment record.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritrain.encoding import Value, digest, same
from veritrain.errors import JobError, UsageError
from veritrain.job.loading import installed
from veritrain.job.loading.installed import is_installed
from veritrain.job.loading.scripts import require_executed
from veritrain.job.loading.snapshot import Snapshot

if TYPE_CHECKING:
    from veritrain.job.job import Job
    from veritrain.job.step import Program

ALWAYS = ("python", "torch", "numpy", "numba", "veritrain")  # in every environment
_WALK_DEPTH = 4  # data set wrappers and their transforms, one inside the other
_WALK_WIDTH = 64  # parts of one list: of transforms or of data sets, not of records


def commitment(job: Job) -> dict[str, Value]:
    """The value that a transcript's header holds of the job.

    Returns:
        {"config": the plain settings, "sources": {relative path: BLAKE3 digest of the file}}.

    Raises:
        JobError: a source file is missing, is not what was executed, or nothing says which files
            define the job.
    """
    sources: dict[str, Value] = {
        name: snapshot.digest(file) for name, (file, snapshot) in _named_files(job).items()
    }
    return {"config": job.settings, "sources": sources}


def contents(job: Job, limit: int) -> dict[str, bytes] | None:
    """The bytes of the job's source files, by the names that `commitment` gives them; None where
    they are more than `limit` bytes together.

    Raises:
        JobError: as `commitment`.
    """
    files = _named_files(job)
    if sum(snapshot.size(file) for file, snapshot in files.values()) > limit:
        return None
    return {name: snapshot.text(file) for name, (file, snapshot) in files.items()}


def contents_of(job: Job, digests: Mapping[str, Value], limit: int) -> dict[str, bytes]:
    """The bytes of those of the job's source files that `digests` names, with the digests that they
    have to have. Left out are files that cannot be read, have changed, or exceed what is left of
    `limit` bytes.

    Raises:
        JobError: as `commitment`.
    """
    found: dict[str, bytes] = {}
    for name, (file, snapshot) in _named_files(job).items():
        with suppress(JobError):
            if name in digests and snapshot.size(file) <= limit:
                data = snapshot.text(file)
                limit -= len(data)
                if digest("source", data) == digests[name]:
                    found[name] = data
    return found


def require_job(job: Job, claimed: Value, run: str) -> None:
    """Check that a run, whose header claims this of its job, is of `job`.

    Raises:
        UsageError: it is of another one.
        JobError: a source file is missing, or nothing says which files define the job.
    """
    if not same(commitment(job), claimed):
        raise UsageError(
            f"{run} is a run of another job than {job.origin or 'yours'}; "
            "`veritrain audit` names what differs"
        )


def source_files(job: Job) -> list[Path]:
    """The files that define the job, sorted, absolute."""
    return sorted({file for snapshot in _snapshots(job) for file in snapshot.files})


def _named_files(job: Job) -> dict[str, tuple[Path, Snapshot]]:
    """Each source file by its name in the commitment, with the snapshot that it is of."""
    found = {file: snapshot for snapshot in _snapshots(job) for file in snapshot.files}
    base = _base(job, found)
    return {
        Path(os.path.relpath(file, base)).as_posix(): (file, found[file]) for file in sorted(found)
    }


def _snapshots(job: Job) -> list[Snapshot]:
    """The files of a job, with the bytes that were executed.

    Raises:
        JobError: as `commitment`.
    """
    if job.loaded is not None:
        snapshot = job.loaded.snapshot
        if job.origin != snapshot.file:
            raise JobError(f"origin: {job.origin} is not the file that the job was loaded from")
        if job.sources is job.loaded.made.sources:
            return [snapshot]
        return [snapshot.extended(job.sources, snapshot.file.parent)]
    if job.origin is not None:
        raise JobError(f"origin: expected None, got {job.origin}; use load_job(path) to load a job")
    parts = list(_parts(job))
    snapshots = [Snapshot(file) for file in _defining_files(job, parts)]
    if job.sources:
        here = Path.cwd()
        first = snapshots[0] if snapshots else Snapshot(min(Snapshot.named(job.sources[:1], here)))
        snapshots.append(first.extended(job.sources, here))
    require_executed(snapshots, parts)
    return snapshots


def environment(program: Program, dataset: object) -> dict[str, str]:
    """Versions of what computes the run: Python, the numeric libraries, and the packages that the
    job's text imports, that its code has imported so far, or that define its functions and the
    classes of its modules, data set, optimiser and scheduler. A package without a version is
    recorded by the digest of its files."""
    record = {name: installed.version(name) for name in ALWAYS}
    job = program.job
    objects = [*program.model.modules(), dataset, program.optimizer, program.scheduler]
    parts = [type(part) for part in objects] + [job.model, job.loss, job.optimizer, job.collate]
    modules = (getattr(part, "__module__", None) for part in parts)
    tops = {name.partition(".")[0] for name in modules if isinstance(name, str)}
    own = {"__main__"} if job.loaded is None else {"__main__", job.loaded.module}
    for snapshot in _snapshots(job):
        tops |= snapshot.foreign | snapshot.reached
        own |= {name.partition(".")[0] for name in snapshot.names}
    unknown = tops - own - record.keys() - {"builtins"} - sys.stdlib_module_names
    return {**record, **(installed.versions(unknown) if unknown else {})}


def _defining_files(job: Job, parts: Iterable[object]) -> list[Path]:
    """Files that define the parts of a job made in a script.

    Raises:
        JobError: no part of the job comes from a file, and `sources` is empty.
    """
    found: set[Path] = set()
    for part in parts:
        file = _file_of(part)
        if file is None or is_installed(file):
            continue
        if not file.is_file():
            if not job.sources:
                raise JobError(
                    f"sources: {getattr(part, '__qualname__', part)!r} is not defined in a file "
                    f"(it comes from {file.name}), so nothing could commit to its code; "
                    "move it to a file, or pass sources=[...]"
                )
            continue
        found.add(file.resolve())
    if not found and not job.sources:
        raise JobError("sources: no file defines this job; pass sources=[...] with its code")
    return sorted(found)


def _parts(job: Job) -> Iterator[object]:
    """The functions and classes that make up a job."""
    parts: list[object] = [job.model, job.dataset, job.loss, job.optimizer]
    optional = (job.scheduler, job.before_step, job.collate)
    parts += [part for part in optional if part is not None]
    return _inside(parts, _WALK_DEPTH, set())


def _inside(parts: Iterable[object], depth: int, seen: set[int]) -> Iterator[object]:
    """The functions and classes that make up the given objects, wrapped ones included."""
    for part in parts:
        if id(part) in seen:
            continue
        seen.add(id(part))
        if inspect.isfunction(part) or inspect.isclass(part):
            yield inspect.unwrap(part)
        elif inspect.ismethod(part):
            yield from _inside([part.__func__, part.__self__], depth, seen)
        elif isinstance(part, functools.partial):
            yield from _inside([part.func, *part.args, *part.keywords.values()], depth, seen)
        elif isinstance(part, list | tuple):
            yield from _inside(part[:_WALK_WIDTH], depth - 1, seen) if depth else ()
        elif not inspect.isbuiltin(part):
            yield type(part)
            yield from _inside(_user_attributes(part), depth - 1, seen) if depth else ()


def _user_attributes(part: object) -> list[object]:
    values: Iterable[Any] = getattr(part, "__dict__", {}).values()
    return [value for value in values if callable(value) or hasattr(value, "__dict__")]


def _file_of(part: object) -> Path | None:
    """The file that defines a function or class; None for one that is compiled into Python."""
    try:
        name = inspect.getfile(part)  # type: ignore[arg-type]
    except (TypeError, OSError):  # a class: compiled into Python, or typed into a notebook
        in_main = getattr(part, "__module__", None) == "__main__"
        return Path("<notebook>") if in_main else None
    return Path(name)


def _base(job: Job, files: Iterable[Path]) -> Path:
    if job.origin is not None:
        return job.origin.parent
    return Path(os.path.commonpath([file.parent for file in files]))
