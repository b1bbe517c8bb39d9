"""docs/operators.md names every covered operator, by kind; it is written by this module.

python tests/numerics/test_operator_list.py
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from veritrain.numerics.rules import Kind, covered

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"

HEAD = """# Operators covered by exact numerics

ATen operators by kind ([what the kinds mean](numerics.md#operators)). A name without an overload
covers all overloads that take `float32` or integer tensors; in-place, `out=` and `_foreach_` forms
follow. Every other operator is refused by name. Composite operators of PyTorch (`linear`, `matmul`,
`cross_entropy`, `multi_head_attention_forward`, ...) arrive as these. This page is generated and
tested.
"""


def page() -> str:
    """The page as it should be."""
    kinds = covered()
    parts = [HEAD]
    for kind in Kind:
        names = sorted(name.removeprefix("aten.") for name, k in kinds.items() if k is kind)
        if names:
            listed = textwrap.fill(
                ", ".join(f"`{name}`" for name in names),
                width=100,
                break_long_words=False,
                break_on_hyphens=False,
            )
            parts.append(f"## {kind.value.capitalize()}\n\n{listed}\n")
    return "\n".join(parts)


def test_the_page_is_current():
    assert PAGE.read_text() == page(), "run python tests/numerics/test_operator_list.py"


if __name__ == "__main__":
    PAGE.write_text(page())
