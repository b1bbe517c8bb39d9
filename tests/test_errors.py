"""Every error that the package raises on purpose is named in `veritrain.errors`: in its tree, or
among those outside of it."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable
from pathlib import Path

from veritrain import errors

PACKAGE = Path(errors.__file__).parent
BUILT_IN = {
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
WARNINGS = {name for name in BUILT_IN if name.endswith("Warning")}


def error_classes(sources: Iterable[str]) -> dict[str, set[str]]:
    """Public classes of errors, each with all that it is derived from, however far."""
    bases: dict[str, set[str]] = {}
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                named = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                bases.setdefault(node.name, set()).update(named)

    def above(name: str) -> set[str]:
        return {name}.union(*(above(base) for base in bases.get(name, set())))

    found = {name: above(name) - {name} for name in bases if not name.startswith("_")}
    return {name: over for name, over in found.items() if over & BUILT_IN and not over & WARNINGS}


def test_every_error_is_named_in_its_place():
    tree, _, outside = (errors.__doc__ or "").partition("Outside of it")
    found = error_classes(file.read_text() for file in PACKAGE.rglob("*.py"))
    assert {"JobError", "UnansweredError", "ProblemError", "TerminatedError"} <= found.keys()
    for name, over in found.items():
        place = tree if "VeritrainError" in over | {name} else outside
        assert f" {name} " in place or f"{name}\n" in place, name


def test_a_new_error_is_seen_whatever_it_is_derived_from():
    one = "class LateError(errors.UsageError): pass\nclass LaterError(LateError): pass"
    other = "class UsageError(Exception): pass\nclass EndedError(KeyboardInterrupt): pass"
    more = "class Plain: pass\nclass OldWarning(UserWarning): pass\nclass _Own(Exception): pass"
    assert error_classes([one, other, more]) == {
        "LateError": {"UsageError", "Exception"},
        "LaterError": {"LateError", "UsageError", "Exception"},
        "UsageError": {"Exception"},
        "EndedError": {"KeyboardInterrupt"},
    }
