"""Processes of Python that have PyTorch loaded already.

Loading it takes three seconds of a core, longer than what most processes of tests do afterwards.
So one process for each environment loads it, and forks for each program that is to run:

    done = forks.run(["-m", "tests.train_digests", plan], env=environment)
    child = forks.start(["script.py"], cwd=folder, out=file, err=file)  # child.wait(), child.kill()

A program finds its own arguments, environment, working directory and path of imports, and no module
of Veritrain. Where the start of Python itself is tested (the seed of hashes, what is imported, a
command that starts anew), use `subprocess`.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# What libraries read when they are loaded: a program gets a loader that was started with the same.
_READ_AT_START = ("ATEN_", "MKL_", "OMP_", "ONEDNN_", "NUMBA_", "NPY_", "GLIBC_", "PYTHONHASHSEED")


@dataclass(frozen=True)
class Done:
    """What `subprocess.run` would say."""

    returncode: int
    stdout: str
    stderr: str


def run(
    words: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    timeout: float = 900,
) -> Done:
    """Run a program to its end: `words` are what follows `python`, as ["-m", "module", "x"]."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        child = start(words, env=env, cwd=cwd, out=out, err=err)
        try:
            code = child.wait(timeout)
        finally:
            child.kill()  # where it took too long
        return Done(code, out.read_text(), err.read_text())


def start(
    words: Sequence[str],
    *,
    out: Path,
    err: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> Child:
    """Start a program whose output goes to files."""
    env = dict(os.environ if env is None else env)
    key = json.dumps(sorted(item for item in env.items() if item[0].startswith(_READ_AT_START)))
    if key not in _LOADERS:
        _LOADERS[key] = _Loader(env)
    for file in (out, err):
        file.write_bytes(b"")  # there at once, for whoever looks
    request = {"words": list(words), "env": env, "cwd": str(cwd), "out": str(out), "err": str(err)}
    return Child(_LOADERS[key], _LOADERS[key].ask(request))


class Child:
    """A program that was started."""

    def __init__(self, loader: _Loader, pid: int) -> None:
        self.pid, self._loader = pid, loader
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative where a signal ended it; None while it runs."""
        if self._code is None:
            self._code = self._loader.ask({"look at": self.pid})
        return self._code

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return code

    def kill(self) -> None:
        """End it without a warning, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)  # its number is its own until the loader has looked
            self.wait(20)


class _Loader:
    """The process that has PyTorch loaded."""

    def __init__(self, env: Mapping[str, str]) -> None:
        pipe = subprocess.PIPE
        # Not a program's own path: it would be taken away where the package is installed there.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            env={**env, "PYTHONPATH": str(ROOT)}, cwd=ROOT, stdin=pipe, stdout=pipe, text=True,
        )  # fmt: skip
        atexit.register(self._process.communicate)  # it ends with what it reads

    def ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


_LOADERS: dict[str, _Loader] = {}


# In the process that loads, and in its children


def _request() -> dict[str, Any] | None:
    """Answer requests; in a child, the one that it is for."""
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "look at" in request:
            ended, status = os.waitpid(request["look at"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if ended else None), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            return request
        print(pid, flush=True)
    return None


def _become(request: Mapping[str, Any]) -> None:
    """Take over arguments, environment, folder, output and path, and run the program."""
    for place, name in enumerate((os.devnull, request["out"], request["err"])):
        opened = os.open(name, os.O_WRONLY if place else os.O_RDONLY)
        os.dup2(opened, place)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    asked = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*asked, *(path for path in sys.path if path not in (*before, str(ROOT)))]
    sys.path_importer_cache.clear()
    for name in ("tests", "tests.forks"):  # a program finds its own
        sys.modules.pop(name, None)
    first, *rest = request["words"]
    if first == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    if first == "-c":
        sys.path.insert(0, "")
        text, name, sys.argv = rest[0], "<string>", ["-c", *rest[1:]]
    else:
        name, sys.argv = os.path.abspath(first), [first, *rest]
        sys.path.insert(0, os.path.dirname(name))
        main.__file__, main.__loader__ = name, SourceFileLoader("__main__", name)
        text = Path(name).read_text()
    exec(compile(text, name, "exec", dont_inherit=True), main.__dict__)  # noqa: S102 - the program of a test


if __name__ == "__main__":
    import numba  # noqa: F401
    import torch._dynamo  # noqa: F401 - what every optimiser loads

    found = _request()
    if found is not None:
        _become(found)
