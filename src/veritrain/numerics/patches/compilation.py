"""What `torch.compile` compiled runs as plain Python within a step: its kernels hide their
operators."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from veritrain.numerics.patches.replaced import Replacement, replaced


@contextmanager
def no_compiled_code() -> Generator[None]:
    """Within it nothing compiled runs.

    Building an optimiser loads the compiler's front end, so it is loaded in every step that trains;
    where it is not, nothing can be compiled before `torch.compile` loads it, which takes seconds.
    """
    with ExitStack() as stack:

        def eager(original: Callable[..., Any]) -> Callable[..., Any]:
            def compile_plain(*args: Any, **kwargs: Any) -> Any:
                torch.compile = original
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                return original(*args, **kwargs)

            return compile_plain

        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        else:
            stack.enter_context(replaced([Replacement(torch, "compile", eager)]))
        yield
