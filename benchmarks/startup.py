"""Seconds that commands of the README take in a process of their own, with kernels to compile and
without.

Cold: each in a folder for compiled kernels that is empty. Warm: in one that the same command has
filled. Seconds of processors are there beside those of the clock: on a busy machine they mislead
less.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = 1  # of each command; more where the machine is not idle
_JOB = re.compile(r"<!-- file: job.py -->\n```python\n(.*?)```", re.DOTALL)


def startup() -> list[dict[str, Any]]:
    """A row for each command: `--help`, an empty Python, and, cold and warm, check, train, audit,
    the demo."""
    times: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = _JOB.search((ROOT / "README.md").read_text())
        assert found is not None  # the README has its job
        (folder / "job.py").write_text(found[1])
        for run in range(RUNS):
            for command, (cold, warm) in _round(folder, with_demo=run == 0).items():
                times.setdefault(f"{command} cold", []).append(cold)
                times.setdefault(f"{command} warm", []).append(warm)
            times.setdefault("help", []).append(
                _timed(folder, None, "-m", "veritrain.cli", "--help")
            )
            times.setdefault("python", []).append(_timed(folder, None, "-c", "pass"))
    return [
        {
            "command": command,
            "seconds": statistics.median(seconds for seconds, _ in found),
            "processor seconds": statistics.median(used for _, used in found),
        }
        for command, found in times.items()
    ]


def _round(
    folder: Path, *, with_demo: bool
) -> dict[str, tuple[tuple[float, float], tuple[float, float]]]:
    """Each command once cold and once warm; a run to audit is made before."""
    _forget(folder, "run")
    veritrain = ("-m", "veritrain.cli")
    key = ("--key", "key")
    if not (folder / "key").exists():
        _timed(folder, None, *veritrain, "keygen", "key")
    commands: dict[str, tuple[str, ...]] = {
        "check": (*veritrain, "check", "job.py"),
        "train": (*veritrain, "train", "job.py", "--out", "run", *key),
        "audit": (*veritrain, "audit", "run", "--job", "job.py"),
    }
    if with_demo:
        commands["demo"] = (str(ROOT / "examples" / "demo.py"),)
    found = {}
    for name, words in commands.items():
        both: list[tuple[float, float]] = []
        with tempfile.TemporaryDirectory() as kernels:
            for _ in ("cold", "warm"):
                if name == "train":
                    _forget(folder, "run")
                both.append(_timed(folder, kernels, *words))
        found[name] = both[0], both[1]
    return found


def _forget(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name, ignore_errors=True)


def _timed(folder: Path, kernels: str | None, *words: str) -> tuple[float, float]:
    """Seconds by the clock, and of all processors, of a Python process and its children."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    if kernels is not None:
        environment["NUMBA_CACHE_DIR"] = kernels
    used, start = _used(), time.perf_counter()
    subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, check=True, capture_output=True
    )
    return time.perf_counter() - start, _used() - used


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
