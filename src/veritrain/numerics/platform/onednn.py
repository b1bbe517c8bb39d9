"""oneDNN under exact numerics: its fused layers stay off, its products of bytes may be used.

PyTorch has one switch for both. With it on, an LSTM is one operator whose inside is hidden; with it
off, the integer product falls back to a plain loop. So the switch is off while the user's code
runs, and on again for our own products, unless the user had it off.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch

# The attribute cannot be set after torch.backends.disable_global_flags().
_set_enabled: Callable[[bool], None] = torch._C._set_mkldnn_enabled  # pyright: ignore
_permitted: ContextVar[bool | None] = ContextVar("permitted", default=None)  # by the user


def has_products() -> bool:
    """Whether products of bytes may go through oneDNN."""
    permitted = _permitted.get()
    return bool(torch.backends.mkldnn.enabled) if permitted is None else permitted


@contextmanager
def without_layers() -> Generator[None]:
    """Switch oneDNN off but for `products`."""
    token = _permitted.set(has_products())
    try:
        with _switched(on=False):
            yield
    finally:
        _permitted.reset(token)


def products() -> AbstractContextManager[None]:
    """Switch oneDNN on for products, where the user permits it. Call in one thread at a time."""
    return _switched(on=has_products())


@contextmanager
def _switched(*, on: bool) -> Generator[None]:
    before = bool(torch.backends.mkldnn.enabled)
    _set_enabled(on)
    try:
        yield
    finally:
        _set_enabled(before)
