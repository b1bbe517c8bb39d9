"""The rooms of numerics import downwards only, and no two of their files import each other in a
circle.

Imports for the type checker and imports inside functions count.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import veritrain.numerics

ROOT = Path(veritrain.numerics.__file__).parent
NAME = "veritrain.numerics"
ROOMS = {  # each with the rooms that it may import
    "platform": set(),
    "keys": set(),
    "cpu": {"platform", "keys"},
    "device": {"platform", "cpu"},
    "rules": {"platform", "keys", "cpu"},
    "logged": {"platform", "cpu", "rules"},
    "patches": {"platform", "keys"},
    "": {"platform", "keys", "cpu", "device", "rules", "logged", "patches"},
}


def files() -> dict[str, Path]:
    """Every module of numerics by its dotted name."""
    found = {}
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join((NAME, *parts)).removesuffix(".__init__")] = file
    return found


def imports(modules: dict[str, Path]) -> dict[str, set[str]]:
    """For each module those of `modules` that it imports."""
    graph = {}
    for name, file in modules.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & modules.keys()
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= (wanted & modules.keys()) or ({node.module} & modules.keys())
        graph[name].discard(name)
    return graph


def room_of(module: str, modules: dict[str, Path]) -> str:
    parts = modules[module].relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


def upward(modules: dict[str, Path]) -> list[str]:
    """Imports of a room that may not be imported there."""
    return [
        f"{name} imports {other}"
        for name, others in imports(modules).items()
        for other in others
        if (here := room_of(name, modules)) != (there := room_of(other, modules))
        and there not in ROOMS[here]
    ]


def test_every_folder_is_a_room_and_all_rooms_import_downwards():
    modules = files()
    assert {room_of(name, modules) for name in modules} == ROOMS.keys()
    assert upward(modules) == []


def test_no_circle_of_files():
    list(TopologicalSorter(imports(files())).static_order())


def test_a_circle_and_an_upward_import_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("test_rooms.ROOT", tmp_path)
    (tmp_path / "keys").mkdir()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "keys" / "a.py").write_text(f"def f():\n    from {NAME}.cpu.b import g\n")
    (tmp_path / "cpu" / "b.py").write_text(f"from {NAME}.keys import a\n")
    assert upward(files()) == [f"{NAME}.keys.a imports {NAME}.cpu.b"]
    with pytest.raises(CycleError):
        list(TopologicalSorter(imports(files())).static_order())
