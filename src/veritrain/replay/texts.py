"""How two versions of a file differ: in a few words, and as a diff for people.

Either may be hostile. Nothing of them is parsed or executed, only cut into tokens; sizes are
bounded before anything is compared, and what is shown is escaped and cut short.
"""

from __future__ import annotations

import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from io import StringIO

from veritrain.runtime.text import cut, escape, one_line

_MOST_BYTES = 1 << 20  # of a file that is compared as text
_MOST_TOKENS_BYTES = 1 << 18  # of a file that is cut into tokens
_MOST_LINES = 1000  # from the first to the last that differ: a diff takes their square of time
_CONTEXT = 2  # lines of a diff round what differs
_DIFF_CHARS = 200  # of one line of a diff
_QUOTED_CHARS = 72
_MARK = b"\xef\xbb\xbf"  # byte order mark of UTF-8
_LAYOUT = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


@dataclass(frozen=True, kw_only=True)
class TextDifference:
    """`words` follow "differs": `only in line ends (yours CRLF, the run's LF)`; lines of `diff`
    begin with `-` where they are the run's, and with `+` where they are one's own."""

    words: str
    diff: tuple[str, ...] = ()


def difference(
    name: str, own: bytes, claimed: bytes, *, runs_name: str | None = None, most: int = 40
) -> TextDifference:
    """How one's own file of this name differs from the run's.

    Args:
        name: of the file; what ends in `.py` is compared as Python too.
        own, claimed: one's own bytes and the run's; they are not equal.
        runs_name: of the run's file, if it is another one.
        most: lines of the diff.
    """
    if max(len(own), len(claimed)) > _MOST_BYTES:
        return TextDifference(words=_bytewise(own, claimed))
    try:
        ours, theirs = _plain(own), _plain(claimed)
    except UnicodeDecodeError:
        return TextDifference(words=_bytewise(own, claimed))
    outside = _outside(own, claimed)
    if ours == theirs:
        return TextDifference(words=f"only in {' and '.join(outside)}")
    if [line.rstrip() for line in ours] == [line.rstrip() for line in theirs]:
        return TextDifference(
            words=f"only in {' and '.join(['white space at ends of lines', *outside])}"
        )
    if name.endswith(".py") and _same_tokens(ours, theirs):
        what = ["comments, blank lines or layout", *outside]
        words = f"only in {' and '.join(what)} (bytes are compared: make them equal)"
    else:
        words = ""
    return _linewise((name, runs_name or name), ours, theirs, words, outside, most)


def variants(own: bytes) -> Iterator[tuple[str, bytes]]:
    """What one's own file would be with other line ends, and with or without a byte order mark,
    each with words as those of `TextDifference`. It serves those who have the other's digest
    alone."""
    bare = own.removeprefix(_MARK)
    lines = bare.replace(b"\r\n", b"\n")
    for mark in (b"", _MARK):
        for body in (lines, lines.replace(b"\n", b"\r\n"), bare):
            for end in (body, body.rstrip(b"\r\n"), body + b"\n"):
                made = mark + end
                if made != own:
                    what = _outside(own, made) or ["a line break at the end"]
                    yield f"only in {' and '.join(what)}", made


def _plain(data: bytes) -> list[str]:
    """Lines without a byte order mark, whatever ends them."""
    text = data.removeprefix(_MARK).decode()
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _outside(own: bytes, claimed: bytes) -> list[str]:
    """What differs beside the text of the lines."""
    found: list[str] = []
    if own.startswith(_MARK) != claimed.startswith(_MARK):
        whose = "yours" if own.startswith(_MARK) else "the run's"
        found.append(f"a byte order mark ({whose} has one)")
    ours, theirs = _line_ends(own), _line_ends(claimed)
    if ours != theirs:
        found.append(f"line ends (yours {ours}, the run's {theirs})")
    return found


def _line_ends(data: bytes) -> str:
    both = data.count(b"\r\n")
    kinds = {"CRLF": both, "LF": data.count(b"\n") - both, "CR": data.count(b"\r") - both}
    return " and ".join(kind for kind, count in kinds.items() if count) or "none"


