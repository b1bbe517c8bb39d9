"""Operators in threads that a job starts within a step are refused.

The dispatch mode sees the operators of its own thread alone; elsewhere PyTorch's kernels would compute,
and in no fixed order. Threads that were started before are not reached.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.parallel import THREAD_NAME

_computing: list[int] = []  # the threads that are within a step, once for each context


class _RefuseMode(TorchDispatchMode):
    """Refuses every operator while `owner`, which started this thread, is within a step."""

    def __init__(self, owner: int) -> None:
        super().__init__()
        self._owner = owner

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as the dispatch mode of the step

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self._owner in _computing:
            raise UnsupportedOperatorError(
                f"operator {func} in a thread that the job started: exact numerics covers the thread of "
                "the step; compute there, or with numbers that are not tensors"
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def no_operators_in_new_threads() -> Generator[None]:
    """Within it, threads that this thread starts compute no operators; those of our kernels do."""
    owner, original = threading.get_ident(), threading.Thread.start

    def start(self: threading.Thread) -> None:
        if threading.get_ident() == owner and not self.name.startswith(THREAD_NAME):
            run = self.run

            def refusing() -> None:
                with _RefuseMode(owner):
                    run()

            self.run = refusing
        original(self)

    def start_new_thread(function: Callable[..., Any], *arguments: Any) -> int:
        def refusing(*args: Any, **kwargs: Any) -> None:
            with _RefuseMode(owner):
                function(*args, **kwargs)

        chosen = refusing if threading.get_ident() == owner else function
        return original_new(chosen, *arguments)

    original_new = _thread.start_new_thread  # `threading` has a name of its own for it
    threading.Thread.start = start
    _thread.start_new_thread = start_new_thread
    _computing.append(owner)
    try:
        yield
    finally:
        _computing.remove(owner)
        threading.Thread.start = original
        _thread.start_new_thread = original_new
