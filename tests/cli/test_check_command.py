"""`veritrain check`: what it prints for people and for programs, and its exit status."""

from __future__ import annotations

import inspect
import re

import pytest

import veritrain as vt
from veritrain.cli import check
from veritrain.runtime.progress import duration
from veritrain.training import check_report

REFUSED = """
def model():
    class Mixer(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x).abs()
    return nn.Sequential(nn.Linear(4, 8), *(Mixer() for _ in range(5)), nn.Linear(8, 3))
"""


@pytest.fixture
def job(folder, tmp_path):
    """Makes a job file: that of the tests of all commands with something appended or replaced."""

    def write(more="", old="", new=""):
        path = tmp_path / "job.py"
        path.write_text((folder / "job.py").read_text().replace(old, new) + more)
        return path

    return write


def test_nothing_would_be_refused(call, call_json, job, tmp_path):
    path = job()
    code, out, err = call("check", path)
    assert code == 0
    assert out.splitlines()[-1] == "OK: nothing would be refused"
    assert "numerics   exact: the same bits on every machine" in out
    assert "data set   24 of 24 records looked at" in out
    assert re.search(r"^time       .* for 6 steps of .* \(mean of 2\)", out, re.MULTILINE)
    assert re.search(r"^disk       .*: 4 checkpoints, the first of 2.. kB", out, re.MULTILINE)
    assert re.search(r"^aten.addmm.default +2 ", out, re.MULTILINE)
    assert "a job may print" in err
    code, data = call_json("check", path)
    assert (code, data["ok"], data["operators"], data["problems"]) == (0, True, [], [])
    assert [file.name for file in tmp_path.iterdir()] == ["job.py"]


def test_the_estimate_is_what_the_run_takes(call_json, folder, job):
    """The bias before the batch norm has no gradient: it still moves in the first steps, by a last
    bit, and is stored once less than estimated."""
    disk = call_json("check", job())[1]["estimates"]["disk"]
    size = call_json("show", folder / "run")[1]["bytes"]
    assert disk["total"] == pytest.approx(size, rel=0.03)


def test_refused_operators_are_listed(call, call_json, job):
    path = job(REFUSED)
    code, out, _ = call("check", path)
    assert code == 1
    lines = out.splitlines()
    names = {line.split()[0] for line in lines if line.startswith("aten.") and "write" in line}
    assert (
        lines[0]
        == f"{len(names | {'aten.abs.default', 'aten.sgn.default', 'aten.mul.Tensor'})} operators"
        " would be refused"
    )
    assert re.split(r"  +", lines[2]) == ["operator", "where", "on", "times", "what to do"]
    place = f"1, 2, 3 and 2 more (job.py:{_line_of(path, 'torch.fft.fft')})"
    cells = re.split(r"  +", next(line for line in lines if line.startswith("aten._fft_r2c")))
    assert cells[1:4] == [place, "float32[8, 8]", "5"]
    assert cells[4].startswith("write this part of the model with covered operators")
    assert "backward of 5, backward of 4, backward of 3 and 2 more" in out
    assert "with PyTorch's own kernels for what is refused" in out
    assert lines[-1].startswith("REFUSED: ")
    code, data = call_json("check", path)
    assert (code, data["ok"]) == (1, False)
    found = {
        item["where"] for item in data["operators"] if item["operator"] == "aten._fft_r2c.default"
    }
    assert found == {"1", "2", "3", "4", "5"}


def _line_of(path, text):
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def test_problems_are_listed_with_the_line(call, call_json, job):
    path = job(old="model(batch[0])", new="model(batch[7])")
    code, out, _ = call("check", path)
    assert code == 1
    first = out.splitlines()[0]
    assert first.startswith("step: step 1: loss raised IndexError")
    assert f"{path}, line {_line_of(path, 'batch[7]')}: " in first
    assert "estimates  none: no whole step could be done" in out
    assert out.splitlines()[-1] == "REFUSED: 1 problem"
    code, data = call_json("check", path)
    assert (code, data["estimates"]) == (1, None)
    assert data["problems"] == [{"part": "step", "message": first.removeprefix("step: ")}]


def test_native_numerics_promise_nothing(call, job):
    code, out, _ = call("check", job(REFUSED, "seed=3", "seed=3, numerics='native'"))
    assert code == 0
    assert "numerics   native: nothing is promised across machines" in out


def test_the_shape_of_the_json(call_json, job):
    data = call_json("check", job(REFUSED), "--records", "5")[1]
    assert list(data) == [
        "ok", "numerics", "steps", "operators", "problems", "records_checked", "records",
        "estimates", "shards",
    ]  # fmt: skip
    assert (data["numerics"], data["steps"]) == ("exact", 6)
    assert (data["records_checked"], data["records"]) == (5, 24)
    assert list(data["operators"][0]) == [
        "operator", "where", "line", "arguments", "times", "message", "remedy",
    ]  # fmt: skip
    assert set(data["estimates"]) == {
        "step_seconds", "timed_steps", "record_seconds", "seconds", "peak_bytes", "state_bytes",
        "disk", "operators", "places",
    }  # fmt: skip
    assert set(data["estimates"]["disk"]) == {
        "header", "carried", "leaf", "log", "first_checkpoint", "checkpoint", "checkpoints",
        "total",
    }  # fmt: skip
    assert set(data["estimates"]["places"][0]) == {"name", "calls", "seconds"}


def test_a_file_that_is_no_job_is_an_error(call_json, job):
    code, data = call_json("check", job("raise RuntimeError('at the top')"))
    assert code == data["exit_code"] == 2
    assert "at the top" in data["error"]["message"]


def test_the_default_number_of_records_is_that_of_the_function():
    option = next(option for option in check.command.params if option.name == "records")
    assert option.default == inspect.signature(vt.check).parameters["records"].default


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123456, "12.3 ms"),
        (1.5, "1.5 s"),
        (59.99, "60 s"),
        (61, "1 min 1 s"),
        (3599.7, "1 h 0 min"),
        (90061, "25 h 1 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2.5e9, "2.5 GB")]
)
def test_sizes(count, text):
    assert check_report._size(count) == text
