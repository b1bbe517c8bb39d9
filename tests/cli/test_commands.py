"""Each command on a small run: what it prints for people, for programs, and its exit status."""

from __future__ import annotations

import math
import re
import shutil
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritrain.cli import output
from veritrain.cli.plot import plot
from veritrain.encoding import decode, encode
from veritrain.transcript import Signer, Transcript


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder / "run", tmp_path / "run")


def rewrite(file, change):
    value = decode(file.read_bytes(), where="test")
    change(value)
    file.write_bytes(encode(value))


# keygen


def test_keygen_makes_a_private_file_once(call, call_json, tmp_path):
    path = tmp_path / "new" / "trainer.key"
    code, data = call_json("keygen", path)
    assert code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    signer = Signer.load(path)
    assert data["fingerprint"] == signer.fingerprint
    assert data["public_key"] == signer.public_key.hex()
    code, _, err = call("keygen", path)
    assert code == 2
    assert "exists already" in err
    assert Signer.load(path).fingerprint == signer.fingerprint


def test_keygen_without_a_path_uses_the_default_place(call, tmp_path, monkeypatch):
    monkeypatch.setenv("VERITRAIN_KEY", str(tmp_path / "default.key"))
    assert call("keygen")[0] == 0
    assert (tmp_path / "default.key").exists()


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_bad_usage(call, folder, tmp_path, device):
    job = folder / "job.py"
    train = ("train", job, "--out", tmp_path / "run", "--key", folder / "trainer.key")
    for command in (train, ("audit", folder / "run", "--job", job)):
        code, _, err = call(*command, "--device", device)
        assert code == 2
        assert f"device '{device}'" in err
    assert not (tmp_path / "run").exists()


def test_an_encrypted_key_needs_its_password(call, folder, tmp_path, monkeypatch):
    key = tmp_path / "secret.key"
    train = ("train", folder / "job.py", "--out", tmp_path / "run", "--key", key)
    monkeypatch.setenv("VERITRAIN_KEY_PASSWORD", "correct horse")
    assert call("keygen", key, "--password")[0] == 0
    assert b"ENCRYPTED" in key.read_bytes()
    monkeypatch.setenv("VERITRAIN_KEY_PASSWORD", "wrong")
    assert "password is wrong" in call(*train)[2]
    monkeypatch.delenv("VERITRAIN_KEY_PASSWORD")
    code, _, err = call(*train)
    assert code == 2
    assert "set VERITRAIN_KEY_PASSWORD" in err
    monkeypatch.setenv("VERITRAIN_KEY_PASSWORD", "correct horse")
    assert call(*train)[0] == 0
    # a password in the environment does not disturb a key that has none
    again = ("train", folder / "job.py", "--out", folder / "run", "--resume")
    assert call(*again, "--key", folder / "trainer.key")[0] == 0


# train


def test_train_prints_the_digest(call, folder, tmp_path):
    key = ("--key", folder / "trainer.key")
    code, out, _ = call("train", folder / "job.py", "--out", tmp_path / "run", *key)
    digest = Transcript.open(tmp_path / "run").heads[-1].head.root.hex()
    assert code == 0
    assert f"digest  {digest}" in out
    assert "a job may print" not in out


def test_train_does_not_overwrite_a_run(call, folder):
    key = ("--key", folder / "trainer.key")
    code, _, err = call("train", folder / "job.py", "--out", folder / "run", *key)
    assert code == 2
    assert "resume" in err


def test_train_with_processes_gives_the_same_digest(call_json, folder, tmp_path):
    words = ("train", folder / "job.py", "--out", tmp_path / "run", "--processes", 1)
    code, data = call_json(*words, "--key", folder / "trainer.key")
    assert code == 0
    assert data["digest"] == Transcript.open(folder / "run").heads[-1].head.root.hex()


def test_the_old_name_of_processes_is_understood_and_the_new_one_said(call, folder):
    words = ("audit", folder / "run", "--job", folder / "job.py", "--sample", "1")
    code, out, err = call(*words, "--workers", 2)
    assert (code, out.splitlines()[-1]) == (0, "ACCEPTED: 2 of 6 steps recomputed to the same bits")
    assert err.count("veritrain: --workers has a new name: --processes\n") == 1
    code, _, err = call(*words, "--workers", 0)
    assert code == 2
    assert "--workers" in err


# audit


def test_accepted(call, call_json, folder):
    code, out, _ = call("audit", folder / "run", "--job", folder / "job.py")
    assert code == 0
    assert out.splitlines()[-1] == "ACCEPTED: 6 of 6 steps recomputed to the same bits"
    assert re.findall(r"^(\d)  .* ok ", out, re.MULTILINE) == list("123456789")
    code, data = call_json("audit", folder / "run", "--job", folder / "job.py")
    assert (code, data["verdict"]) == (0, "accepted")


