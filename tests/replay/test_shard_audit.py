"""Runs of steps in shards: recorded, resumed, audited; a cheat is found at its step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import veritrain as vt
from tests import jobs
from veritrain.adversaries import trainers
from veritrain.job import shards
from veritrain.replay.report import Verdict

KEY = vt.Signer.generate()
JOB = jobs.make(shards=4, accumulate=2, batch_size=16, steps=6)


def train(job: vt.Job, folder: Path, **options: Any) -> bytes:
    return vt.train(job, folder, signer=KEY, progress=False, **options)


def test_a_run_in_shards_is_accepted(tmp_path: Path) -> None:
    train(JOB, tmp_path / "run")
    report = vt.audit(tmp_path / "run", JOB)
    assert report.verdict is Verdict.ACCEPTED, str(report)
    assert report.steps_replayed == 6


@pytest.mark.parametrize("other", [{"shards": 2}, {"shards": 8, "accumulate": 1}, {"shards": 1}])
def test_another_number_of_shards_is_another_job(tmp_path: Path, other: dict[str, int]) -> None:
    train(JOB, tmp_path / "run")
    report = vt.audit(tmp_path / "run", replace(JOB, **other))
    assert report.verdict is Verdict.REJECTED
    assert "shards" in str(report)


def test_a_stopped_run_goes_on_to_the_same_digest(tmp_path: Path) -> None:
    whole = train(JOB, tmp_path / "whole")
    with vt.Recorder(JOB, tmp_path / "run", signer=KEY) as run:
        for step in run:
            step.train()
            if step.number == 3:
                break
    assert train(JOB, tmp_path / "run", resume=True, processes=1) == whole


@pytest.mark.parametrize(
    "cheat",
    [
        lambda job: trainers.alter_weight(job, 3),
        lambda job: trainers.wrong_rate(job, 3, 2.0),
        lambda job: trainers.skip_update(job, 3),
    ],
)
def test_a_cheat_is_rejected_at_its_step(tmp_path: Path, cheat: Any) -> None:
    train(cheat(JOB), tmp_path / "run", rehearse=False)
    report = vt.audit(tmp_path / "run", JOB)
    assert report.verdict is Verdict.REJECTED
    assert report.findings[0].step == 3


def test_a_shard_that_is_left_out_is_found(tmp_path: Path) -> None:
    honest, calls = shards.add_gradients, 0

    def lazy(left: Tensor | None, right: Tensor | None) -> Tensor:
        nonlocal calls
        calls += 1
        return honest(
            left, None if calls > 40 and right is not None and left is not None else right
        )

    with mock.patch.object(shards, "add_gradients", lazy):
        train(JOB, tmp_path / "run", rehearse=False)
    report = vt.audit(tmp_path / "run", JOB)
    assert report.verdict is Verdict.REJECTED
    assert report.findings[0].step == 3
    assert torch.is_grad_enabled()


def unfreeze(model: nn.Module, step: int) -> None:
    model.get_submodule("first").requires_grad_(step > 3)
    model.get_submodule("norm").train(step < 5)


def checkpointed(model: nn.Module, batch: Any) -> Tensor:
    x = batch[0]["x"].requires_grad_()
    return F.cross_entropy(checkpoint(model, x, use_reentrant=True), batch[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"before_step": unfreeze},
        {"loss": checkpointed},
        {"optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)},
        {"scheduler": None, "clip_norm": None, "shards": 3, "accumulate": 1, "batch_size": 9},
    ],
)
def test_runs_of_all_kinds_are_accepted_from_any_checkpoint(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    job = replace(JOB, checkpoint_every=2, **changes)
    train(job, tmp_path / "run")
    assert vt.audit(tmp_path / "run", job).verdict is Verdict.ACCEPTED
    assert vt.audit(tmp_path / "run", job, steps=(4, 5)).findings == ()


COUNTED = """
import itertools
from tests import jobs

CALLS = itertools.count()

def loss(model, batch):
    return jobs.loss(model, batch) * FACTOR

def job():
    return jobs.make(
        loss=loss, shards=SHARDS, accumulate=1, batch_size=12, sources=[JOBS]
    )
"""


@pytest.mark.parametrize(
    ("shards", "factor"),
    [
        (2, "(1 + next(CALLS) % 2)"),  # one process calls it twice in a step, two once each
        (3, "(1 + next(CALLS) % 2)"),
        (4, "(1 + next(CALLS) % 3)"),
        (4, "(1 + next(CALLS) % 4)"),
        (2, "(1 if next(CALLS) else 2)"),  # the first call of a process is another
    ],
)
def test_what_is_remembered_from_shard_to_shard_is_refused_before_the_run(
    shards: int, factor: str, tmp_path: Path
) -> None:
    file = tmp_path / "job.py"
    text = COUNTED.replace("FACTOR", factor).replace("SHARDS", str(shards))
    file.write_text(text.replace("JOBS", repr(jobs.__file__)))
    with pytest.raises(vt.JobError, match="not the same"):
        vt.train(vt.load_job(file), tmp_path / "run", signer=vt.Signer.generate())
    assert not vt.check(vt.load_job(file)).is_ok
