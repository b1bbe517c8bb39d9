"""Lines for people. Text that others wrote is made safe to print: a terminal must not obey what a
run's folder or a job says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

Line: TypeAlias = "str | tuple[str, str]"  # text, or text with a rich style


def one_line(text: str) -> str:
    """The text without line breaks, and with anything unprintable escaped."""
    return escape(" ".join(text.split()))


def escape(text: str) -> str:
    """The text with unprintable characters, terminal control sequences for example, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(text: str, limit: int) -> str:
    """At most `limit` characters of the text, with a mark where there are more."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[Line]:
    """Columns as wide as what is in them; the last one is free."""
    escaped = [[escape(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*escaped, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in escaped
    ]
    return [(lines[0], "dim"), *lines[1:]]


def plain(lines: Iterable[Line]) -> str:
    """The lines without their styles."""
    return "\n".join(line if isinstance(line, str) else line[0] for line in lines)
