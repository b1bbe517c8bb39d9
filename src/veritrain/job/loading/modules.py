"""The modules of a loaded job: executed from its snapshot, whenever they are imported.

The job's modules see an `__import__` of their own. It gives them the modules of their job and not
those that another job, or the program around it, loaded under the same name. A file of the snapshot
is executed from the bytes that were read, a module of the installation is left to Python, and
everything else is refused. Bytecode and compiled modules beside the sources are never looked at.
"""

from __future__ import annotations

import builtins
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, resolve_name, spec_from_file_location
from os import path as paths
from pathlib import Path
from types import ModuleType
from typing import Any

from veritrain.errors import JobError
from veritrain.job.loading.installed import is_installed
from veritrain.job.loading.snapshot import Snapshot

_active: JobModules | None = None  # whose modules are in sys.modules under their plain names


class JobModules:
    """The modules of one loading of a job.

    Args:
        snapshot: its files.
        name: of the job file's module; the other ones have the names that they are imported by.
    """

    def __init__(self, snapshot: Snapshot, name: str) -> None:
        self.snapshot = snapshot
        self.name = name
        self._modules: dict[str, ModuleType] = {}
        self._known: dict[str, ModuleType] = {}  # modules of the installation, as they were seen
        self._executed: set[Path] = set()
        self._runnable = snapshot.files | snapshot.nameable
        self._builtins = {**vars(builtins), "__import__": self._import}
        self._update_places()

    def run(self) -> ModuleType:
        """Execute the job file as a fresh module.

        Raises:
            JobError: a file beside the job has the name of an installed module.
        """
        self._refuse_installed_names()
        self.activate()
        file = self.snapshot.file
        module = module_from_spec(self._spec(self.name, file, None))
        sys.modules[self.name] = module
        self.execute(module, str(file))
        return module

    def seal(self) -> None:
        """From now on only files that the commitment covers are executed.

        Raises:
            JobError: another one was, or one of the job's modules has got hold of one.
        """
        self._runnable = self.snapshot.files
        self._update_places()
        for file in sorted(self._executed - self.snapshot.files):
            raise self.refusal(file.stem, str(file))
        for module in self._modules.values():
            for value in list(vars(module).values()):
                is_foreign = isinstance(value, ModuleType) and _is_foreign(value)
                if is_foreign and not any(value is own for own in self._modules.values()):
                    raise self.refusal(value.__name__, str(getattr(value, "__file__", None)))

    def activate(self) -> None:
        """Put the job's modules where Python looks for them, in the place of another job's."""
        global _active
        if _active is self:
            return
        if _active is not None:
            _active.withdraw()
        sys.modules.update(self._modules)
        _active = self

    def withdraw(self) -> None:
        """Take the job's modules from where Python looks for them."""
        global _active
        for name, module in self._modules.items():
            # The job file's own stays: objects of its classes are pickled by its name.
            if name != self.name and sys.modules.get(name) is module:
                _take(name)
        if _active is self:
            _active = None

    def execute(self, module: ModuleType, file: str) -> None:
        """Execute a file as a module: from the snapshot, or not at all.

        Raises:
            JobError: nothing commits to the file.
        """
        name, source = module.__name__, self._source(file)
        if source is None:
            raise self.refusal(name, file)
        self._executed.add(source)
        module.__dict__["__builtins__"] = self._builtins
        self.keep(module)
        try:
            exec(self.snapshot.code(source), module.__dict__)  # noqa: S102 - the job's own code
        except BaseException:
            self._modules.pop(name, None)
            raise
        if name in self._modules:
            self._modules[name] = sys.modules.get(name, module)  # a module may replace itself

    def keep(self, module: ModuleType) -> None:
        """Remember a module as the job's, if it is loaded under its name."""
        if sys.modules.get(module.__name__) is module:
            self._modules[module.__name__] = module

    def importing(
        self, load: Callable[[], ModuleType], name: str, parts: Sequence[str] = ()
    ) -> ModuleType:
        """What `load` returns, which imports this module and these parts of it: those of the job
        come before those of other jobs and of the program around them."""
        self.activate()
        taken: dict[str, ModuleType] = {}
        for each in (*path_to(name), *(f"{name}.{part}" for part in parts)):
            module = sys.modules.get(each)
            if module is not None and self._known.get(each) is not module:
                taken |= self._made_way(each, module)
        if not taken:
            return load()
        try:
            return load()
        except BaseException:
            for each, module in taken.items():
                sys.modules.setdefault(each, module)
            raise

    def own_spec(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """How to load a module from the snapshot; None if it has none of this name."""
        tail = name.rpartition(".")[2]
        if tail not in self._tails:
            return None
        folders: list[str] = []
        roots = [str(root) for root in self.snapshot.roots]
        for entry in [*roots, *sys.path] if path is None else path:
            for spelled in (paths.abspath(entry), paths.realpath(entry)):
                inner, module = Path(spelled, tail), Path(spelled, f"{tail}.py")
                if inner / "__init__.py" in self._runnable:
                    return self._spec(name, inner / "__init__.py", [str(inner)])
                if module in self._runnable:
                    return self._spec(name, module, None)
                if inner in self._folders and str(inner) not in folders:
                    folders.append(str(inner))
        return self._folder_spec(name, folders) if folders else None

    def accepted(
        self, name: str, path: Sequence[str] | None, spec: ModuleSpec | None
    ) -> ModuleSpec | None:
        """What Python found, if it may be loaded.

        Raises:
            JobError: it is not of the installation.
        """
        if spec is None and path is None:
            spec = PathFinder.find_spec(name, [str(root) for root in self.snapshot.roots])
        if spec is None:
            return None
        folders = list(spec.submodule_search_locations or ())
        if spec.origin is None and folders and not all(map(is_installed, folders)):
            return self._folder_spec(name, folders)
        if spec.origin in (None, "built-in", "frozen") or is_installed(spec.origin):
            return spec
        source = self._source(spec.origin)
        if source is None:
            raise self.refusal(name, spec.origin)
        return self._spec(name, source, folders or None)

    def refusal(self, name: str, file: str) -> JobError:
        """Why a module is not executed, and what to do."""
        job, place = self.snapshot.file, Path(paths.realpath(file))
        if place.suffix != ".py" or not place.is_file():
            return JobError(
                f"{job}: imports {name}, which is {file}: nothing commits to that code. Of modules "
                "that are not installed only Python sources are executed; install it as a "
                "package, or do without it"
            )
        if place.is_relative_to(job.parent):
            named = place.relative_to(job.parent).as_posix()
            return JobError(
                f"{job}: imports {name}, which is {file}: the job's text does not show it, so "
                f"nothing commits to that file; name it in the job: sources=[{named!r}], written "
                "out as text in the job file"
            )
        return JobError(
            f"{job}: imports {name}, which is {file}: outside of the job's folder and not of an "
            "installed package (an editable install is none), so nothing commits to it. Put it "
            "beside the job, name the file or its folder in the job, sources=[...], written out as "
            "text in the job file, or install it"
        )

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """The `__import__` of the job's modules."""
        names = globals or {}
        package = names.get("__package__")
        if level and not package and names.get("__name__") == self.name:
            raise ImportError(
                "a job file is not part of a package: write the import without leading dots "
                "(modules beside the job file are found by their names)"
            )
        full = resolve_name("." * level + name, package) if level and package else name
        parts = fromlist or ()
        self.snapshot.reached.add(path_to(full)[0])
        return self.importing(
            lambda: builtins.__import__(name, globals, locals, parts, level), full, parts
        )

    def _made_way(self, name: str, module: ModuleType) -> dict[str, ModuleType]:
        """A module of somebody else gives way to the one of its name that the job is to have."""
        if self._modules.get(name) is module:
            return {}
        if name not in self.snapshot.names and not _is_foreign(module):
            self._known[name] = module
            return {}
        inner = [other for other in sys.modules if other == name or other.startswith(f"{name}.")]
        inner.sort()  # a package goes first, and stays whole for the program that has it
        return {other: _take(other) for other in inner}

    def _source(self, file: str) -> Path | None:
        """The file of the snapshot that this one is, if it may be executed."""
        for spelled in (Path(paths.abspath(file)), Path(paths.realpath(file))):
            if spelled in self._runnable:
                return spelled
        return None

    def _spec(self, name: str, file: Path, folders: list[str] | None) -> ModuleSpec:
        spec = spec_from_file_location(
            name, file, loader=_SnapshotLoader(self, name, file), submodule_search_locations=folders
        )
        if spec is None:
            raise ImportError(f"{file}: no module")
        return spec

    def _folder_spec(self, name: str, folders: list[str]) -> ModuleSpec:
        """A package that is a folder without `__init__.py`: it has no code of its own."""
        spec = ModuleSpec(name, _FolderLoader(self), is_package=True)
        spec.submodule_search_locations = folders
        return spec

    def _update_places(self) -> None:
        """What is looked for in the snapshot: last parts of names, and folders that hold files."""
        files = [file for file in self._runnable if file.suffix == ".py"]
        self._folders = {folder for file in files for folder in file.parents}
        self._tails = {file.stem for file in files} | {folder.name for folder in self._folders}

    def _refuse_installed_names(self) -> None:
        for name, file in self.snapshot.names.items():
            loaded = getattr(sys.modules.get(name), "__file__", None)
            is_taken = (
                isinstance(loaded, str) and is_installed(loaded) and Path(loaded).resolve() != file
            )
            if is_taken or name in sys.stdlib_module_names:
                what = loaded if is_taken else f"{name} of Python"
                raise JobError(f"{file}: has the name of the installed module {what}; rename it")


class _SnapshotLoader(SourceFileLoader):
    """Executes a file of a snapshot. Resources of packages are read as ever."""

    def __init__(self, modules: JobModules, name: str, file: Path) -> None:
        super().__init__(name, str(file))
        self._modules = modules

    def exec_module(self, module: ModuleType) -> None:
        self._modules.execute(module, str(self.path))


class _FolderLoader(Loader):
    """Makes the module of a folder that the job's modules lie in."""

    def __init__(self, modules: JobModules) -> None:
        self._modules = modules

    def exec_module(self, module: ModuleType) -> None:
        self._modules.keep(module)


def active() -> JobModules | None:
    """Whose modules are where Python looks for them."""
    return _active


@functools.lru_cache(maxsize=1 << 12)
def path_to(name: str) -> tuple[str, ...]:
    """The packages that a module lies in, outermost first, and the module."""
    parts = name.split(".")
    return tuple(".".join(parts[: i + 1]) for i in range(len(parts)))


def _is_foreign(module: ModuleType) -> bool:
    """Does a module come from a file, or a folder without code, that is not installed?"""
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return not is_installed(file)
    return not all(is_installed(str(folder)) for folder in getattr(module, "__path__", ()))


def _take(name: str) -> ModuleType:
    """Remove a module from Python's table, and from the package that it is in."""
    module = sys.modules.pop(name)
    package, _, tail = name.rpartition(".")
    if vars(sys.modules.get(package, ModuleType(""))).get(tail) is module:
        delattr(sys.modules[package], tail)
    return module
