"""Break the long lines of Markdown pages: `python docs/reflow.py PAGE ...`.

A paragraph with a line of more than 100 characters is filled again, and a table with such a row
becomes a list. Everything else stays as it is: code blocks, headings, comments, other paragraphs
and tables. No code span or link target is broken. Running the program twice changes nothing more.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

WIDTH = 100  # characters
_FENCE = re.compile(r" *(```|~~~)")
_ITEM = re.compile(r"( *(?:[-*+]|\d+\.) +)")
_ALONE = re.compile(r" *($|#+ |<!--)")  # an empty line, a heading or a comment
_WORD = re.compile(r"(?:`[^`]*`|\]\([^)]*\)|\S)+")  # spaces in code and link targets do not split
_MARKUP = re.compile(r"(?:[-*+=]|#+|\d+[.)]|[>|].*)$")  # means something else at a line's beginning
_BAR = re.compile(r"(?<!\\)\|")  # between two cells of a table


def reflow(page: str) -> str:
    """The page with its long paragraphs filled again and its wide tables as lists."""
    lines: list[str] = []
    block: list[str] = []  # lines of one paragraph, list item or table
    fence, in_list = False, False

    def close() -> None:
        if not any(len(line) > WIDTH for line in block):
            lines.extend(block)
        elif block[0].startswith("|"):
            lines.extend(line for item in as_list(block) for line in fill([item]))
        else:
            lines.extend(fill(block))
        block.clear()

    for line in page.splitlines():
        is_code = line.startswith("    ") and not block and not in_list
        if _FENCE.match(line):
            fence = not fence
        if fence or _FENCE.match(line) or _ALONE.match(line) or is_code:
            close()
            lines.append(line)
            continue
        if _ITEM.match(line):
            close()
            in_list = True
        elif not block and not line.startswith(" "):
            in_list = False
        block.append(line)
    close()
    return "\n".join(lines) + "\n"


def as_list(table: list[str]) -> list[str]:
    """A line for each row of a table of two columns; of a wider one, a line for each cell."""
    head, _, *rows = ([cell.strip() for cell in _BAR.split(line)[1:-1]] for line in table)
    items: list[str] = [] if len(head) > 2 else [f"*{head[0]}: {head[1]}*", ""]
    for first, *rest in rows:
        if len(head) == 2:
            items.append(f"- {first}: {rest[0]}")
        else:
            items += [f"- {first}"]
            items += [
                f"  - {name}: {cell}" for name, cell in zip(head[1:], rest, strict=True) if cell
            ]
    return [item.replace("\\|", "|") for item in items]


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
    lines, line = [], first + "".join(words[:1])
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
