"""The house: imports point one way between rooms, and no files or folders import in a circle.

Every import counts: those inside of functions, and those for the type checker alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "veritrain"

# Lowest first. A room is a folder or a file of the package itself.
LAYERS = (
    {"errors"},
    {"encoding"},
    {"runtime"},
    {"numerics", "transcript"},
    {"job"},
    {"parties", "training", "replay", "models"},
    {"protocols", "net"},
    {"adversaries", "integrations"},
    {"service"},
    {"cli", "__main__"},
)
# Rooms of one layer that may import each other, in this direction.
BESIDE = {("__main__", "cli")}
# Further imports that would point down, and that are refused all the same.
REFUSED = {
    ("replay", "training"): "an auditor does not run the trainer's bookkeeping",
    ("protocols", "net"): "protocols are machines without I/O",
    ("net", "job"): "what carries bytes knows nothing of training",
    ("net", "replay"): "what carries bytes knows nothing of training",
    ("net", "training"): "what carries bytes knows nothing of training",
    ("service", "adversaries"): "nobody is told of the attacks",
    ("cli", "adversaries"): "nobody is told of the attacks",
}
USERS = {"cli.starter"}  # the text of a job that users begin with
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def module_of(file: Path) -> str:
    """The dotted name of a file of the package: `job.state`, `job` for `job/__init__.py`."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    return {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports(file: Path, known: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """The package's modules that a file imports, with the line; "" for the package itself."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}, line {node.lineno}: write the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inside = name.partition(".")
            if package == "veritrain" and inside != "__version__":
                while inside not in known and inside:  # a name that a module defines
                    inside = inside.rpartition(".")[0]
                yield inside, node.lineno


def faults() -> list[str]:
    """Imports that point the wrong way between rooms."""
    known, found = modules(), []
    for module, file in known.items():
        room = module.partition(".")[0]
        for name, line in imports(file, known) if room else ():
            target = name.partition(".")[0]
            if target == room:
                continue
            if not target:  # a public name, which may come from any room
                if module not in USERS:
                    found.append(f"{file.relative_to(PACKAGE)}, line {line}: {room} names no room")
                continue
            down = LEVEL[target] < LEVEL[room] and (room, target) not in REFUSED
            if not down and (room, target) not in BESIDE:
                found.append(f"{file.relative_to(PACKAGE)}, line {line}: {room} imports {target}")
    return found


def between_protocols() -> list[str]:
    """Imports of one protocol by another: what two need lies in `parties`."""
    return [
        f"{module} imports {target}"
        for module, targets in graph_of_files().items()
        for target in sorted(targets)
        if module.startswith("protocols.") and target.startswith("protocols.")
        if module.split(".")[1] != target.split(".")[1]
    ]


def graph_of_files() -> dict[str, set[str]]:
    known = modules()
    return {
        module: {name for name, _ in imports(file, known) if name} - {module}
        for module, file in known.items()
        if module
    }


def graph_of_folders() -> dict[str, set[str]]:
    """Folders, each of its own files alone. A file of the package itself stands for itself."""
    files, known = graph_of_files(), modules()

    def folder(module: str) -> str:
        is_folder = known[module].name == "__init__.py"
        return module if is_folder else module.rpartition(".")[0] or module

    found: dict[str, set[str]] = {}
    for module, targets in files.items():
        own = folder(module)
        found.setdefault(own, set()).update({folder(target) for target in targets} - {own})
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The sets of nodes that reach each other, each of them sorted."""

    def reachable(start: str) -> set[str]:
        seen, waiting = set[str](), [start]
        while waiting:
            for target in graph.get(waiting.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return seen

    reached = {node: reachable(node) for node in graph}
    found = {
        tuple(sorted(other for other in reached[node] if node in reached.get(other, ())))
        for node in graph
        if node in reached[node]
    }
    return [list(circle) for circle in sorted(found)]


def test_every_room_has_a_layer():
    assert {module.partition(".")[0] for module in modules()} - {""} <= set(LEVEL)


def test_imports_point_down():
    assert faults() == []


def test_no_protocol_imports_another():
    assert between_protocols() == []


def test_no_files_import_in_a_circle():
    assert circles(graph_of_files()) == []


def test_no_folders_import_in_a_circle():
    assert circles(graph_of_folders()) == []


def test_the_package_itself_loads_nothing_but_errors():
    body = ast.parse((PACKAGE / "__init__.py").read_bytes()).body
    loaded = {node.module for node in body if isinstance(node, ast.ImportFrom)}
    assert {name for name in loaded if str(name).startswith("veritrain")} == {"veritrain.errors"}


def test_services_and_the_command_line_alone_carry_bytes():
    users = {
        module.partition(".")[0]
        for module, targets in graph_of_files().items()
        if any(target.partition(".")[0] == "net" for target in targets)
    }
    assert users == {"net", "service", "cli"}


def test_adversaries_serve_tests_benchmarks_and_the_demo_only():
    users = {
        file.relative_to(ROOT)
        for folder in ("src", "examples")
        for file in (ROOT / folder).rglob("*.py")
        if "veritrain.adversaries" in file.read_text()
    }
    inside = {file for file in users if file.parts[:3] == ("src", "veritrain", "adversaries")}
    assert users - inside <= {Path("examples/demo.py")}


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Writes a package of the given files, in the place of this one."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)

    def write(**files: str) -> None:
        for name, text in files.items():
            file = tmp_path / (name.replace("__", "/") + ".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.write_text(text)

    return write


def test_a_wrong_import_is_seen(house):
    house(
        replay__auditor="def f():\n    from veritrain.training.recorder import train\n",
        training__recorder="train = 1\n",
        job__step="from veritrain.cli import main\nfrom veritrain.errors import A\n",
        cli__main="",
        errors="",
    )
    assert faults() == [
        "job/step.py, line 1: job imports cli",
        "replay/auditor.py, line 2: replay imports training",
    ]


def test_an_import_through_the_package_is_seen(house):
    house(
        replay__auditor="from veritrain import Recorder\n",
        job__step="from veritrain import __version__, errors\n",
        errors="",
    )
    assert faults() == ["replay/auditor.py, line 1: replay names no room"]


def test_a_protocol_that_imports_another_is_seen(house):
    house(protocols__aspis__server="from veritrain.protocols.dispute import game\n")
    (PACKAGE / "protocols" / "dispute").mkdir()
    (PACKAGE / "protocols" / "dispute" / "game.py").touch()
    assert between_protocols() == ["protocols.aspis.server imports protocols.dispute.game"]


def test_a_circle_of_typing_imports_is_seen(house):
    house(
        job__state="if TYPE_CHECKING:\n    from veritrain.job.step import Program\n",
        job__step="def f():\n    from veritrain.job import state\n",
        job__data="from veritrain.job.state import x\n",
    )
    assert circles(graph_of_files()) == [["job.state", "job.step"]]
    assert circles(graph_of_folders()) == []


def test_a_circle_of_folders_is_seen(house):
    house(
        replay__a="from veritrain.replay.trace.b import x\n",
        replay__trace__b="from veritrain.replay.c import x\n",
        replay__c="",
    )
    assert circles(graph_of_files()) == []
    assert circles(graph_of_folders()) == [["replay", "replay.trace"]]
