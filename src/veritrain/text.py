"""Text that others wrote, made safe to print: a terminal must not obey what a run's folder or a job says."""

from __future__ import annotations


def one_line(text: str) -> str:
    """The text without line breaks, and with anything unprintable escaped."""
    return escape(" ".join(text.split()))


def escape(text: str) -> str:
    """The text with unprintable characters, terminal control sequences for example, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(text: str, limit: int) -> str:
    """At most `limit` characters of the text, with a mark where there are more."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
