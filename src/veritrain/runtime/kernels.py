"""How functions become machine code: what is compiled, when, and where it is kept.

A `Kernel` can be called from Python and by other kernels. Called from Python it is compiled whole,
when it first meets arguments of these types, and kept on the disk for all processes. Called by
another kernel it becomes a part of that one's code: optimised, as that shows in speed, but without
wrappers for Python, machine code and a place on the disk, which nobody would use. With all that for
each function, as numba has it, compiling takes nearly twice as long; the bits are the same.

Code is looked up in `folders()` and written into the first of them that can be written. A file's
name is a digest of all that its code depends on: sources, constants, types, processor, versions. So
nothing stale is found, and no two processes write different code under one name. One process
compiles a kernel, the others wait for it and read what it wrote. A file holds its own digest: a
damaged one is compiled again.

A person who can write these files decides what is computed, as with any Python file: they lie
beside the sources, or in a folder that is the user's own and that nobody else can write into.
"""

# pyright: reportMissingTypeStubs=false
from __future__ import annotations

import hashlib
import os
import pickle
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Literal, cast

import llvmlite
import numba
import numpy as np
from numba.core import codegen, compiler, serialize, sigutils, typed_passes, types
from numba.core.caching import NullCache
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.core.registry import CPUDispatcher

from veritrain.runtime.progress import Compiling, tell
from veritrain.runtime.signals import held
from veritrain.runtime.started import ENVIRONMENT

try:
    import fcntl
except ImportError:  # no such system: two processes may compile one kernel, to the same file
    fcntl = None

KERNELS: dict[str, Kernel] = {}  # all that are loaded, by "module.function"

_OPTIONS: dict[str, Any] = {
    "nopython": True, "nogil": True, "error_model": "numpy", "boundscheck": None,
    "no_cfunc_wrapper": True,  # nobody calls it
}  # fmt: skip
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_DIGEST_BYTES = 32
_FORMAT = "veritrain kernel 1"  # of the files and of their names


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """A decorator with options of `numba.njit`, beyond those that all kernels have."""

    def decorate(function: Callable[..., Any]) -> Kernel:
        made = Kernel(function, targetoptions={**_OPTIONS, **options})
        KERNELS[made.name] = made
        return made

    return decorate


class Kernel(CPUDispatcher):
    """A function that numba compiles, for Python and as a part of other kernels."""

    def __init__(
        self,
        py_func: Callable[..., Any],
        locals: dict[str, Any] | None = None,
        targetoptions: dict[str, Any] | None = None,
    ) -> None:
        """The arguments and their names are those of numba's dispatchers."""
        super().__init__(py_func, locals, targetoptions)
        # Unique, and its beginning is where it lies.
        self.name = f"{py_func.__module__.removeprefix('veritrain.')}.{py_func.__name__}"
        module = py_func.__module__.rpartition(".")[2].removesuffix("_kernels")
        function = py_func.__name__.strip("_").removesuffix("_kernel").removesuffix("_loop")
        self.label = f"{module}.{function}"  # for people
        self._part = _Part(py_func, locals, {**(targetoptions or {}), "no_cpython_wrapper": True})
        self._cache = _Disk(self)

    def compile(self, sig: Any) -> Any:
        """Compile for these types, or find the code on the disk. LLVM calls back into Python, where
        an exception of a signal's handler would be lost: signals wait."""
        with global_compiler_lock, held(_SIGNALS), self._cache.released_after():
            return super().compile(sig)

    # What numba asks for when it compiles a call of this kernel

    def get_call_template(self, args: Any, kws: Any) -> Any:
        return self._part.get_call_template(args, kws)

    def get_overload(self, sig: Any) -> Any:
        return self._part.get_overload(sig)

    @property
    def nopython_signatures(self) -> Any:
        return self._part.nopython_signatures


class _Part(CPUDispatcher):
    """The same function inside of others: known to numba, without code of its own to run."""

    _compiler: Any

    def __init__(self, py_func: Any, locals: Any = None, targetoptions: Any = None) -> None:
        super().__init__(py_func, locals, targetoptions, _PartCompiler)

    def compile(self, sig: Any) -> Any:
        args, return_type = sigutils.normalize_signature(sig)
        if args not in self.overloads:
            with self._compiling_counter:
                self.overloads[args] = self._compiler.compile(args, return_type)
        return self.overloads[args].entry_point

    def get_call_template(self, args: Any, kws: Any) -> Any:
        # One for all values of a constant: LLVM sees the value anyhow.
        return super().get_call_template(tuple(map(types.unliteral, args)), kws)


