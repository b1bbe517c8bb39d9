"""How one begins: `init`, `key show`, `completion`, and the list of commands."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from veritrain.cli import commands
from veritrain.transcript import Signer

# init


def test_the_job_of_init_runs_at_once(call, call_json, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERITRAIN_KEY", str(tmp_path / "key"))
    code, data = call_json("init")
    assert (code, data["path"]) == (0, "job.py")
    for step in data["next"]:
        code, out, err = call(*step.split()[1:])
        assert code == 0, err
    assert out.splitlines()[-1] == "ACCEPTED: 100 of 100 steps recomputed to the same bits"
    text = (tmp_path / "job.py").read_text()
    assert all(line in text for line in data["next"])
    assert call("export", "runs/first", "-o", "model.safetensors")[0] == 0


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("mine.py", "mine.py: exists already; nothing is overwritten"),
        (".", "is a folder; name a file: veritrain init job.py"),
        ("job", "name it job.py"),
        ("job.ipynb", "a job is a Python file"),
        ("no/job.py", "there is no folder no; make it first"),
        ("x" * 300 + ".py", "cannot be written: File name too long"),
    ],
)
def test_init_overwrites_nothing_and_says_what_to_do(call, tmp_path, monkeypatch, file, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("mine")
    code, out, err = call("init", file)
    assert (code, out) == (2, "")
    assert words in err
    assert [item.name for item in tmp_path.iterdir()] == ["mine.py"]
    assert (tmp_path / "mine.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["first.py", 'a"""b.py', "with space.py", "ü\\.py"])
def test_init_writes_python_under_any_name(call, tmp_path, name):
    assert call("init", tmp_path / name)[0] == 0
    compile((tmp_path / name).read_bytes(), name, "exec")


# key show


@pytest.fixture
def signer(tmp_path):
    signer = Signer.generate()
    signer.save(tmp_path / "trainer.key")
    return signer


def public_pem(signer: Signer) -> bytes:
    return signer._key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_every_form_of_a_key_is_shown(call_json, signer, tmp_path):
    (tmp_path / "public.pem").write_bytes(public_pem(signer))
    (tmp_path / "public.hex").write_text(signer.public_key.hex() + "\n")
    (tmp_path / "upper.hex").write_text(signer.public_key.hex().upper())
    for given, kind in [
        (tmp_path / "trainer.key", "private key"),
        (tmp_path / "public.pem", "public key"),
        (tmp_path / "public.hex", "public key"),
        (tmp_path / "upper.hex", "public key"),
        (signer.public_key.hex(), "digits"),
    ]:
        code, data = call_json("key", "show", given)
        assert code == 0
        assert data == {
            "kind": kind,
            "fingerprint": signer.fingerprint,
            "public_key": signer.public_key.hex(),
        }


def test_the_default_key_is_shown_and_never_made(call, signer, tmp_path, monkeypatch):
    monkeypatch.setenv("VERITRAIN_KEY", str(tmp_path / "none.key"))
    code, _, err = call("key", "show")
    assert (code, "`veritrain keygen` makes one" in err) == (2, True)
    assert not (tmp_path / "none.key").exists()
    monkeypatch.setenv("VERITRAIN_KEY", str(tmp_path / "trainer.key"))
    code, out, _ = call("key", "show")
    assert code == 0
    assert out.splitlines() == [
        f"private key  {tmp_path / 'trainer.key'}",
        f"fingerprint  {signer.fingerprint}",
        f"public key   {signer.public_key.hex()}",
    ]


def test_an_encrypted_key_wants_its_password(call, call_json, signer, tmp_path, monkeypatch):
    signer.save(tmp_path / "secret.key", b"correct horse")
    monkeypatch.delenv("VERITRAIN_KEY_PASSWORD", raising=False)
    code, _, err = call("key", "show", tmp_path / "secret.key")
    assert (code, "VERITRAIN_KEY_PASSWORD" in err) == (2, True)
    monkeypatch.setenv("VERITRAIN_KEY_PASSWORD", "correct horse")
    assert call_json("key", "show", tmp_path / "secret.key")[1]["fingerprint"] == signer.fingerprint


def test_what_is_no_key_is_named(call, signer, tmp_path):
    other = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "ec.pem").write_bytes(other.public_key().public_bytes(pem, spki))
    (tmp_path / "text").write_text("hello")
    (tmp_path / "large").write_bytes(bytes(1 << 20))
    (tmp_path / "open.key").write_bytes((tmp_path / "trainer.key").read_bytes())
    (tmp_path / "open.key").chmod(0o644)
    for given, words in [
        (tmp_path / "ec.pem", "expected an Ed25519 key, got another kind"),
        (tmp_path / "text", "text: expected a PEM file with an Ed25519 key, private or public"),
        (tmp_path / "large", "at most 16384 bytes"),
        (tmp_path / "missing", "missing: cannot be read"),
        (tmp_path, "expected a plain file, got a folder"),
        (tmp_path / "open.key", f"chmod 600 {tmp_path}/open.key"),
        ("0" * 63, "cannot be read"),
    ]:
        code, out, err = call("key", "show", given)
        assert (code, out) == (2, "")
        assert words in err


def test_a_key_that_others_may_read_signs_nothing(call, signer, folder, tmp_path):
    key = tmp_path / "trainer.key"
    key.chmod(0o604)
    words = ("train", folder / "job.py", "--out", tmp_path / "run", "--key", key)
    code, _, err = call(*words)
    assert (code, f"type: chmod 600 {key}" in err) == (2, True)
    assert not (tmp_path / "run").exists()
    assert call("keygen", tmp_path / "new.key")[0] == 0
    assert stat.S_IMODE((tmp_path / "new.key").stat().st_mode) == 0o600


# completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_valid_in_its_shell(call, tmp_path, shell):
    code, out, err = call("completion", shell)
    assert (code, err) == (0, "")
    assert "_VERITRAIN_COMPLETE" in out
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; its script was printed and not read")
    script = tmp_path / "script"
    script.write_text(out)
    subprocess.run([shell, "-n", script], check=True)


def test_bash_completes_commands_options_and_choices():
    for words, expected in [
        ("veritrain ex", {"export"}),
        ("veritrain export --fo", {"--force", "--format"}),
        ("veritrain export --format ", {"safetensors", "hf"}),
        ("veritrain key ", {"show"}),
    ]:
        environment = {
            **os.environ,
            "_VERITRAIN_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-m", "veritrain"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert {line.partition(",")[2] for line in done.stdout.split()} == expected
        assert done.stderr == ""


def test_other_shells_are_refused_by_name(call):
    code, _, err = call("completion", "tcsh")
    assert code == 2
    assert "'bash', 'zsh', 'fish'" in err


# the list of commands


def test_every_command_is_listed_once_with_one_line(call):
    lines = call("--help")[1].splitlines()
    for name, command in commands.commands.items():
        (line,) = [text for text in lines if text.startswith(f"  {name} ")]
        assert command.short_help
        assert line.endswith(command.short_help)
        assert line.endswith(".")
        assert "..." not in line
        assert len(line) <= 80
    assert json.dumps(lines).count("Over a network:") == 1
