"""Imports point one way: a lower layer never imports a higher one, not even inside a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "veritrain"

# Lowest first. Rooms of one layer may import each other, except those in APART.
LAYERS = (
    {"errors", "encoding", "text", "progress", "signals", "started", "kernels"},
    {"numerics", "transcript"},
    {
        "job",
        "loading",
        "sources",
        "schedule",
        "data",
        "state",
        "step",
        "selftest",
        "attributes",
        "fresh",
        "weights",
        "exports",
    },
    {"training", "verify"},
    {"adversaries", "integrations"},
    {"service"},
    {"cli", "__main__"},
)
APART = {
    frozenset({"numerics", "transcript"}),
    frozenset({"training", "verify"}),  # an auditor does not run the trainer's bookkeeping
}
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a file imports from this package, with the line. Imports for the type
    checker alone create no dependency and are left out."""
    tree = ast.parse(file.read_bytes())
    typing = [
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for body in branch.body
        for node in ast.walk(body)
    ]
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}, line {node.lineno}: write the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "veritrain")


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def faults(file: Path) -> list[str]:
    """Imports of `file` that point the wrong way."""
    room, found = room_of(file), []
    for name, line in imports(file):
        target = name.partition(".")[2].partition(".")[0]  # "" for the package itself
        if target not in LEVEL or target == room:  # a name of the package itself, or the same room
            continue
        wrong = LEVEL[target] > LEVEL[room] or frozenset({room, target}) in APART
        if wrong or (target == "adversaries"):
            found.append(f"{file.relative_to(ROOT)}, line {line}: {room} imports {target}")
    return found


def test_every_room_has_a_layer():
    rooms = {room_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms <= set(LEVEL)


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_imports_point_down(room):
    files = [file for file in PACKAGE.rglob("*.py") if room_of(file) == room]
    assert [fault for file in files for fault in faults(file)] == []


def test_the_package_itself_loads_nothing_but_errors():
    assert {name.split(".")[1] for name, _ in imports(PACKAGE / "__init__.py")} == {"errors"}


def test_adversaries_serve_tests_benchmarks_and_the_demo_only():
    allowed = {ROOT / "examples" / "demo.py"}
    users = {
        file
        for file in (ROOT / "examples").rglob("*.py")
        if any(name.startswith("veritrain.adversaries") for name, _ in imports(file))
    }
    assert users <= allowed


def test_a_wrong_import_is_seen(tmp_path, monkeypatch):
    """The test can fail: a lower room that imports a higher one inside of a function."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "verify" / "replay.py"
    file.parent.mkdir()
    file.write_text("def f():\n    from veritrain.training.recorder import train\n")
    assert faults(file) == ["verify/replay.py, line 2: verify imports training"]
    file.write_text("from veritrain.cli import main\nfrom veritrain.step import Program\n")
    assert faults(file) == ["verify/replay.py, line 1: verify imports cli"]
