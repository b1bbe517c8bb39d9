"""What loads when: `--help` answers without PyTorch, the verifier without the trainer's side."""

from __future__ import annotations

import subprocess
import sys

import pytest

from veritrain.cli import commands

HEAVY = {"torch", "numpy", "numba", "rich", "fsspec", "cryptography"}
TRAINERS = {"veritrain.training", "veritrain.adversaries", "veritrain.cli"}
# numba brings scipy along by itself, where it is installed.
OTHERS = {"rich", "click", "sklearn", "matplotlib", "fastapi", "uvicorn", "pandas", "transformers"}
SERVICE_EXTRA = {"fastapi", "uvicorn", "starlette", "pydantic"}
SERVICE = {"fastapi", "uvicorn", "starlette", "pydantic", "veritrain.service"}


def loaded_by(code: str) -> set[str]:
    """Modules that a fresh process has after running `code`."""
    script = (
        "import contextlib, io, sys\nwith contextlib.redirect_stdout(io.StringIO()):\n   "
        f" {code}\nprint(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "banned"),
    [
        ("import veritrain", HEAVY | {"click", "veritrain.job.job"}),
        ("from veritrain.cli import main; main(['--help'])", HEAVY),
        ("from veritrain.cli import main; main(['check', '--help'])", HEAVY),
        ("from veritrain.cli import main; main(['train', '--help'])", HEAVY),
        ("from veritrain.cli import main; main(['audit', '--help'])", HEAVY | {"urllib3"}),
        ("from veritrain.cli import main; main(['serve', '--help'])", HEAVY | SERVICE),
        ("from veritrain.cli import main; main(['referee', '--help'])", HEAVY | SERVICE),
        ("from veritrain.cli import main; main(['dispute', '--help'])", HEAVY | SERVICE),
        ("from veritrain.cli import main; main(['verify-verdict', '--help'])", HEAVY | SERVICE),
        ("import veritrain.service.challenger", {"torch", "numba"} | SERVICE_EXTRA | TRAINERS),
        ("from veritrain.transcript import Transcript", {"torch", "numba"} | TRAINERS | OTHERS),
        ("import veritrain.transcript.slices", {"torch", "numba"} | TRAINERS | OTHERS),
        ("import veritrain.replay.auditor", TRAINERS | OTHERS | SERVICE),
        (
            "import veritrain.transcript.http_store",
            {"torch", "numba", "fsspec"} | TRAINERS | OTHERS | SERVICE,
        ),
        ("import veritrain.service.app", {"torch", "numba", "fsspec"} | TRAINERS),
        ("import veritrain; veritrain.audit", TRAINERS | OTHERS),
    ],
)
def test_loads_no_more_than_it_needs(code, banned):
    assert not loaded_by(code) & banned


@pytest.mark.parametrize("name", [*commands.commands, "key show"])
def test_the_help_of_every_command_loads_nothing_heavy(name):
    words = [*name.split(), "--help"]
    assert not loaded_by(f"from veritrain.cli import main; assert main({words!r}) == 0") & (
        HEAVY | SERVICE | {"urllib3", "veritrain.job.job", "safetensors"}
    )


@pytest.mark.parametrize("words", [["completion", "bash"], ["init", "job.py"]])
def test_what_a_beginner_types_first_answers_at_once(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not loaded_by(f"from veritrain.cli import main; assert main({words!r}) == 0") & HEAVY


def test_key_show_needs_no_torch(folder):
    words = ["key", "show", str(folder / "trainer.key")]
    assert not loaded_by(f"from veritrain.cli import main; assert main({words!r}) == 0") & (
        {"torch", "numpy", "numba", "rich", "urllib3"}
    )


def test_show_reads_a_run_without_torch(folder):
    code = f"from veritrain.cli import main; main(['show', {str(folder / 'run')!r}])"
    loaded = loaded_by(code)
    assert "veritrain.transcript.reader" in loaded
    assert "torch" not in loaded
