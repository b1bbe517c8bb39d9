"""`veritrain export` and `show --csv`: what they print, what they write, wrong input."""

from __future__ import annotations

import csv
import io
import shutil

import pytest
import torch
from safetensors.torch import load_file

import veritrain as vt
from veritrain.transcript import Signer, Transcript


def test_export_writes_the_last_state(call, call_json, folder, tmp_path):
    out = tmp_path / "model.safetensors"
    code, text, _ = call("export", folder / "run", "-o", out)
    transcript = Transcript.open(folder / "run")
    assert code == 0
    assert f"file    {out}, {out.stat().st_size:,} bytes" in text
    assert f"digest  {transcript.heads[-1].head.root.hex()}" in text
    expected = vt.load_state(folder / "run")
    read = load_file(out)
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected)
    code, _, err = call("export", folder / "run", "-o", out)
    assert code == 2
    assert "--force" in err
    code, data = call_json("export", folder / "run", "-o", out, "--force", "--step", 2)
    assert (code, data["step"], data["tensors"]) == (0, 2, len(expected))
    assert (data["run"], data["bytes"]) == (transcript.header.digest.hex(), out.stat().st_size)
    assert data["digest"] == transcript.heads[1].head.root.hex()


def test_export_says_which_steps_are_stored(call, folder, tmp_path):
    code, _, err = call("export", folder / "run", "-o", tmp_path / "x", "--step", 3)
    assert code == 2
    assert "step 3: its state is not stored; stored are 0, 2, 4, 6" in err


def test_export_runs_the_job_only_if_it_is_given(call, folder, tmp_path):
    code, out, err = call("export", folder / "run", "-o", tmp_path / "a")
    assert (code, "a job may print" in out + err) == (0, False)
    words = ("export", folder / "run", "-o", tmp_path / "b", "--job", folder / "job.py")
    code, out, err = call(*words)
    assert (code, "a job may print" in out, "a job may print" in err) == (0, False, True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    code, _, err = call(*words[:-2], "--format", "hf")
    assert (code, "--job" in err) == (2, True)
    code, _, err = call(*words, "--format", "hf", "--force")
    assert (code, "expected a folder to make" in err) == (2, True)


def test_export_of_a_false_run_is_exit_status_1(call, folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    pack = run / "checkpoints" / "000000000006.safetensors"
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)
    code, out, err = call("export", run, "-o", tmp_path / "x")
    assert (code, out) == (1, "")
    assert "expected" in err
    assert not (tmp_path / "x").exists()
    key = Signer.generate().fingerprint
    code, _, err = call("export", folder / "run", "-o", tmp_path / "x", "--key", key)
    assert (code, f"expected {key}" in err) == (1, True)


def test_losses_as_csv(call, folder):
    code, out, _ = call("show", folder / "run", "--csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    leaves = Transcript.open(folder / "run").leaves[1:]
    assert [(int(row["step"]), float(row["loss"])) for row in rows] == [
        (leaf.step, leaf.loss) for leaf in leaves
    ]
    code, out, err = call("show", folder / "run", "--csv", "--json")
    assert code == 2
    assert "give one of them" in err


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_an_export_into_the_run_is_refused(call, folder, name):
    before = sorted((folder / "run").rglob("*"))
    code, _, _ = call("export", folder / "run", "-o", folder / "run" / name, "--force")
    assert code == 2
    assert sorted((folder / "run").rglob("*")) == before
