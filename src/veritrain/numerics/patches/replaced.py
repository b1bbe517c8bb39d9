"""How names are replaced while a step runs, and put back when it ends: once, for all that is
replaced."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, NamedTuple


class Replacement(NamedTuple):
    """A name of a module or class, and what stands for it."""

    owner: Any
    name: str
    make: Callable[[Any], Any]  # the new value, from the original

    @classmethod
    def by(cls, owner: Any, name: str, value: Any) -> Replacement:
        """The replacement by a value that does not need the original."""

        def make(original: Any) -> Any:
            return value

        return cls(owner, name, make)


@contextmanager
def replaced(replacements: Iterable[Replacement]) -> Generator[None]:
    """Within it the names stand for their replacements; then for what they stood for before."""
    originals: list[tuple[Any, str, Any]] = []
    try:
        for owner, name, make in replacements:
            original = getattr(owner, name)
            originals.append((owner, name, original))
            setattr(owner, name, make(original))
        yield
    finally:
        for owner, name, original in reversed(originals):
            setattr(owner, name, original)