class _PartLibrary(codegen.JITCodeLibrary):
    """LLVM's code of a part, as the kernels that call it take it over."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _PartLowering(typed_passes.NativeLowering):
    _name = "part_lowering"

    def run_pass(self, state: Any) -> Literal[True]:
        state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        key = object()  # stands for the function that is not compiled
        state.targetctx.insert_user_function(key, state["cr"].fndesc, [state.library])
        state["cr"] = state["cr"]._replace(cfunc=key)
        return True


class _PartCompiler(compiler.CompilerBase):
    def define_pipelines(self) -> Any:
        passes = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [
            (_PartLowering if step is typed_passes.NativeLowering else step, text)
            for step, text in passes.passes
        ]
        passes.finalize()
        return [passes]


# Files


class _Disk(NullCache):
    """What numba asks before it compiles a kernel, and hands the code to afterwards."""

    compiled = 0  # by this process

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._lock: int | None = None  # while this process compiles

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        name = self._file_name(sig, target_context)
        found = _read(name)
        if found is None and (folder := writable_folder()) is not None:
            self._lock = _locked(folder / f"{self._kernel.name}.lock")
            found = _read(name)  # another process may have written it meanwhile
        if found is not None:
            rebuild = cast("Any", compiler.CompileResult)._rebuild
            return rebuild(target_context, *found)
        _Disk.compiled += 1
        tell(Compiling(kernel=self._kernel.label, number=_Disk.compiled))
        return None

    def save_overload(self, sig: Any, cres: Any) -> None:
        folder = writable_folder()
        if folder is not None and not cres.library.has_dynamic_globals:
            name = self._file_name(sig, self._kernel.targetctx)
            _write(folder / name, serialize.dumps(cres._reduce()))
        tell(Compiling(kernel=None, number=_Disk.compiled))

    @contextmanager
    def released_after(self) -> Generator[None]:
        try:
            yield
        finally:
            lock, self._lock = self._lock, None
            if lock is not None:
                os.close(lock)

    def _file_name(self, sig: Any, target_context: Any) -> str:
        args, return_type = sigutils.normalize_signature(sig)
        key = [
            _FORMAT, _versions(), source_digest(self._kernel), repr(args), repr(return_type),
            [_fields(arg) for arg in args], target_context.codegen().magic_tuple(),
        ]  # fmt: skip
        return f"{self._kernel.name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.code"


def number_compiled() -> int:
    """How many kernels this process has compiled; those found on the disk do not count."""
    return _Disk.compiled


def _versions() -> str:
    return (
        f"{sys.implementation.cache_tag} {numba.__version__} {llvmlite.__version__}"
        f" {np.__version__}"
    )


def _fields(kind: Any) -> Any:
    """Names of a named tuple's entries, in their order: its type's text does not have them."""
    return getattr(kind, "fields", None)


@cache
def source_digest(kernel: Kernel) -> str:
    """Digest of what a kernel is made from: the files of all kernels that it reaches, their
    options, and the constants that they name, wherever these come from."""
    digest = hashlib.sha256()
    files: set[str] = set()
    for part in _reached(kernel):
        files.add(part.py_func.__code__.co_filename)
        constants = [(name, value) for name, value in _named(part) if isinstance(value, _CONSTANT)]
        digest.update(repr((part.name, sorted(part.targetoptions.items()), constants)).encode())
    for file in sorted(files, key=os.path.basename):
        digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.hexdigest()


_CONSTANT = (int, float, str, tuple, np.generic)


def _reached(kernel: Kernel) -> list[Kernel]:
    """The kernel and those that it names, directly or through others; each once, in order of
    name."""
    found, ahead = {kernel.name: kernel}, [kernel]
    while ahead:
        for _, value in _named(ahead.pop()):
            if isinstance(value, Kernel) and value.name not in found:
                found[value.name] = value
                ahead.append(value)
    return [found[name] for name in sorted(found)]


def _named(kernel: Kernel) -> Iterator[tuple[str, object]]:
    """The globals that a kernel's code names, and attributes of those that are modules."""
    names = list(_names(kernel.py_func.__code__))
    for name in names:
        value = kernel.py_func.__globals__.get(name)
        if isinstance(value, ModuleType) and value.__name__.startswith("veritrain."):
            yield from ((inner, vars(value).get(inner)) for inner in names)
        yield name, value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a comprehension
            yield from _names(constant)


def folders() -> tuple[Path, ...]:
    """Where code is looked up, in order; some may not exist. A job cannot change it."""
    if asked := ENVIRONMENT.get("NUMBA_CACHE_DIR"):
        return (Path(asked) / "veritrain",)
    beside = Path(__file__).parent / "__pycache__" / "kernels"
    users = ENVIRONMENT.get("XDG_CACHE_HOME") or os.path.join(
        ENVIRONMENT.get("HOME", "~"), ".cache"
    )
    return beside, Path(users).expanduser() / "veritrain" / "kernels"


def writable_folder() -> Path | None:
    """The first of `folders()` that can be written, made if need be; None where none can."""
    return _first_writable(folders())


@cache
def _first_writable(folders: tuple[Path, ...]) -> Path | None:
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except (OSError, RuntimeError):  # no such user has a home
            continue
        if _is_trusted(folder):
            return folder
    return None


def _is_trusted(folder: Path) -> bool:
    """Whether nobody but this user, the system and the owner of the sources can put files there."""
    if os.name != "posix":
        return True
    status = folder.stat()
    owners = {0, os.getuid(), Path(__file__).stat().st_uid}
    return status.st_uid in owners and not status.st_mode & stat.S_IWOTH


def _read(name: str) -> Any:
    """What `_write` wrote under this name in any folder; None where there is nothing whole."""
    for folder in folders():
        with suppress(OSError):
            data = (folder / name).read_bytes()
            if _is_trusted(folder) and data[:_DIGEST_BYTES] == _checksum(data[_DIGEST_BYTES:]):
                return pickle.loads(data[_DIGEST_BYTES:])  # noqa: S301 - ours, as a .pyc is
    return None


def _write(file: Path, data: bytes) -> None:
    """Whole or not at all. A full disk is no error: the code is in memory."""
    with suppress(OSError):
        handle, part = tempfile.mkstemp(dir=file.parent, prefix=".part-")
        try:
            with open(handle, "wb") as stream:
                stream.write(_checksum(data) + data)
            os.replace(part, file)
        except BaseException:
            os.unlink(part)
            raise


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _locked(file: Path) -> int | None:
    """Wait until no other process compiles this kernel; closing what this gives lets others go on.

    Locks are released with the process, however it ends. File systems without locks go without.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
