"""Kernels over ranges, in threads.

Contract: `run` calls `kernel(*args, start, stop)` on pieces that cover `range(n)` once each. A
kernel releases the GIL and computes entry i the same way in any piece, so that where the pieces are
cut, and how many threads there are, never shows in a result.

Why not numba's own `parallel=True`: its threading layers abort the process after a fork or when two
threads enter them at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import TypeVar

import torch

from veritrain.numerics.platform import onednn

Result = TypeVar("Result")

GRAIN = 16_384  # entries per piece at least: about the work that repays handing it to a thread
THREAD_NAME = "veritrain-kernel"  # how names of our threads start
_MAX_THREADS = 1024  # the pool starts a thread only when all that it has are busy


def grain_of(values_per_item: int, values: int = 2 * GRAIN) -> int:
    """Items per piece, for a kernel whose items have several values each."""
    return max(1, values // max(values_per_item, 1))


class _Pool:
    """One executor per process, made when it is first needed and again after a fork."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(
                    _MAX_THREADS,
                    THREAD_NAME,
                    initializer=torch.set_flush_denormal,
                    initargs=(False,),
                )  # the thread that starts another may flush subnormals
            return self._executor


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.reset)  # a child inherits neither threads nor a safe lock


def run(
    kernel: Callable[..., Result], n: int, *args: object, grain: int = GRAIN
) -> tuple[Result, ...]:
    """Call `kernel(*args, start, stop)` over `range(n)`; return what each piece returned, in order.

    Pieces have at least `grain` entries (but for n < grain) and are at most
    `torch.get_num_threads()`; the calling thread works on the first one.

    Raises:
        Exception: whatever a piece raised, after every piece has ended.
    """
    pieces = 1 if n <= grain else min(torch.get_num_threads(), n // grain)
    return _run(kernel, n, args, pieces)


def run_products(function: Callable[..., Result], n: int, *args: object) -> tuple[Result, ...]:
    """As `run` with single entries, for a Python function that calls PyTorch's matrix products.

    Meanwhile each product uses one thread: threads of two kinds that wait for each other by
    spinning cost more than they bring.
    """
    threads = torch.get_num_threads()
    with onednn.products():
        if threads == 1 or n <= 1:
            return _run(function, n, args, 1)
        torch.set_num_threads(1)
        try:
            return _run(function, n, args, min(threads, n))
        finally:
            torch.set_num_threads(threads)


def _run(
    kernel: Callable[..., Result], n: int, args: tuple[object, ...], pieces: int
) -> tuple[Result, ...]:
    if pieces <= 1:
        return (kernel(*args, 0, n),)
    cuts = [n * piece // pieces for piece in range(pieces + 1)]
    (_, first_stop), *rest = pairwise(cuts)
    submit = _pool.executor().submit
    others: list[Future[Result]] = []
    try:
        for start, stop in rest:
            others.append(submit(kernel, *args, start, stop))
        first = kernel(*args, 0, first_stop)
    finally:
        wait(others)  # also when a piece failed: none may write after the return
    return (first, *(other.result() for other in others))
