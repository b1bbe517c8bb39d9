"""A job file whose steps take a millisecond, and one finished run of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veritrain.cli import main
from veritrain.transcript import Signer

JOB = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import veritrain as vt

print("a job may print")


def model():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def job():
    x = torch.arange(96, dtype=torch.float32).reshape(24, 4) / 64
    return vt.Job(model=model, dataset=TensorDataset(x, torch.arange(24) % 3), loss=loss,
                  optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
                  batch_size=8, steps=6, seed=3, checkpoint_every=2)
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds job.py, trainer.key and the finished run `run`."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "job.py").write_text(JOB)
    Signer.generate().save(folder / "trainer.key")
    code = main(
        ["train", f"{folder}/job.py", "--out", f"{folder}/run", "--key", f"{folder}/trainer.key"]
    )
    assert code == 0
    return folder


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit status, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        assert "\x1b" not in out + err
        return code, out, err

    return call


@pytest.fixture
def call_json(call: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, Any]]:
    """The same with --json: exit status and the one object on stdout."""

    def call_json(*words: object) -> tuple[int, Any]:
        code, out, _ = call(*words, "--json")
        return code, json.loads(out)

    return call_json
