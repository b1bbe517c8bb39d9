"""Programs that PyTorch makes of a model: those of TorchScript run as they were written, and
`torch.export` is refused.

After some calls TorchScript's executor rewrites a function, with derivatives of its own that round
otherwise, so that the bits would depend on how often it ran.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.patches.replaced import Replacement, replaced

_C: Any = torch._C  # pyright: ignore[reportPrivateUsage]


@contextmanager
def plain_scripts() -> Generator[None]:
    """Within it nothing is rewritten, and what was rewritten before is forgotten."""
    optimised: bool = _C._get_graph_executor_optimize()
    _C._set_graph_executor_optimize(False)
    try:
        with replaced(
            Replacement(kind, "__call__", _forgetting)
            for kind in (_C.ScriptFunction, _C.ScriptMethod)
        ):
            yield
    finally:
        _C._set_graph_executor_optimize(optimised)


def _forgetting(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._debug_flush_compilation_cache()
        return original(self, *args, **kwargs)

    return call


def no_export() -> AbstractContextManager[None]:
    """Within it `torch.export` raises: under a dispatch mode it ends the process."""
    return replaced(
        Replacement.by(torch.export, name, _refuse_export) for name in ("export", "draft_export")
    )


def _refuse_export(*args: object, **kwargs: object) -> None:
    raise UnsupportedOperatorError(
        "torch.export inside a step: use the model itself, or export it before"
    )
