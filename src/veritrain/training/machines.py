"""Settings under which one computer computes as several machines: thread counts and instruction
sets.

Each setting is the environment of a fresh process, read when PyTorch and its libraries start. That
they give unlike bits is what makes them worth calibrating over; other computers are worth more.
"""

from __future__ import annotations

import os
import platform

_X86 = {
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "SSE4": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}
_SETTINGS = (*_X86["AVX2"], "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def machines(threads: int) -> dict[str, dict[str, str]]:
    """Name and environment of each machine that this computer can be, the widest with `threads`
    first."""
    found = {
        f"widest, {count} threads": _threads(count) for count in sorted({threads, 1}, reverse=True)
    }
    if platform.machine().lower() in ("x86_64", "amd64"):
        for number, (name, settings) in enumerate(_X86.items()):
            count = threads if number % 2 == 0 else 1
            found[f"{name}, {count} threads"] = {**settings, **_threads(count)}
    return found


def environment(settings: dict[str, str]) -> dict[str, str]:
    """The whole environment of a process with these settings."""
    kept = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    return {**kept, **settings}


def _threads(count: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}
