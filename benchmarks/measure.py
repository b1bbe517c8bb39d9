"""Measuring: medians of interleaved runs, named timers around functions, what machine this is."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import veritrain

_PAUSE = 0.02  # seconds; libgomp's threads spin for a few milliseconds


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "veritrain": veritrain.__version__,
    }


def interleaved(
    functions: dict[str, Callable[[], object]], *, warmup: int, runs: int
) -> dict[str, list[float]]:
    """Seconds of each function, called in turn so that a slow spell hits all alike.

    Each starts after a pause: threads of the one before wait for more work by spinning for a while.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for run in range(warmup + runs):
        for name, function in functions.items():
            time.sleep(_PAUSE)
            start = time.perf_counter()
            function()
            if run >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], top: str, bottom: str) -> dict[str, float]:
    """Ratio of paired runs: median, smallest and largest."""
    pairs = [a / b for a, b in zip(times[top], times[bottom], strict=True)]
    return {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}


def milliseconds(seconds: list[float]) -> float:
    """Median in milliseconds."""
    return statistics.median(seconds) * 1e3


@contextmanager
def timers(places: dict[str, tuple[Any, str]]) -> Generator[dict[str, float]]:
    """Add up the seconds spent in functions: name -> (module or class, attribute)."""
    spent: dict[str, float] = defaultdict(float)
    originals = {name: getattr(owner, attribute) for name, (owner, attribute) in places.items()}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - start

        return call

    try:
        for name, (owner, attribute) in places.items():
            setattr(owner, attribute, timed(name, originals[name]))
        yield spent
    finally:
        for name, (owner, attribute) in places.items():
            setattr(owner, attribute, originals[name])