def _bytewise(own: bytes, claimed: bytes) -> str:
    pairs = enumerate(zip(own, claimed, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(own), len(claimed)))
    return f"from byte {place} on (yours has {len(own)} bytes, the run's {len(claimed)})"


def _same_tokens(ours: list[str], theirs: list[str]) -> bool:
    """Are they the same Python but for comments, blank lines and how long lines are broken?"""
    texts = ["\n".join(lines) for lines in (ours, theirs)]
    if max(map(len, texts)) > _MOST_TOKENS_BYTES:
        return False
    try:
        first, second = (list(_tokens(text)) for text in texts)
    except (Exception, RecursionError, MemoryError):  # whatever a tokenizer makes of hostile text
        return False
    return first == second


def _tokens(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            yield token.type, "" if token.type in _LAYOUT else token.string


def _linewise(
    names: tuple[str, str],
    ours: list[str],
    theirs: list[str],
    words: str,
    outside: list[str],
    most: int,
) -> TextDifference:
    start = _common(ours, theirs)
    end = _common(ours[start:][::-1], theirs[start:][::-1])
    a, b = theirs[start : len(theirs) - end], ours[start : len(ours) - end]
    if max(len(a), len(b)) > _MOST_LINES:
        text = f"from line {start + 1} on, in more than {_MOST_LINES} lines"
        return TextDifference(words=words or text)
    low = max(0, start - _CONTEXT)
    a, b = theirs[low : start + len(a) + _CONTEXT], ours[low : start + len(b) + _CONTEXT]
    matcher = SequenceMatcher(None, a, b)
    if not words:
        words = _counted(matcher, a, b, low)
        words += "".join(f", and in {what}" for what in outside)
    return TextDifference(words=words, diff=_bounded(_diff_lines(names, matcher, a, b, low), most))


def _counted(matcher: SequenceMatcher[str], a: Sequence[str], b: Sequence[str], low: int) -> str:
    """`in line 12: yours is "rate = 1", the run's "rate = 2"`; of several lines the first."""
    changed = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    count = sum(
        max(a_end - a_begin, b_end - b_begin) for _, a_begin, a_end, b_begin, b_end in changed
    )
    _, a_begin, a_end, b_begin, b_end = changed[0]
    place = f"line {low + b_begin + 1}"
    where = f"in {place}" if count == 1 else f"in {count} lines, the first is {place}"
    yours = _quoted(b[b_begin]) if b_begin < b_end else "nothing"
    claimed = _quoted(a[a_begin]) if a_begin < a_end else "nothing"
    claimed += " with other white space" if claimed == yours else ""
    return f"{where}: yours is {yours}, the run's {claimed}"


def _diff_lines(
    names: tuple[str, str],
    matcher: SequenceMatcher[str],
    a: Sequence[str],
    b: Sequence[str],
    low: int,
) -> Iterator[str]:
    """A unified diff, from the run's version to one's own; `names` are one's own and the run's."""
    yield f"--- the run's {names[1]}"
    yield f"+++ your {names[0]}"
    for group in matcher.get_grouped_opcodes(_CONTEXT):
        first, last = group[0], group[-1]
        yield (
            f"@@ -{low + first[1] + 1},{last[2] - first[1]}"
            f" +{low + first[3] + 1},{last[4] - first[3]} @@"
        )
        for kind, a_begin, a_end, b_begin, b_end in group:
            if kind == "equal":
                yield from (f" {line}" for line in a[a_begin:a_end])
                continue
            yield from (f"-{line}" for line in a[a_begin:a_end])
            yield from (f"+{line}" for line in b[b_begin:b_end])


def _bounded(lines: Iterator[str], most: int) -> tuple[str, ...]:
    shown = [cut(escape(line), _DIFF_CHARS) for line in lines]
    left = len(shown) - most
    return (*shown[:most], f"… and {left} more lines") if left > 0 else tuple(shown)


def _quoted(line: str) -> str:
    return f"`{cut(one_line(line), _QUOTED_CHARS)}`"


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many lines both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (left, right) in pairs if left != right), min(len(a), len(b)))
