"""`veritrain calibrate`: measured thresholds, their use across computers, and wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veritrain.cli import main

JOB = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
import veritrain as vt


def model():
    return nn.Sequential(nn.Linear(512, 64), nn.LayerNorm(64), nn.Linear(64, 2))


def job():
    return vt.Job(
        model=model,
        dataset=lambda: TensorDataset(torch.randn(64, 512), torch.arange(64) % 2),
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        batch_size=16, steps=4, seed=1, numerics="NUMERICS",
    )
"""


@pytest.fixture
def job(tmp_path) -> Path:
    file = tmp_path / "job.py"
    file.write_text(JOB.replace("NUMERICS", "logged"))
    return file


@pytest.mark.timeout(300)
def test_thresholds_are_found_and_all_machines_agree(job, capsys):
    assert main(["calibrate", str(job), "--steps", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["disagreements"] == []
    classes = {item["name"]: item for item in found["classes"]}
    assert set(classes) == {"product", "norm", "sum"}
    product = classes["product"]
    assert product["gap"] > 0.0, "sums in another order differ"
    assert product["threshold"] >= found["safety"] * product["gap"]
    assert found["thresholds"]["product"] == product["threshold"]
    assert "sums in another order" in found["machines"]


def test_gap_is_measured_against_the_samples_of_another_machine(job, tmp_path, capsys):
    samples = str(tmp_path / "samples")
    assert main(["calibrate", str(job), "--write", samples, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["log_bytes"] > 0
    assert main(["calibrate", str(job), "--against", samples, "--reordered", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["disagreement"] == ""
    assert result["gaps"]["product"]["largest"] > 0.0
    assert main(["calibrate", str(job), "--against", samples, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gaps"]["product"]["largest"] == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "ends early"),
        (lambda data: data[:32] + bytes([255]) * 8 + data[40:], "ends early"),
        (lambda data: bytes(32) + data[32:], "of another job"),
        (lambda data: b"", "of another job"),
    ],
)
def test_foreign_samples_are_refused(job, tmp_path, capsys, change, words):
    samples = tmp_path / "samples"
    assert main(["calibrate", str(job), "--write", str(samples), "--steps", "1", "--json"]) == 0
    samples.write_bytes(change(samples.read_bytes()))
    capsys.readouterr()
    code = main(["calibrate", str(job), "--against", str(samples), "--steps", "1", "--json"])
    assert code == 2
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert any(word in message for word in words.split("|")), message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--write", "a", "--against", "b"], "give one of them"),
        (["--measured", "missing.json"], "cannot be read"),
        (["--write", "a", "--thresholds", "{"], "not JSON"),
        (["--write", "a", "--thresholds", '{"nonsense": 1}'], "no class"),
        (["--safety", "0.5"], "safety"),
        (["--against", "missing"], "missing: cannot be read"),
    ],
)
def test_wrong_input_is_named(job, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", str(job), *arguments, "--json"]) == 2
    assert words in json.loads(capsys.readouterr().out)["error"]["message"]


def test_only_logged_numerics_has_thresholds(job, capsys):
    job.write_text(JOB.replace("NUMERICS", "exact"))
    assert main(["calibrate", str(job), "--write", "a", "--json"]) == 2
    assert "no thresholds" in json.loads(capsys.readouterr().out)["error"]["message"]
