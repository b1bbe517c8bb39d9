"""Files that people name: what is no plain file, is too large, or is a secret that others may
read."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests import forks
from veritrain.errors import UsageError
from veritrain.transcript import Signer
from veritrain.transcript.download import read_token
from veritrain.transcript.given import open_given, read_given, require_given

TOKEN = "0123456789abcdef" * 2


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_plain_file_is_read_also_by_a_link(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_given(tmp_path / "file", 5) == b"12345"
    assert read_given(str(tmp_path / "link"), 5) == b"12345"
    with open_given(tmp_path / "file") as file:
        assert file.read(2) == b"12"
    with pytest.raises(UsageError, match="file: expected at most 4 bytes, got more"):
        read_given(tmp_path / "file", 4)


def test_what_is_no_plain_file_is_refused_at_once(tmp_path, pipe, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket is a short one
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name, words in {
            "pipe": "pipe: expected a plain file, got a pipe",
            ".": "expected a plain file, got a folder",
            "/dev/zero": "/dev/zero: expected a plain file, got a device",
            "socket": "socket: cannot be read: No such device or address",
            "nothing": "nothing: cannot be read: No such file or directory",
            "nothing/at/all": "cannot be read: No such file or directory",
            "a\0b": "cannot be read: embedded null byte",
            "x" * 300: "cannot be read: File name too long",
        }.items():
            for use in (open_given, require_given, lambda path: read_given(path, 9)):
                with pytest.raises(UsageError, match=words):
                    use(name)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777, 0o620, 0o601])
def test_a_secret_that_others_may_use_is_refused_with_the_remedy(tmp_path, mode):
    file = tmp_path / "my token"
    file.write_text(TOKEN)
    file.chmod(mode)
    with pytest.raises(UsageError, match=f"mode {mode:04o}") as caught:
        read_token(file)
    command = str(caught.value).partition("type: ")[2]
    subprocess.run(["sh", "-c", command], check=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_token(file) == TOKEN


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to someone else")
def test_a_secret_of_another_user_is_theirs_to_guard(tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o640)
    os.chown(file, 12345, -1)
    assert read_token(file) == TOKEN


def test_keys_and_tokens_are_such_files(tmp_path, pipe):
    key = tmp_path / "trainer.key"
    Signer.generate().save(key)
    assert Signer.load(key).fingerprint
    key.chmod(0o644)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o644)
    for load, file in ((Signer.load, key), (read_token, token)):
        with pytest.raises(UsageError, match=f"chmod 600 {file}"):
            load(file)
        for other in (pipe, Path("/dev/zero"), tmp_path):
            with pytest.raises(UsageError, match="expected a plain file"):
                load(other)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "{job}", "--out", "x", "--key", "pipe"],
        ["show", "http://127.0.0.1:1", "--token-file", "pipe"],
        ["show", "https://127.0.0.1:1", "--ca", "pipe"],
        ["serve", "run", "--token-file", "pipe"],
        ["serve", "run", "--certificate", "pipe", "--certificate-key", "pipe"],
        ["serve", "run", "--certificate", "{job}", "--certificate-key", "pipe"],
        ["verify-verdict", "pipe"],
        ["verify-verdict", "--equivocation", "pipe", "pipe", "--key", "0" * 64],
        ["calibrate", "{job}", "--against", "pipe"],
        ["calibrate", "{job}", "--measured", "pipe"],
        ["check", "pipe"],
        ["train", "pipe", "--out", "x"],
        ["audit", "pipe", "--job", "{job}"],
        ["key", "show", "pipe"],
    ],
)
def test_no_command_waits_for_a_pipe(tmp_path, pipe, words):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "header").write_bytes(b"")
    job = tmp_path / "job.py"
    job.write_text(JOB)
    given = [word.format(job=job) for word in words]
    command = "import sys; from veritrain.cli import main; sys.exit(main(sys.argv[1:]))"
    done = forks.run(["-c", command, *given], cwd=tmp_path, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "pipe" in done.stderr, done.stderr


JOB = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
import veritrain as vt


def job():
    return vt.Job(
        model=lambda: nn.Linear(2, 2),
        dataset=TensorDataset(torch.zeros(4, 2)),
        loss=lambda model, batch: model(batch[0]).sum(),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        batch_size=2, steps=1, seed=1, numerics="logged",
    )
"""


def test_a_source_that_is_a_pipe_is_refused_at_once(tmp_path, pipe):
    from veritrain.errors import JobError
    from veritrain.job.load import load_job
    from veritrain.job.sources import commitment

    job = tmp_path / "job.py"
    job.write_text(JOB.replace("seed=1", "seed=1, sources=['pipe']"))
    with pytest.raises(JobError, match="pipe: expected a file, got something else"):
        commitment(load_job(job))
