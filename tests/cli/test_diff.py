"""`veritrain diff` names all that differs; `show` names what it shows, and the files that a run
carries."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.cli.conftest import JOB
from veritrain.cli import output
from veritrain.transcript import Transcript


@pytest.fixture
def other(tmp_path):
    """The job with a line, a setting and a record changed."""
    text = JOB.replace("lr=0.05", "lr=0.5").replace("steps=6", "steps=7").replace("/ 64", "/ 32")
    (tmp_path / "job.py").write_text(text)
    return tmp_path / "job.py"


def test_the_same_job(call, call_json, folder):
    code, out, _ = call("diff", folder / "run", folder / "job.py")
    assert code == 0
    assert out.splitlines() == [
        "settings   the same",
        "sources    the same",
        "numerics   the same",
        "versions   the same",
        "data set   not compared; give --data",
        "SAME JOB",
    ]
    code, found = call_json("diff", folder / "run", folder / "job.py", "--data")
    assert (code, found["same"], found["data_compared"], found["data"]) == (0, True, True, None)


def test_another_job(call, call_json, folder, other):
    code, out, _ = call("diff", folder / "run", other, "--data")
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == "settings   setting 'steps' is 6 in the run and 7 in your job"
    assert lines[1].startswith("sources    'job.py' differs in 3 lines, the first is line ")
    place = lines.index("--- the run's job.py")
    assert lines[place + 1] == "+++ your job.py"
    assert any(line.startswith("-") and "lr=0.05" in line for line in lines[place:])
    assert any(line.startswith("+") and "lr=0.5" in line for line in lines[place:])
    assert "data set   24 of 24 records differ, the first is record 0: of the same form" in out
    assert lines[-1] == f"ANOTHER JOB: settings, sources, data set of {folder / 'run'} differ"
    code, found = call_json("diff", folder / "run", other)
    assert (code, found["same"], found["data_compared"]) == (1, False, False)
    assert found["settings"] == "setting 'steps' is 6 in the run and 7 in your job"
    assert found["diff"][0] == "--- the run's job.py"


def test_what_cannot_be_read(call, folder, tmp_path):
    assert call("diff", tmp_path, folder / "job.py")[0] == 2
    assert call("diff", folder / "run", tmp_path / "no.py")[0] == 2
    run = shutil.copytree(folder / "run", tmp_path / "run")
    data = (run / "sources").read_bytes()
    (run / "sources").write_bytes(data.replace(b"lr=0.05", b"lr=0.06"))
    (tmp_path / "job.py").write_text(JOB + "\n")
    code, _, err = call("diff", run, tmp_path / "job.py")
    assert (code, "sources: 'job.py': expected" in err) == (2, True)


def test_versions_are_shown_and_no_part_of_the_job(call, folder, tmp_path, monkeypatch):
    import importlib.metadata

    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "9.9" if name == "torch" else version(name)
    )
    code, out, _ = call("diff", folder / "run", folder / "job.py")
    assert code == 0
    assert "versions   the run was recorded with torch " in out
    assert "(here 9.9)" in out


# show


def test_show_names_both_digests(call, folder):
    _, out, _ = call("show", folder / "run")
    transcript = Transcript.open(folder / "run")
    head = transcript.heads[-1].head
    pairs = (line.partition("  ") for line in out.splitlines())
    lines = {name: text.strip() for name, _, text in pairs}
    assert lines["location"] == str(folder / "run")
    assert lines["run"].split()[0] == head.run.hex()
    assert lines["digest"].split()[0] == head.root.hex()
    assert lines["carries"] == "source files and digests of records"
    assert lines["steps"] == "6"


def test_show_tells_a_seed_from_what_is_none():
    from veritrain.cli import show

    seed = (1).to_bytes(32, "big")
    assert show._pairs({"seed": seed, "steps": 1}) == "seed 1, steps 1"
    assert show._pairs({"seed": 1}) == "seed 1 (no seed of 32 bytes)"
    assert show._pairs({"seed": seed + b"x"}) == f"seed {'0' * 16}… (no seed of 32 bytes)"
    assert show._pairs({"seed": seed[-1:]}) == "seed 01 (no seed of 32 bytes)"
    assert show._pairs({"seed": b"\xff" * 32}) == f"seed {'f' * 16}…"
    assert show._pairs({"job.py": bytes(32)}) == f"job.py {'0' * 16}…"


def test_a_renamed_and_edited_job(call_json, folder, tmp_path):
    (tmp_path / "client.py").write_text(JOB.replace("lr=0.05", "lr=0.5"))
    code, found = call_json("diff", folder / "run", tmp_path / "client.py")
    assert (code, found["diff"][:2]) == (1, ["--- the run's job.py", "+++ your client.py"])
    assert "where the run's has 'job.py'" in found["sources"]


def test_show_says_how_far_an_unfinished_run_is(call, call_json, folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    for file in run.rglob("000000000006*"):
        file.unlink()
    assert "steps        4 of 6: unfinished" in call("show", run)[1]
    data = call_json("show", run)[1]
    assert (data["steps"], data["job_steps"]) == (4, 6)


def test_show_lists_and_prints_sources(call, call_json, folder, tmp_path):
    code, out, _ = call("show", folder / "run", "--sources")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[:2]] == [
        ["name", "bytes"],
        ["job.py", str(len(JOB.encode()))],
    ]
    code, data = call_json("show", folder / "run", "--sources")
    assert (code, data["carried"], data["sources"][0]["name"]) == (0, True, "job.py")
    words = [sys.executable, "-m", "veritrain.cli", "show", folder / "run", "--source", "job.py"]
    assert subprocess.run(words, capture_output=True, check=True).stdout == JOB.encode()
    assert call_json("show", folder / "run", "--source", "job.py")[1]["text"] == JOB
    code, _, err = call("show", folder / "run", "--source", "x.py")
    assert (code, "'x.py' is not one of them: job.py" in err) == (2, True)
    run = shutil.copytree(folder / "run", tmp_path / "run")
    (run / "sources").unlink()
    assert "does not carry" in call("show", run, "--sources")[1]
    assert call("show", run, "--source", "job.py")[0] == 2
    assert "carries      digests of records" in call("show", run)[1]


def test_a_source_on_a_terminal_is_escaped(folder, monkeypatch, capsys):
    from veritrain.cli import show

    class Terminal:
        def isatty(self):
            return True

    lines = []
    monkeypatch.setattr(show.sys, "stdout", Terminal())
    monkeypatch.setattr(output, "emit", lambda data, text, **_: lines.extend(text))
    transcript = Transcript.open(folder / "run")
    monkeypatch.setattr(
        Transcript, "sources", lambda self: {"job.py": b"\tx = '\x1b[2J\xff'\nend\n"}
    )
    assert show._show_source(transcript, "job.py", as_json=False) == 0
    assert lines == ["    x = '\\x1b[2J\ufffd'", "end"]


# train


def test_a_secret_run_carries_nothing(call, folder, tmp_path):
    key = ("--key", folder / "trainer.key")
    words = ("train", folder / "job.py", "--out", tmp_path / "run", "--secret", *key)
    assert call(*words)[0] == 0
    run = Transcript.open(tmp_path / "run")
    assert run.carried == ()
    assert run.heads[-1].head.root == Transcript.open(folder / "run").heads[-1].head.root
    assert call("audit", tmp_path / "run", "--job", folder / "job.py")[0] == 0