@pytest.mark.parametrize(
    ("options", "steps"),
    [(["--steps", "3:4"], 2), (["--sample", "2"], 4), (["--processes", "2"], 6)],
)
def test_parts_and_processes(call_json, folder, options, steps):
    code, data = call_json("audit", folder / "run", "--job", folder / "job.py", *options)
    assert (code, data["steps_replayed"]) == (0, steps)


def test_steps_outside_of_the_run(call, folder):
    code, _, err = call("audit", folder / "run", "--job", folder / "job.py", "--steps", "3:9")
    assert code == 2
    assert "6 steps" in err


def test_rejected_names_step_expected_and_got(call, folder, copy):
    rewrite(copy / "leaves/000000000004", lambda leaves: leaves[0].update(loss=0.25))
    code, out, _ = call("audit", copy, "--job", folder / "job.py")
    assert code == 1
    verdict = out.splitlines()[-1]
    assert re.fullmatch(
        r"REJECTED at step 4: segment: expected [0-9a-f]{16}…, got [0-9a-f]{16}…", verdict
    )
    assert "3  chain          FAILED" in out
    assert "8  replay         --" in out


def test_another_job_is_rejected(call_json, folder, tmp_path):
    other = tmp_path / "job.py"
    other.write_text((folder / "job.py").read_text().replace("lr=0.05", "lr=0.06"))
    code, data = call_json("audit", folder / "run", "--job", other)
    assert (code, data["verdict"]) == (1, "rejected")
    assert "job.py" in data["reason"]


def test_an_unfinished_run_is_inconclusive(call, folder, copy):
    for file in copy.rglob("000000000006*"):
        file.unlink()
    code, out, _ = call("audit", copy, "--job", folder / "job.py")
    assert code == 3
    assert out.splitlines()[-1].startswith("INCONCLUSIVE: the run is unfinished")


def test_unreadable_input_is_not_a_verdict(call_json, folder, copy):
    (copy / "leaves/000000000004").write_bytes(b"\x80\x04.")
    code, data = call_json("audit", copy, "--job", folder / "job.py")
    assert code == data["exit_code"] == 2
    assert data["error"]["kind"] == "TranscriptError"
    assert data["error"]["message"].startswith("leaves/000000000004: ")


def test_trusted_keys(call, call_json, folder):
    signer = Signer.load(folder / "trainer.key")
    audit = ("audit", folder / "run", "--job", folder / "job.py", "--key")
    assert call(*audit, signer.public_key.hex())[0] == 0
    assert call(*audit, signer.fingerprint.upper())[0] == 0
    code, out, _ = call(*audit, Signer.generate().public_key.hex())
    assert (code, out.splitlines()[-1][:8]) == (1, "REJECTED")
    other = Signer.generate()
    for name in (other.public_key.hex(), other.fingerprint):
        code, data = call_json(*audit, name)
        assert (code, data["verdict"]) == (1, "rejected")
        assert f"expected {other.fingerprint}" in data["reason"]
    assert call(*audit, "")[0] == 2
    assert call(*audit, signer.fingerprint[:-1])[0] == 2


# show


def test_show(call, call_json, folder):
    code, out, _ = call("show", folder / "run")
    transcript = Transcript.open(folder / "run")
    assert code == 0
    assert transcript.heads[-1].head.root.hex() in out
    assert "checkpoints  4 (0, 2, 4, 6)" in out
    code, data = call_json("show", folder / "run")
    assert code == 0
    assert data["losses"] == [leaf.loss for leaf in transcript.leaves[1:]]
    assert data["bytes"] == sum(
        file.stat().st_size for file in (folder / "run").rglob("*") if file.is_file()
    )
    assert data["job"]["config"]["seed"] == "03".rjust(64, "0")


def test_show_escapes_what_a_run_says(call, call_json, copy):
    def poison(header):
        header["numerics"] = "\x1b[2Jexact\r\u202e"
        header["job"] = {"config": {"\x1b]0;x\x07": math.inf}, "sources": 7}

    rewrite(copy / "header", poison)
    code, out, _ = call("show", copy)  # the fixture looks for control characters
    assert code == 0
    assert "\\x1b[2Jexact\\r\\u202e" in out
    assert call_json("show", copy)[1]["job"]["config"] == {"\x1b]0;x\x07": "inf"}


def test_show_executes_nothing(call, folder, copy):
    code, out, _ = call("show", copy)
    assert code == 0
    assert "ACCEPTED" not in out


# text


@given(st.text())
def test_escaped_text_is_printable(text):
    assert output.escape(text).isprintable()


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=1, max_size=200), st.integers(1, 30), st.integers(2, 8))
def test_a_plot_has_its_size_for_any_finite_values(values, width, height):
    lines = plot(values, width, height)
    curves = [line.partition("│")[2] for line in lines]
    assert len(lines) == height
    assert max(map(len, curves)) <= min(width, len(values))
    assert len(curves[-1]) == min(width, len(values))  # every column reaches the ground


def test_a_plot_shows_the_course():
    curve = [line.partition("│")[2] for line in plot([3.0, 2.0, 1.0], height=2)]
    assert curve == ["█▁", "██▁"]
