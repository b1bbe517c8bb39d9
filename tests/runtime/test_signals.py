"""A held signal waits for the end of the block, whichever thread of the process the system gives it
to."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from veritrain.runtime.signals import held


def interrupted(times: int, reached: list[int]) -> None:
    """Send this process signals within a block that holds them; note what was done there."""
    with held([signal.SIGINT, signal.SIGTERM]):
        for number in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            reached.append(number)
        reached.append(-1)


@pytest.mark.parametrize("threads", [0, 3])
def test_a_first_signal_waits(threads: int) -> None:
    over, reached = threading.Event(), list[int]()
    for _ in range(threads):
        threading.Thread(target=over.wait).start()
    with pytest.raises(KeyboardInterrupt):
        interrupted(1, reached)
    over.set()
    assert reached == [0, -1]


def test_a_second_signal_does_not_wait() -> None:
    reached: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(2, reached)
    assert -1 not in reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_is_not_lost_where_the_block_raises() -> None:
    def failing() -> None:
        with held([signal.SIGINT]):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            raise ValueError("of the block")

    with pytest.raises(KeyboardInterrupt):
        failing()


def test_other_threads_hold_nothing() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def hold() -> None:
        with held([signal.SIGINT]):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert seen == [before]
