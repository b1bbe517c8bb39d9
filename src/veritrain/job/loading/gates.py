"""Every way by which Python loads a module asks the job that it is done for.

The first finder that is asked serves imports that a job brings about, at any time and from any
depth: by its own code, or by installed code that it or Veritrain calls. Python's loaders are asked
too, since a module need not be looked for to be loaded (`spec_from_file_location`), and so are
`site`, which executes lines of `.pth` files, what opens libraries, and Numba's cache, which keeps
compiled functions beside the sources. Imports of the program around the jobs are left as they are.

Triton compiles a module for each kernel of a GPU and loads it from a folder of the user's. It may,
from the folder that was in force when Veritrain was imported.
"""

from __future__ import annotations

import _ctypes
import builtins
import ctypes
import importlib
import os
import site
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader
from importlib.util import find_spec, resolve_name
from os import path as paths
from types import FrameType, ModuleType
from typing import Any
from zipimport import zipimporter

from veritrain.errors import JobError
from veritrain.job.loading.installed import is_installed, is_of
from veritrain.job.loading.modules import JobModules, active, path_to

_PACKAGE = paths.join(paths.dirname(paths.dirname(paths.dirname(paths.abspath(__file__)))), "")


def _triton_cache() -> str:
    """The folder that Triton keeps compiled modules in, by its own rules."""
    home = os.environ.get("TRITON_HOME") or paths.expanduser("~")
    folder = os.environ.get("TRITON_CACHE_DIR") or paths.join(home, ".triton", "cache")
    return paths.join(paths.realpath(folder), "")


_TRITON_CACHE = _triton_cache()  # before a job can say otherwise


def install() -> None:
    """Put the gates up. They stay, and do nothing for imports that no job brings about."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
    sys.meta_path.insert(0, _FINDER)
    if importlib.import_module is _import_module:
        return
    from llvmlite import binding  # pyright: ignore[reportMissingTypeStubs]
    from numba.core.caching import Cache  # pyright: ignore[reportMissingTypeStubs]

    importlib.import_module = _import_module
    _wrap(_file_loader(), "exec_module", _exec_module)
    _wrap(ExtensionFileLoader, "create_module", _create_module)
    _wrap(zipimporter, "load_module", _load_module)
    _wrap(site, "addpackage", _execute_lines)
    for opener, name in (
        (ctypes, "_dlopen"),
        (_ctypes, "dlopen"),
        (binding, "load_library_permanently"),
        (binding.dylib, "load_library_permanently"),
    ):
        _wrap(opener, name, _open_library)
    if find_spec("_cffi_backend") is not None:
        _wrap(importlib.import_module("_cffi_backend"), "load_library", _open_library)
    _wrap(Cache, "load_overload", _load_overload)


def calling_job() -> JobModules | None:
    """The job whose code is being run, further out in the stack of calls."""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    pythons: object = builtins.__dict__
    while frame is not None:
        if frame.f_builtins is not pythons:
            owner = _owner(frame.f_builtins)
            if owner is not None:
                return owner
        frame = frame.f_back
    return None


def _owner(names: dict[str, Any]) -> JobModules | None:
    owner = getattr(names.get("__import__"), "__self__", None)
    return owner if isinstance(owner, JobModules) else None


def _served_job() -> JobModules | None:
    """The job that something is loaded for: the one whose code is being run, or the active one
    where nothing but installed code runs, of Veritrain or in a thread of its own."""
    owner = calling_job()
    if owner is not None or active() is None:
        return owner
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE) and name != __file__:
            break
        is_typed = name.startswith("<") and frame.f_globals.get("__name__") == "__main__"
        if is_typed or not (name.startswith("<") or is_installed(name)):
            return None  # the program around the jobs
        frame = frame.f_back
    return active()


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        owner = _served_job()
        if owner is None:
            return None
        own = owner.own_spec(fullname, path)
        return own or owner.accepted(fullname, path, _elsewhere(fullname, path))


_FINDER = _Finder()


def _elsewhere(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """What the other finders, of Python and of installed packages, find."""
    for finder in list(sys.meta_path):
        find = None if finder is _FINDER else getattr(finder, "find_spec", None)
        spec = None if find is None else find(name, path, None)
        if spec is not None:
            return spec
    return None


_python_import_module = importlib.import_module


def _import_module(name: str, package: str | None = None) -> ModuleType:
    owner = _served_job()
    if owner is None or (name.startswith(".") and not package):
        return _python_import_module(name, package)
    full = resolve_name(name, package)
    caller = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    if _owner(caller.f_builtins) is owner:
        owner.snapshot.reached.add(path_to(full)[0])
    return owner.importing(lambda: _python_import_module(full), full)


def _file_loader() -> type[Any]:
    """The class of Python's that executes modules of sources, bytecode and archives."""
    return next(base for base in SourceFileLoader.__mro__ if "exec_module" in vars(base))


def _wrap(owner: type[Any] | ModuleType, name: str, gate: Any) -> None:
    """Replace a function of a class or a module by a gate, which gets it as its first argument."""
    pythons = getattr(owner, name)

    def gated(*args: Any, **kwargs: Any) -> Any:
        return gate(pythons, *args, **kwargs)

    setattr(owner, name, gated)


def _exec_module(pythons: Any, self: Any, module: ModuleType) -> None:
    owner, file = _served_job(), self.get_filename(module.__name__)
    if owner is None or is_installed(file):
        pythons(self, module)
    else:
        owner.execute(module, file)


def _create_module(pythons: Any, self: ExtensionFileLoader, spec: ModuleSpec) -> ModuleType:
    owner = _served_job()
    if owner is not None and not is_installed(self.path) and not _is_tritons(self.path):
        raise owner.refusal(spec.name, str(self.path))
    return pythons(self, spec)


def _is_tritons(file: str) -> bool:
    """Is this a module that the installed Triton has compiled, and loads itself?"""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and not name.startswith("<frozen importlib."):
            is_loader = frame.f_builtins is builtins.__dict__ and is_of(name, "triton")
            return is_loader and paths.realpath(file).startswith(_TRITON_CACHE)
        frame = frame.f_back
    return False


def _load_module(pythons: Any, self: zipimporter, fullname: str) -> ModuleType:
    owner = _served_job()
    if owner is not None and not is_installed(self.archive):
        raise owner.refusal(fullname, self.archive)
    return pythons(self, fullname)


def _execute_lines(pythons: Any, sitedir: str, name: str, *args: Any, **kwargs: Any) -> Any:
    owner, file = _served_job(), paths.join(sitedir, name)
    if owner is not None and not is_installed(file):
        raise JobError(
            f"{owner.snapshot.file}: executes lines of {file}: nothing commits to them. Name the "
            "modules that the job needs, sources=[...], or install them"
        )
    return pythons(sitedir, name, *args, **kwargs)


def _open_library(pythons: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
    """Libraries of the system are opened by names without a folder."""
    owner, file = _served_job(), os.fsdecode(name) if _is_path(name) else ""
    if owner is not None and paths.dirname(file) and not is_installed(file):
        raise JobError(
            f"{owner.snapshot.file}: opens {file}: nothing commits to the code in it. Only "
            "libraries of installed packages and of the system may be opened; install it"
        )
    return pythons(name, *args, **kwargs)


def _is_path(name: object) -> bool:
    """None stands for the process itself, and a handle for a library that is open."""
    return isinstance(name, str | bytes | os.PathLike)


def _load_overload(pythons: Any, self: Any, *args: Any) -> Any:
    """The functions of a job are compiled from its sources, each time."""
    return pythons(self, *args) if _owner(self._py_func.__builtins__) is None else None
