"""The documentation cannot rot: its job, commands and code run here, its links and names exist.

A `console` block of a page that runs is executed line by line. Each command ends with 0, unless its
comment begins with REJECTED: then it ends with 1, and prints that comment.
"""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest

import veritrain
from veritrain.cli import commands, main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NARROW = [page for page in PAGES if page.name != "CHANGELOG.md"]
_BLOCK = re.compile(r"(?:<!-- (?P<mark>.*?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)


_PROGRAM = runpy.run_path(str(ROOT / "docs" / "reflow.py"))
WIDTH, reflow = _PROGRAM["WIDTH"], _PROGRAM["reflow"]


def run_page(page: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, int]:
    """Run a page's blocks in order; how many commands and Python blocks it had."""
    ran, executed = 0, 0
    for block in _BLOCK.finditer(page.read_text()):
        mark, text = block["mark"] or "", block["text"]
        if block["kind"] == "console":
            ran += run_commands(text, capsys)
        elif mark.startswith("file: "):
            Path(mark.removeprefix("file: ")).write_text(text)
        elif mark == "run":
            exec(compile(text, str(page), "exec"), {"__name__": "__main__"})  # noqa: S102
            executed += 1
    return ran, executed


def run_commands(text: str, capsys: pytest.CaptureFixture[str]) -> int:
    """Run each line of a console block; how many there were."""
    for line in text.splitlines():
        command, _, comment = line.removeprefix("$ ").partition(" # ")
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
            continue
        assert words[0] == "veritrain", line
        capsys.readouterr()
        rejected = comment.startswith("REJECTED")
        assert main(words[1:]) == (1 if rejected else 0), line
        assert not rejected or comment in capsys.readouterr().out, line
    return len(text.splitlines())


def test_the_readme_and_the_guide_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERITRAIN_KEY", str(tmp_path / "key"))
    assert run_page(ROOT / "README.md", capsys) == (7, 1)
    assert run_page(ROOT / "docs" / "guide.md", capsys) == (14, 5)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900  # words, code included


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may name, as GitHub makes it of the heading."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def test_files_of_tests_that_are_named_exist():
    """Those that pages and texts of tests name, and the folders after `pytest`."""
    named = re.compile(r"(?<![\w/])tests/[a-z_/0-9]+\.py|(?<=pytest -m long )tests/[a-z_/0-9]+")
    readers = [*PAGES, *(ROOT / "tests").rglob("*.py")]
    found = {(path, page.name) for page in readers for path in named.findall(page.read_text())}
    assert len(found) > 5
    assert not {(path, page) for path, page in found if not (ROOT / path).exists()}


TORCHRUN = "nnodes node-rank nproc-per-node master-addr master-port max-restarts"  # its options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_are_named_exist(page):
    known = {
        option
        for command in commands.commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    known |= {"--help", "--version", "--index-url", "--only", "--out", "--threads"}
    known |= {f"--{name}" for name in TORCHRUN.split()}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text())) <= known


@pytest.mark.parametrize("page", NARROW, ids=lambda page: page.name)
def test_lines_are_short(page):
    """No line is too long outside of code blocks, but for a table's row with a link."""
    text = _BLOCK.sub("", page.read_text())
    long = [line for line in text.splitlines() if len(line) > WIDTH]
    assert not [line for line in long if not (line.startswith("|") and "](" in line)], (
        f"run python docs/reflow.py {page.relative_to(ROOT)}"
    )


def test_reflow_breaks_long_lines_alone():
    word, code, link = "word " * 15, "`" + "a b " * 8 + "`", "[two words](" + "x" * 60 + ")"
    page = (
        f"# {word * 2}\n\n- {word}{code} - {link}\n  end\n\n```sh\n{word * 2}\n```\nshort\nlines\n"
    )
    assert (
        reflow(page) == f"# {word * 2}\n\n- {word.strip()}\n  {code} - [two\n  {link[5:]} end\n\n"
        f"```sh\n{word * 2}\n```\nshort\nlines\n"
    )
    assert reflow(reflow(page)) == reflow(page)


def test_reflow_makes_a_list_of_a_wide_table():
    wide = "wide " * 20
    assert (
        reflow(f"| a | b |\n|---|---|\n| 1 | 2 |\n| x \\| y | {wide}|\n")
        == f"*a: b*\n\n- 1: 2\n- x | y: {wide[:-11]}\n  wide wide\n"
    )
    assert reflow(f"| a | b | c |\n|---|---|--:|\n| 1 | {wide}| |\n").startswith("- 1\n  - b: wide")


def test_the_machine_in_the_guide_to_protocols_works(tmp_path, monkeypatch):
    """The guide's own code, in two rounds of two tasks. The first round has four workers, of whom
    the first is excluded then: so the others have other places in the second round."""
    from veritrain.parties.roster import Roster

    page = ROOT / "docs" / "contributing" / "add_a_protocol.md"
    code = [
        block["text"] for block in _BLOCK.finditer(page.read_text()) if block["kind"] == "python"
    ]
    (tmp_path / "a_round.py").write_text("\n".join(code))
    monkeypatch.syspath_prepend(tmp_path)
    a_round = importlib.import_module("a_round")
    signers = [veritrain.Signer.generate() for _ in range(4)]
    keys = tuple(signer.public_key for signer in signers)
    first, second = bytes(32), bytes([1] * 32)
    machines = {
        (round, task): a_round.Collector(
            roster=Roster(epoch=epoch, keys=keys[epoch:]), round=round, task=task, deadline=10.0
        )
        for epoch, round in enumerate((first, second))
        for task in (0, 1)
    }

    def answer(place, signer, round, task, result):
        made = a_round.TaskAnswer(round=round, sender=place, task=task, result=bytes([result] * 32))
        return made.signed(signers[signer]).to_bytes()

    honest = [
        answer(signer - epoch, signer, round, task, 10 * epoch + task)
        for epoch, round in enumerate((first, second))
        for task in (0, 1)
        for signer in (2, 3)  # 1 is silent
    ]
    lies = [
        answer(0, 0, first, 0, 7),
        answer(0, 0, first, 0, 8),  # a second answer
        answer(1, 0, first, 0, 7),  # in another name
        answer(4, 0, first, 1, 7),  # of nobody
        b"noise",
    ]
    for data in (*honest, *lies, *honest):  # each comes to each machine
        for machine in machines.values():
            machine.receive(data, now=1.0)
    found = {slot: sorted(machine.faults) for slot, machine in machines.items()}
    assert found == {slot: [0] if slot == (first, 0) else [] for slot in machines}
    assert not any(machine.is_over for machine in machines.values())
    for machine in machines.values():
        machine.tick(now=machine.deadline)
    found = {slot: sorted(machine.faults) for slot, machine in machines.items()}
    silent = {(first, 0): [0, 1], (first, 1): [0, 1], (second, 0): [0], (second, 1): [0]}
    assert found == silent
    assert all(machine.is_over for machine in machines.values())


def test_every_exported_name_exists():
    assert all(getattr(veritrain, name) is not None for name in veritrain.__all__)


def test_the_examples_are_jobs(monkeypatch):
    for name, steps in (("digits", 300), ("char_transformer", 150)):
        job = veritrain.load_job(ROOT / "examples" / f"{name}.py")
        assert job.steps == steps
        assert job.numerics == "exact"
