"""Pieces cover the range once; threads, forks and failures leave no trace."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veritrain.numerics.cpu import elementary
from veritrain.numerics.platform import parallel


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@settings(deadline=None)
@given(n=st.integers(0, 300), grain=st.integers(1, 100))
def test_pieces_cover_the_range_once_and_in_order(n: int, grain: int) -> None:
    pieces = parallel.run(lambda start, stop: list(range(start, stop)), n, grain=grain)
    assert [i for piece in pieces for i in piece] == list(range(n))
    assert len(pieces) <= 4
    if n > grain:
        assert all(len(piece) >= grain for piece in pieces)


def test_small_ranges_stay_on_the_calling_thread() -> None:
    assert parallel.run(lambda start, stop: threading.get_ident(), 10, grain=10) == (
        threading.get_ident(),
    )


def test_large_ranges_use_several_threads_at_once() -> None:
    barrier = threading.Barrier(4)  # passed only if four pieces run at the same time

    def kernel(start: int, stop: int) -> int:
        barrier.wait(timeout=20)
        return threading.get_ident()

    assert len(set(parallel.run(kernel, 4, grain=1))) == 4


def test_one_thread_makes_one_piece() -> None:
    torch.set_num_threads(1)
    assert parallel.run(lambda start, stop: (start, stop), 1000, grain=1) == ((0, 1000),)


@pytest.mark.parametrize("failing", range(4))
def test_a_failure_is_raised_after_all_pieces_have_ended(failing: int) -> None:
    ended: list[int] = []

    def kernel(start: int, stop: int) -> None:
        if start == failing:
            raise ValueError("piece failed")
        threading.Event().wait(0.02)
        ended.append(start)

    with pytest.raises(ValueError, match="piece failed"):
        parallel.run(kernel, 4, grain=1)
    assert sorted([*ended, failing]) == [0, 1, 2, 3]


def test_many_threads_may_call_at_once() -> None:
    x = torch.randn(200_000)
    expected = elementary.apply("exp", x)
    with ThreadPoolExecutor(8) as callers:
        results = list(callers.map(lambda _: elementary.apply("exp", x), range(32)))
    assert all(torch.equal(result, expected) for result in results)


def _child(queue: multiprocessing.Queue[tuple[int, ...]]) -> None:
    queue.put(parallel.run(lambda start, stop: stop - start, 4, grain=1))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    parallel.run(lambda start, stop: None, 4, grain=1)  # the parent's pool exists
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[tuple[int, ...]] = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    assert queue.get(timeout=20) == (1, 1, 1, 1)
    child.join()


@settings(deadline=None, max_examples=20)
@given(threads=st.integers(1, 5))
def test_thread_count_does_not_show_in_results(threads: int) -> None:
    x = torch.from_numpy(np.linspace(-8, 8, 50_001, dtype=np.float32))
    torch.set_num_threads(1)
    expected = elementary.apply("gelu", x)
    torch.set_num_threads(threads)
    assert torch.equal(elementary.apply("gelu", x), expected)


def test_products_run_with_one_thread_each_and_the_count_comes_back():
    seen = []

    def work(start: int, stop: int) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return torch.ones(8, 8) @ torch.full((8, 8), float(stop - start))

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        parts = parallel.run_products(work, 5)
        assert sum(float(part[0, 0]) for part in parts) == 40
        assert seen == [1, 1]
        assert torch.get_num_threads() == 2

        def fail(start: int, stop: int) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            parallel.run_products(fail, 5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
