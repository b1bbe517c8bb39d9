"""What a job's commitment covers: settings, the bytes of its source files, and the environment.

The source files of a job are found from the files' text, not from what happens to be loaded, so
that trainer and auditor find the same ones: the file (or files) that define the job, every module
of the same folder that they import anywhere in them, recursively, and the files that the job
names in `sources`. A module that is imported only under a name made at run time is not seen; name
it in `sources`. Installed packages are covered by their versions in the environment record.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import inspect
import os
import platform
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritrain.encoding import Digest, Value, digest, encode
from veritrain.errors import JobError, UsageError

if TYPE_CHECKING:
    from veritrain.job import Job
    from veritrain.step import Program

_INSTALLED = (
    Path(__file__).resolve().parent,
    *(Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib")),
)
_WALK_DEPTH = 4  # data set wrappers and their transforms, one inside the other
_WALK_WIDTH = 64  # parts of one list: of transforms or of data sets, not of records


def commitment(job: Job) -> dict[str, Value]:
    """The value that a transcript's header holds of the job.

    Returns:
        {"config": the plain settings, "sources": {relative path: BLAKE3 digest of the file}}.

    Raises:
        JobError: a source file is missing, or nothing says which files define the job.
    """
    files = source_files(job)
    base = _base(job, files)
    sources: dict[str, Value] = {
        Path(os.path.relpath(file, base)).as_posix(): _file_digest(file) for file in files
    }
    return {"config": job.settings, "sources": sources}


def require_job(job: Job, claimed: Value, run: str) -> None:
    """Check that a run, whose header claims this of its job, is of `job`.

    Raises:
        UsageError: it is of another one.
        JobError: a source file is missing, or nothing says which files define the job.
    """
    if encode(commitment(job)) != encode(claimed):
        raise UsageError(
            f"{run} is a run of another job than {job.origin or 'yours'}; "
            "`veritrain audit` names what differs"
        )


def source_files(job: Job) -> list[Path]:
    """The files that define the job, sorted, absolute."""
    roots = [job.origin] if job.origin is not None else _defining_files(job)
    folder = job.origin.parent if job.origin is not None else Path.cwd()
    found = {(folder / source).resolve() for source in job.sources}
    for root in roots:
        imported = local_imports(root)
        for name, file in imported.items():
            _require_loaded_from(file, name)
        found |= {root, *imported.values()}
    return sorted(found)


def environment(program: Program, dataset: object) -> dict[str, str]:
    """Versions of what computes the run: Python, the numeric libraries, and the packages that
    define the job's functions and the classes of its modules, data set, optimiser, scheduler."""
    record = {"python": platform.python_version()}
    for name in ("torch", "numpy", "numba", "veritrain"):
        record[name] = importlib.metadata.version(name)
    job = program.job
    objects = [*program.model.modules(), dataset, program.optimizer, program.scheduler]
    parts = [type(part) for part in objects] + [job.model, job.loss, job.optimizer, job.collate]
    modules = (getattr(part, "__module__", None) for part in parts)
    tops = {name.partition(".")[0] for name in modules if isinstance(name, str)}
    unknown = tops - record.keys() - {"builtins", "__main__"} - sys.stdlib_module_names
    if unknown:
        owners = importlib.metadata.packages_distributions()
        for top in unknown:
            for name in owners.get(top, ()):
                record[name] = importlib.metadata.version(name)
    return record


def forget_stale_modules(file: Path) -> None:
    """Drop loaded modules that carry the name of one of the job's own modules, so that the job
    runs the files beside it and not the ones that an earlier job of this process brought along.

    Raises:
        JobError: a file beside the job has the name of an installed module.
    """
    for name, path in local_imports(file).items():
        loaded = _loaded_file(name)
        if loaded is not None and loaded != path.resolve() and is_installed(loaded):
            raise JobError(f"{path}: has the name of the installed module {loaded}; rename it")
        sys.modules.pop(name, None)


def local_imports(file: Path) -> dict[str, Path]:
    """Modules of the same folder (or of the package that the file is in) that it imports, by the
    name under which they are imported."""
    roots = [file.parent, _import_root(file)]  # the file's folder is first on the import path
    found: dict[str, Path] = {}
    waiting = [(_module_name(file, roots[-1]), file)]
    while waiting:
        for name, path in _direct_imports(*waiting.pop(), roots):
            if name not in found and path != file:
                found[name] = path
                waiting.append((name, path))
    return found


def _direct_imports(name: str, file: Path, roots: list[Path]) -> Iterator[tuple[str, Path]]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # running the file reports it, with the line
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _resolve(roots, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            for alias in node.names:
                if node.level == 0:
                    yield from _resolve(roots, [*parts, alias.name])
                else:
                    package = _package(name, file, node.level)
                    yield from _walk(file.parents[node.level - 1], package, [*parts, alias.name])


def _resolve(roots: list[Path], parts: list[str]) -> Iterator[tuple[str, Path]]:
    """As `_walk`, from the first folder of the import path that has something of this name."""
    for root in roots:
        found = list(_walk(root, [], parts))
        if found:
            yield from found
            return


def _walk(folder: Path, package: list[str], parts: list[str]) -> Iterator[tuple[str, Path]]:
    """Name and file of every module that importing `parts` from the package `package`, which lies
    in `folder`, would execute."""
    for part in parts:
        package = [*package, part]
        module, inner = folder / f"{part}.py", folder / part
        if (inner / "__init__.py").is_file():
            yield ".".join(package), inner / "__init__.py"
        elif module.is_file():
            yield ".".join(package), module
            return
        elif not inner.is_dir():
            return
        folder = inner


def _package(name: str, file: Path, level: int) -> list[str]:
    """The package that a relative import of this level starts from."""
    parts = name.split(".")
    up = level - 1 if file.name == "__init__.py" else level
    return parts[: max(0, len(parts) - up)]


def _import_root(file: Path) -> Path:
    """The folder that the file's absolute imports start from."""
    folder = file.parent
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return folder


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _loaded_file(name: str) -> Path | None:
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


def _require_loaded_from(file: Path, name: str) -> None:
    """The digest must be of the code that runs: refuse a module loaded from another folder."""
    loaded = _loaded_file(name)
    if loaded is not None and loaded != file.resolve():
        raise JobError(
            f"{file}: the module of this name was loaded from {loaded}; "
            "start a new process, or rename one of them"
        )


def _defining_files(job: Job) -> list[Path]:
    """Files that define the parts of a job made in a script.

    Raises:
        JobError: no part of the job comes from a file, and `sources` is empty.
    """
    parts: list[object] = [job.model, job.dataset, job.loss, job.optimizer]
    parts += [part for part in (job.scheduler, job.collate) if part is not None]
    found: set[Path] = set()
    for part in _inside(parts, _WALK_DEPTH, set()):
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


def is_installed(file: Path) -> bool:
    """Does a file belong to Python, to Veritrain or to an installed package?"""
    resolved = file.resolve()
    if {"site-packages", "dist-packages"} & set(resolved.parts):
        return True
    return any(resolved.is_relative_to(folder) for folder in _INSTALLED)


def _base(job: Job, files: list[Path]) -> Path:
    if job.origin is not None:
        return job.origin.parent
    return Path(os.path.commonpath([file.parent for file in files]))


def _file_digest(file: Path) -> Digest:
    try:
        return digest("source", file.read_bytes())
    except OSError as error:
        raise JobError(f"sources: cannot read {file}: {error.strerror}") from error
