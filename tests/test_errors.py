"""Every error that the package raises on purpose has its place in the tree of
`veritrain.errors`."""

from __future__ import annotations

import ast
from pathlib import Path

from veritrain import errors

PACKAGE = Path(errors.__file__).parent


def error_classes(source: str) -> set[str]:
    """Classes of a file whose name or base is that of an error of the tree."""
    return {
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id in NAMES for base in node.bases)
    }


NAMES = {name for name, value in vars(errors).items() if isinstance(value, type)}


def test_the_tree_names_every_error():
    tree = errors.__doc__ or ""
    found = {name for file in PACKAGE.rglob("*.py") for name in error_classes(file.read_text())}
    assert {"JobError", "UnansweredError"} <= found
    assert [name for name in sorted(found) if f" {name} " not in tree] == []


def test_a_new_error_is_seen():
    assert error_classes("class LateError(UsageError):\n    pass\n") == {"LateError"}
