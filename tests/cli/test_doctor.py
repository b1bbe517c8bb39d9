"""`veritrain doctor` and `veritrain warmup`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from veritrain.cli import doctor
from veritrain.runtime import kernels
from veritrain.training import selftest


@pytest.fixture
def key(tmp_path, monkeypatch):
    """A place for the default key, where nothing is yet."""
    monkeypatch.setenv("VERITRAIN_KEY", str(tmp_path / "trainer.key"))
    return tmp_path / "trainer.key"


def test_a_well_machine(call, key):
    code, out, _ = call("doctor", "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["faults"]) == (0, True, [])
    assert {"python", "torch", "numba", "PyTorch uses", "kernels", "key"} <= found["facts"].keys()
    assert {answer["family"] for answer in found["selftest"]} == set(selftest.families())
    assert not key.exists()


def test_a_wrong_bit_and_an_open_key_are_told_by_name(call, key, monkeypatch):
    key.write_text("secret")
    key.chmod(0o644)
    wrong = selftest.Answer(
        family="sums", case="sum: negative tie", error="y[0]: expected 0, got 1"
    )
    monkeypatch.setattr(selftest, "run", lambda family: [wrong] if family == "sums" else [])
    code, out, _ = call("doctor")
    assert code == 1
    assert "FAILED" in out
    assert "sum: negative tie: y[0]: expected 0, got 1" in out
    assert f"others may read the key {key}" in out
    assert out.rstrip().endswith("UNWELL: see above")


def test_what_is_slow_is_said_and_is_no_fault(call, key, monkeypatch):
    monkeypatch.setattr(doctor, "_processor_info", lambda: ["flags : sse2 fma"])
    monkeypatch.setattr(selftest, "run", lambda family: [])
    monkeypatch.setattr(kernels, "writable_folder", lambda: None)
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    code, out, _ = call("doctor")
    assert code == 0
    for text in ("slow: no AVX2", "slow: kernels cannot be kept", "slow: OMP_WAIT_POLICY=active"):
        assert text in out


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="a processor that cannot flush")
def test_flushed_subnormals_are_a_fault(call, key, monkeypatch):
    monkeypatch.setattr(selftest, "run", lambda family: [])
    torch.set_flush_denormal(True)
    try:
        code, out, _ = call("doctor")
    finally:
        torch.set_flush_denormal(False)
    assert code == 1
    assert "wrong: subnormal numbers are flushed to zero" in out


def test_after_warmup_with_a_job_its_steps_compile_nothing(tmp_path):
    (tmp_path / "job.py").write_text(
        "import torch, veritrain as vt\nfrom torch.nn import functional as F\ndef job():\n    data"
        " = [(torch.tensor([float(i), 1.0]), torch.tensor(i % 2)) for i in range(8)]\n    return"
        " vt.Job(model=lambda: torch.nn.Linear(2, 2), dataset=data, batch_size=4, steps=2,"
        " seed=1,\n        loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]),\n       "
        " optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kernels")}

    def compiled() -> int:
        words = [sys.executable, "-m", "veritrain.cli", "warmup", "job.py", "--json"]
        done = subprocess.run(
            words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)["compiled"]

    assert compiled() == len(list((tmp_path / "kernels").rglob("*.code"))) > 0
    assert compiled() == 0


def test_warmup_without_a_folder_is_an_error(call, monkeypatch):
    monkeypatch.setattr("veritrain.cli.warmup._families", lambda processes: 0)
    monkeypatch.setattr(kernels, "writable_folder", lambda: None)
    code, _, error = call("warmup")
    assert code == 2
    assert "no folder can be written" in error
