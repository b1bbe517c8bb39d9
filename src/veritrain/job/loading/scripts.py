"""Jobs that were made in a script: Python has executed the files that define them already.

Python may have executed something else than their text: bytecode, a compiled module, or what the
file held before somebody edited it. As far as that can be told afterwards, it is refused.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from veritrain.errors import JobError
from veritrain.job.loading.installed import is_installed
from veritrain.job.loading.modules import path_to
from veritrain.job.loading.snapshot import Snapshot


def require_executed(snapshots: Sequence[Snapshot], parts: Iterable[object]) -> None:
    """Check that what is loaded was executed from the text of the files that define a job.

    Args:
        snapshots: of the files that define parts of the job, and of those that it names.
        parts: the functions and classes that make it up.

    Raises:
        JobError: a module came from another file or from bytecode, its file has changed since, or
            the files import one that is neither installed nor among them.
    """
    parts = list(parts)
    by_file: dict[Path, ModuleType] = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and not is_installed(file):
            by_file[Path(file).resolve()] = module
    for snapshot in snapshots:
        for name, file in snapshot.names.items():
            loaded = _file_of(sys.modules.get(name))
            if loaded is not None and loaded != file.resolve():
                raise JobError(
                    f"{file}: the module of this name was loaded from {loaded}; "
                    "start a new process, or rename one of them"
                )
        for file in snapshot.files & by_file.keys():
            _require_source(snapshot, by_file[file], file, parts)
    _require_covered(snapshots, by_file)


def _have_one_root(file: Path, other: Path) -> bool:
    """Are two files of one project: below the current folder, and imported from there?

    Which modules of a project make up a job cannot be told from a script's text, since it does not
    say where its imports start from: such a script names them in `sources`.
    """
    here = Path.cwd()
    is_on_path = any(Path(entry).resolve() == here for entry in sys.path)
    return is_on_path and file.is_relative_to(here) and other.is_relative_to(here)


def _require_covered(snapshots: Sequence[Snapshot], by_file: Mapping[Path, ModuleType]) -> None:
    """No module that the files name, or have got hold of, is one that nothing commits to."""
    covered = {file for snapshot in snapshots for file in snapshot.files}
    for snapshot in snapshots:
        names = {part for name in snapshot.imports for part in path_to(name)}
        files = sorted(snapshot.files & by_file.keys())
        held = [value for file in files for value in vars(by_file[file]).values()]
        named = [sys.modules.get(name) for name in sorted(names)]
        for module in [*named, *(value for value in held if isinstance(value, ModuleType))]:
            file, loaded = getattr(module, "__file__", None), _file_of(module)
            # Modules that are made up, `torch.ops` for example, name files that do not exist.
            if loaded is None or not Path(str(file)).is_absolute() or not loaded.is_file():
                continue
            if is_installed(str(file)) or loaded in covered:
                continue
            if _have_one_root(snapshot.file, loaded):
                continue
            raise JobError(
                f"{snapshot.file}: imports {getattr(module, '__name__', '')}, which is {loaded}: it"
                " is not beside the files of the job and not of an installed package (an editable"
                " install is none), so nothing commits to it. Name the file or its folder in the"
                " job, sources=[...], or install it"
            )


def _require_source(
    snapshot: Snapshot, module: ModuleType, file: Path, parts: list[object]
) -> None:
    loader, name = getattr(module, "__loader__", None), module.__name__
    is_script = name == "__main__" and module.__spec__ is None  # run without bytecode
    if type(loader) is not SourceFileLoader and not _is_of_a_package(loader):
        raise JobError(
            f"{file}: was loaded by {type(loader).__name__} and not as a Python source, so its "
            "text does not say what ran; import it as it is"
        )
    if type(loader) is not SourceFileLoader:
        return  # an installed package has changed it on the way, as pytest does
    try:
        written = snapshot.code(file)
        ran = written if is_script else _Reader(name, str(module.__file__)).get_code(name)
    except (SyntaxError, ValueError) as error:
        raise JobError(f"{file}: is no longer what ran ({error}); start a new process") from error
    if ran != written:
        raise JobError(
            f"{file}: Python executes bytecode in its place that is not of this text; remove the "
            "__pycache__ folder beside it, and start a new process"
        )
    codes = set(_codes(written))
    for function in _functions([*vars(module).values(), *parts], module.__name__):
        is_own = Path(function.__code__.co_filename).resolve() == file
        if is_own and function.__code__ not in codes:
            raise JobError(
                f"{file}: {function.__qualname__} is not what ran; the file has changed since "
                "it was loaded: start a new process"
            )


class _Reader(SourceFileLoader):
    """Gives the code that Python would execute, and writes no bytecode."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        pass


def _is_of_a_package(loader: object) -> bool:
    file = _file_of(sys.modules.get(type(loader).__module__))
    return (
        loader is not None and file is not None and is_installed(file) and not _is_pythons(loader)
    )


def _is_pythons(loader: object) -> bool:
    """Python's own loaders of what is no source."""
    return type(loader).__module__.partition(".")[0] in ("importlib", "_frozen_importlib_external")


def _file_of(module: object) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _functions(values: Iterable[object], module: str) -> Iterator[Any]:
    """The functions among these values, and in the classes among them that `module` defines."""
    for value in values:
        if inspect.isfunction(value):
            yield value
        elif inspect.isclass(value) and value.__module__ == module:
            inner = [getattr(item, "__func__", item) for item in vars(value).values()]
            yield from (item for item in inner if inspect.isfunction(item))
