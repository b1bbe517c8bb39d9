"""The writers for the tools of others, each with its own library; skipped where that is not
installed."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest
from torch import nn

from veritrain.errors import UsageError
from veritrain.integrations.csv import CsvWriter
from veritrain.integrations.mlflow import MlflowWriter
from veritrain.integrations.scalars import library, scalars
from veritrain.integrations.tensorboard import TensorBoardWriter
from veritrain.integrations.wandb import WandbWriter
from veritrain.training.callbacks import StepReport

NAMES = {"loss", "rate", "seconds/batch", "seconds/step", "seconds/record"}


def report(step: int, loss: float = 0.1, rates: tuple[float, ...] = (0.01,)) -> StepReport:
    return StepReport(
        step=step,
        steps=6,
        loss=loss,
        rates=rates,
        batch_seconds=0.25,
        step_seconds=0.5,
        record_seconds=0.125,
        model=nn.Linear(1, 1),
    )


def test_the_numbers_of_a_step():
    assert scalars(report(1)) == {
        "loss": 0.1, "rate": 0.01, "seconds/batch": 0.25, "seconds/step": 0.5,
        "seconds/record": 0.125,
    }  # fmt: skip
    assert scalars(report(1, rates=(0.5, 0.25)))["rate/1"] == 0.25
    assert set(scalars(report(1, rates=()))) == NAMES - {"rate"}


def test_a_library_that_is_missing_is_named_with_the_remedy(monkeypatch):
    with pytest.raises(UsageError, match=r"pip install 'veritrain\[wandb\]'"):
        library("no_such_library", "wandb")
    for name, make in [
        ("wandb", WandbWriter),
        ("mlflow", MlflowWriter),
        ("torch.utils.tensorboard", lambda: TensorBoardWriter("x")),
    ]:
        monkeypatch.setitem(sys.modules, name, None)  # as Python marks what cannot be imported
        with pytest.raises(UsageError, match="pip install"):
            make()


def test_nothing_foreign_loads_before_a_writer_is_made():
    code = (
        "import sys, veritrain.integrations.csv, veritrain.integrations.wandb\n"
        "import veritrain.integrations.mlflow, veritrain.integrations.tensorboard\n"
        "print({'torch', 'mlflow', 'wandb', 'tensorboard'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# CSV


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_csv_has_a_line_for_each_step_at_once(tmp_path):
    path = tmp_path / "losses.csv"
    writer = CsvWriter(path)
    assert not path.exists()
    writer(report(1, loss=1 / 3))
    expected = "step,loss,rate,seconds/batch,seconds/step,seconds/record".split(",")
    first = ["1", "0.3333333333333333", "0.01", "0.25", "0.5", "0.125"]
    assert lines_of(path) == [expected, first]
    writer(report(2))
    writer.close()
    assert float(lines_of(path)[1][1]) == 1 / 3
    assert [line[0] for line in lines_of(path)] == ["step", "1", "2"]


def test_csv_of_a_resumed_run_goes_on_in_the_same_file(tmp_path):
    path = tmp_path / "losses.csv"
    writer = CsvWriter(path)
    for step in (1, 2, 3, 4):
        writer(report(step, loss=1.0))
    writer.close()
    with path.open("a") as file:
        file.write("5,0.")  # where a crash cut it off
    writer = CsvWriter(path)
    for step in (3, 4, 5):
        writer(report(step, loss=2.0))
    writer.close()
    assert [line[:2] for line in lines_of(path)[1:]] == [
        ["1", "1.0"], ["2", "1.0"], ["3", "2.0"], ["4", "2.0"], ["5", "2.0"],
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe", b"step\n", b'"\0'])
def test_csv_never_replaces_another_file(tmp_path, content):
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"mine\.csv: "):
        CsvWriter(path)
    assert path.read_bytes() == content


def test_csv_of_other_columns_is_refused(tmp_path):
    writer = CsvWriter(tmp_path / "x.csv")
    writer(report(1))
    writer.close()
    with pytest.raises(UsageError, match="has the columns step,loss,rate,.* and this run step"):
        CsvWriter(tmp_path / "x.csv")(report(2, rates=(1.0, 2.0)))
    with pytest.raises(UsageError, match="cannot be gone on with"):
        CsvWriter(tmp_path)


# the libraries of others


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps, loss in (((1, 2, 3), 1.0), ((3, 4), 2.0)):  # interrupted after 3, resumed at 3
        writer = TensorBoardWriter(tmp_path)
        for step in steps:
            writer(report(step, loss=loss))
        writer.close()
    found = EventAccumulator(str(tmp_path)).Reload()
    assert set(found.Tags()["scalars"]) == NAMES
    events = [(event.step, event.value) for event in found.Scalars("loss")]
    assert events == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_mlflow_reads_what_was_logged(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    writer = MlflowWriter(run_name="first")
    for step in (1, 2):
        writer(report(step, loss=step / 4))
    run_id = mlflow.active_run().info.run_id
    writer.close()
    writer.close()
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.25), (2, 0.5)]
    assert set(client.get_run(run_id).data.metrics) == NAMES
    with mlflow.start_run() as own:  # one that the user started is left to them
        writer = MlflowWriter()
        writer(report(1, loss=0.75))
        writer.close()
        assert mlflow.active_run().info.run_id == own.info.run_id
    assert client.get_metric_history(own.info.run_id, "loss")[0].value == 0.75


def test_wandb_keeps_what_was_logged(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    writer = WandbWriter(project="tests", mode="offline", dir=str(tmp_path))
    for step in (1, 2):
        writer(report(step, loss=step / 4))
    run = wandb.run
    assert (run.summary["_step"], run.summary["loss"], run.summary["rate"]) == (2, 0.5, 0.01)
    assert set(run.summary.keys()) >= NAMES
    writer.close()
    assert wandb.run is None
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert file.stat().st_size > 0


def test_a_training_calls_its_writer_after_each_step(tmp_path):
    from tests import jobs
    from veritrain import train
    from veritrain.transcript import Signer, Transcript

    writer = CsvWriter(tmp_path / "losses.csv")
    train(jobs.make(), tmp_path / "run", signer=Signer.generate(), callbacks=[writer])
    writer.close()
    losses = [leaf.loss for leaf in Transcript.open(tmp_path / "run").leaves[1:]]
    assert [float(line[1]) for line in lines_of(tmp_path / "losses.csv")[1:]] == losses
