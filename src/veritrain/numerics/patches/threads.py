"""Operators in threads that a job starts within a step are refused.

The dispatch mode sees the operators of its own thread alone; elsewhere PyTorch's kernels would
compute, and in no fixed order. Threads that were started before are not reached.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch._ops import OpOverload

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.patches.replaced import Replacement, replaced
from veritrain.numerics.platform.operator_mode import OperatorMode
from veritrain.numerics.platform.parallel import THREAD_NAME

_computing: list[int] = []  # the threads that are within a step, once for each context


class _RefuseMode(OperatorMode):
    """Refuses every operator while `owner`, which started this thread, is within a step."""

    def __init__(self, owner: int) -> None:
        super().__init__()
        self._owner = owner

    def operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `OperatorMode`."""
        if self._owner in _computing:
            raise UnsupportedOperatorError(
                f"operator {func} in a thread that the job started: exact numerics covers the"
                " thread of the step; compute there, or with numbers that are not tensors"
            )
        return func(*args, **kwargs)


@contextmanager
def no_operators_in_new_threads() -> Generator[None]:
    """Within it, threads that this thread starts compute no operators; those of our kernels do."""
    owner = threading.get_ident()

    def refusing(function: Callable[..., object]) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            with _RefuseMode(owner):
                function(*args, **kwargs)

        return run

    def started(original: Callable[..., None]) -> Callable[..., None]:
        def start(self: threading.Thread) -> None:
            if threading.get_ident() == owner and not self.name.startswith(THREAD_NAME):
                self.run = refusing(self.run)
            original(self)

        return start

    def started_new(original: Callable[..., int]) -> Callable[..., int]:
        def start_new_thread(function: Callable[..., object], *arguments: Any) -> int:
            chosen = refusing(function) if threading.get_ident() == owner else function
            return original(chosen, *arguments)

        return start_new_thread

    _computing.append(owner)
    try:
        with replaced(
            [
                Replacement(threading.Thread, "start", started),
                # `threading` has a name of its own for it
                Replacement(_thread, "start_new_thread", started_new),
            ]
        ):
            yield
    finally:
        _computing.remove(owner)
