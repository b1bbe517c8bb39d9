"""Ctrl-C and SIGTERM, held back while something must not be interrupted.

A signal's handler is replaced, and not the signal blocked: a blocked one goes to another thread of
the process, and Python then calls the handler in the main thread all the same.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held(numbers: Sequence[signal.Signals]) -> Generator[None]:
    """Within it a first signal waits for the end; a second one does not. Handlers of the system,
    and all of them outside of the main thread, are left alone."""
    handlers = {number: signal.getsignal(number) for number in numbers}
    own = {number: handler for number, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread() or not own:
        yield
        return
    waiting: list[signal.Signals] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if waiting:
            own[signal.Signals(number)](number, frame)
        waiting.append(signal.Signals(number))

    for number in own:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
        if waiting:  # also where the block raised: it is not lost
            own[waiting[0]](waiting[0], None)
