"""The machine matrix: settings that give unlike bits on one computer, each as a process of its own.

A *machine* here is a thread count, PyTorch's own kernels (ATEN_CPU_CAPABILITY), the instruction
sets of MKL and oneDNN, the target of our compiled kernels (NUMBA_CPU_NAME), of numpy's
(NPY_DISABLE_CPU_FEATURES) and of the C library's mathematics (GLIBC_TUNABLES), and the kernel of
our products. Under `native` numerics every one of them trains to other weights after one step
(test_machines.py shows it), so agreement over the matrix is a real test.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests import forks

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One row of the matrix: `environment` is set before the process starts."""

    name: str
    threads: int
    environment: dict[str, str] = field(default_factory=dict)
    onednn: bool = True
    bytes: bool = False  # products of bytes wherever they can be, whichever kernel is faster


# by numpy's names, old and new; it ignores those that it does not know
_NUMPY_AVX512 = "AVX512F AVX512CD AVX512_SKX X86_V4 AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"

_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "",
    "NPY_DISABLE_CPU_FEATURES": _NUMPY_AVX512,
}
_SSE4 = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "NUMBA_CPU_NAME": "nehalem",
    "NUMBA_CPU_FEATURES": "",
    "NPY_DISABLE_CPU_FEATURES": f"{_NUMPY_AVX512} X86_V3 AVX2 FMA3",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F",
}

MACHINES = (
    Machine(name="widest-1-thread", threads=1),
    Machine(name="widest-2-threads", threads=2, bytes=True),
    Machine(name="avx2-2-threads", threads=2, environment=_AVX2),
    Machine(name="sse4-1-thread", threads=1, environment=_SSE4),
    Machine(name="no-onednn-2-threads", threads=2, onednn=False),
)

_VARIED = (*_SSE4, "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def environment(machine: Machine) -> dict[str, str]:
    """The whole environment of a process on `machine`."""
    base = {key: value for key, value in os.environ.items() if key not in _VARIED}
    paths = [str(ROOT / "src"), str(ROOT), base.get("PYTHONPATH", "")]
    threads = str(machine.threads)
    return {
        **base,
        **machine.environment,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def run(machine: Machine, module: str, *args: str, timeout: float = 900) -> str:
    """Run `python -m module args` on `machine`; return what it printed.

    Raises:
        AssertionError: it failed; the message holds its error output.
    """
    settings = [f"{machine.onednn:d}", f"{machine.bytes:d}"]
    words = ["-c", _LAUNCHER, *settings, module, *args]
    done = forks.run(words, env=environment(machine), timeout=timeout)
    assert done.returncode == 0, f"{module} on {machine.name}: {done.stderr[-4000:]}"
    return done.stdout


def start(machine: Machine, module: str, *args: str) -> subprocess.Popen[str]:
    """Start `python -m module args` on `machine` in a fresh process, and do not wait for it."""
    settings = [f"{machine.onednn:d}", f"{machine.bytes:d}"]
    return subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, *settings, module, *args],
        env=environment(machine),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


_LAUNCHER = """
import runpy, sys
onednn, by_bytes, module = sys.argv[1] == "1", sys.argv[2] == "1", sys.argv[3]
if not onednn:
    import torch
    torch.backends.mkldnn.set_flags(False)
if by_bytes:
    from veritrain.numerics.cpu import products
    products.SMALL = 0
    if products.bytes_are_exact():
        products.choose = lambda bits, inner, results: products.ByteProducts.of(bits)
sys.argv = [module, *sys.argv[4:]]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
