"""Break the long lines of Markdown pages: `python docs/reflow.py PAGE ...`.

A paragraph with a line of more than 100 characters is filled again; every other one stays as it is.
Tables, code blocks, headings and comments are never touched, and no code span or link target is
broken. Running the program twice changes nothing more.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

WIDTH = 100  # characters
_FENCE = re.compile(r" *(```|~~~)")
_ITEM = re.compile(r"( *(?:[-*+]|\d+\.) +)")
_ALONE = re.compile(r" *($|\||#+ |<!--)")  # an empty line, or one of a table, heading or comment
_WORD = re.compile(r"(?:`[^`]*`|\]\([^)]*\)|\S)+")  # spaces in code and link targets do not split
_MARKUP = re.compile(r"(?:[-*+=]|#+|\d+[.)]|[>|].*)$")  # means something else at a line's beginning


def reflow(page: str) -> str:
    """The page with its long paragraphs filled again."""
    lines: list[str] = []
    paragraph: list[str] = []
    fence, in_list = False, False

    def close() -> None:
        lines.extend(fill(paragraph) if any(len(line) > WIDTH for line in paragraph) else paragraph)
        paragraph.clear()

    for line in page.splitlines():
        is_code = line.startswith("    ") and not paragraph and not in_list
        if _FENCE.match(line):
            fence = not fence
        if fence or _FENCE.match(line) or _ALONE.match(line) or is_code:
            close()
            lines.append(line)
            continue
        if _ITEM.match(line):
            close()
            in_list = True
        elif not paragraph and not line.startswith(" "):
            in_list = False
        paragraph.append(line)
    close()
    return "\n".join(lines) + "\n"


def fill(paragraph: list[str]) -> list[str]:
    """One paragraph or list item, its lines as long as they may be."""
    item = _ITEM.match(paragraph[0])
    first = item[1] if item else " " * (len(paragraph[0]) - len(paragraph[0].lstrip()))
    text = " ".join([paragraph[0][len(first) :], *paragraph[1:]])
    words: list[str] = []
    for word in _WORD.findall(text):
        if words and _MARKUP.match(word):
            words[-1] += " " + word
        else:
            words.append(word)
    lines, line = [], first + words[0]
    for word in words[1:]:
        if len(line) + 1 + len(word) <= WIDTH:
            line += " " + word
        else:
            lines.append(line)
            line = " " * len(first) + word
    return [*lines, line]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(reflow(path.read_text()))
