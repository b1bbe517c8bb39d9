"""`veritrain calibrate`: measured thresholds, their use across computers, and wrong input."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests import jobs
from veritrain.cli import main
from veritrain.job.load import load_job
from veritrain.runtime.started import ENVIRONMENT
from veritrain.training import calibration as calibrate

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
    assert result["disagreements"] == []
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


def test_disagreement_does_not_end_the_measurement(job, tmp_path, capsys):
    job.write_text(JOB.replace("NUMERICS", "logged-bf16"))
    samples, nothing = str(tmp_path / "samples"), '{"product": 0, "sum": 0, "norm": 0}'
    given = ["--thresholds", nothing, "--json"]
    assert main(["calibrate", str(job), "--write", samples, *given]) == 0
    capsys.readouterr()
    assert main(["calibrate", str(job), "--against", samples, *given]) == 0
    alike = json.loads(capsys.readouterr().out)
    assert main(["calibrate", str(job), "--against", samples, "--reordered", *given]) == 0
    other = json.loads(capsys.readouterr().out)
    assert alike["disagreements"] == []
    assert re.match(r"step [12]: result \d of aten\.", other["disagreements"][0])
    assert {n: g["samples"] for n, g in other["gaps"].items()} == {
        n: g["samples"] for n, g in alike["gaps"].items()
    }


def gap(largest: float = 0.5, bound: float = 100.0, **rest: object) -> dict[str, object]:
    operator = "aten.mm.default"
    return {"samples": 9, "largest": largest, "share": 0.1, "reach": largest / bound,
            "bound": bound, "operator": operator} | rest  # fmt: skip


@pytest.fixture
def machines(monkeypatch):
    """Machines that found a gap of 0.5 units in products, where 100 are explained."""

    def on_machine(job, settings, what, *arguments):
        if what == "--write":
            return {"log_bytes": 10}
        return {"gaps": {"product": gap()}, "disagreements": []}

    monkeypatch.setattr(calibrate, "_on_machine", on_machine)


def result(file: Path, /, **changes: object) -> dict[str, object]:
    """Of another computer."""
    identity = calibrate._identity(load_job(file), 3)
    return {**identity, "gaps": {"product": gap()}, "disagreements": [], **changes}


def calibrated(job: Path, tmp_path: Path, capsys, there: object) -> tuple[int, dict]:
    file = tmp_path / "there.json"
    file.write_text(json.dumps(there))
    code = main(["calibrate", str(job), "--measured", str(file), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_gap_and_disagreement_of_another_computer_count(job, tmp_path, capsys, machines):
    there = result(job, gaps={"product": gap(2.0)}, disagreements=["step 1: it differs"])
    code, found = calibrated(job, tmp_path, capsys, there)
    assert code == 0
    assert found["thresholds"] == {"product": 16.0}
    assert found["disagreements_before"] == [f"{tmp_path / 'there.json'}: step 1: it differs"]


def test_threshold_is_never_above_what_rounding_errors_explain(job, tmp_path, capsys, machines):
    _, found = calibrated(job, tmp_path, capsys, result(job, gaps={"product": gap(90.0)}))
    assert found["thresholds"] == {"product": 100.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"numerics": "logged-bf16"}, "numerics: expected 'logged', got 'logged-bf16'"),
        ({"job": "00" * 32}, "job: expected"),
        ({"steps": 2}, "steps: expected 3, got 2"),
        ({"steps": None}, "steps: expected 3, got None"),
        ({"gaps": None}, "not a result"),
        ({"disagreements": None}, "not a result"),
        ({"gaps": {"product": {"largest": 1.0}}}, "not a result"),
        ({"gaps": {"nonsense": gap()}}, "'nonsense' is no class"),
        ({"gaps": {"product": gap(100.5)}}, "product: aten.mm.default lies 100 u * S apart"),
        ({"gaps": {"product": gap(float("nan"))}}, "not a result"),
        ({"gaps": {"product": gap(99.0, reach=1.5)}}, "rounding errors explain 100 at most"),
        ({"gaps": {"product": gap(1000.0, bound=2000.0)}}, "rounding errors explain 100 at most"),
    ],
)
def test_foreign_and_impossible_results_are_refused(
    job, tmp_path, capsys, machines, changes, words
):
    code, found = calibrated(job, tmp_path, capsys, result(job, **changes))
    assert code == 2
    assert words in found["error"]["message"]


def test_machines_do_not_look_for_code_where_the_job_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on the path that it sets nor in the folder that it goes to."""
    seen: dict[str, str] = {}

    def run(command: list[str], *, env: dict[str, str], **_: object) -> object:
        seen.update(env)
        return subprocess.CompletedProcess(command, 0, stdout="{}", stderr="")

    monkeypatch.setattr(calibrate.subprocess, "run", run)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    calibrate._on_machine(jobs.make(), {}, "--write", tmp_path / "samples", 1, {})
    assert seen.get("PYTHONPATH") == ENVIRONMENT.get("PYTHONPATH")
    assert seen["PYTHONSAFEPATH"] == "1"
