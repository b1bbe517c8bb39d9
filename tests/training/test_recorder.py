"""A recorded run says what was trained: in any loop, after any interruption, with any workers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import veritrain as vt
from tests import jobs
from veritrain.transcript import Transcript

ROOT = Path(__file__).parents[2]
KEY = vt.Signer.generate()


def train(job: vt.Job, out: Path, **options) -> bytes:
    return vt.train(job, out, signer=KEY, **options)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def drive(job: vt.Job, out: Path, after: Callable[[vt.Recorder, int], object]) -> None:
    """A loop that does something of its own after each step."""
    with vt.Recorder(job, out, signer=KEY) as run:
        for step in run:
            step.train()
            after(run, step.number)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    out = tmp_path_factory.mktemp("straight") / "run"
    return train(jobs.make(), out), out


def test_commits_at_the_start_at_intervals_and_at_the_end(straight: tuple[bytes, Path]) -> None:
    transcript = Transcript.open(straight[1])
    assert transcript.checkpoint_steps == (0, 4, 8, 10)
    assert len(transcript.leaves) == 11
    assert transcript.heads[-1].head.root == straight[0]
    transcript.verify_signatures()
    transcript.verify_chain()
    for step in transcript.checkpoint_steps:
        transcript.verify_checkpoint(step)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_byte(workers: int, straight: tuple[bytes, Path], tmp_path: Path) -> None:
    train(jobs.make(), tmp_path / "run", processes=workers)
    assert contents(tmp_path / "run") == contents(straight[1])


def test_the_users_own_loop(straight: tuple[bytes, Path], tmp_path: Path) -> None:
    numbers, losses = [], []
    with vt.Recorder(jobs.make(), tmp_path / "run", signer=KEY) as run:
        for step in run:
            losses.append(step.train())
            numbers.append(step.number)
            torch.rand(3)  # the caller's own randomness
            run.model.eval()
            with torch.no_grad():
                run.model(torch.zeros(2, 6))
    assert numbers == list(range(1, 11))
    assert losses == [leaf.loss for leaf in Transcript.open(tmp_path / "run").leaves[1:]]
    assert run.digest == straight[0]


@pytest.mark.parametrize("stop", [0, 1, 4, 7, 9, 10])
def test_resume_after_leaving_the_loop(
    stop: int, straight: tuple[bytes, Path], tmp_path: Path
) -> None:
    with vt.Recorder(jobs.make(), tmp_path / "run", signer=KEY) as run:
        for step in run:
            if step.number > stop:
                break
            step.train()
    assert len(Transcript.open(tmp_path / "run").leaves) == stop + 1
    assert train(jobs.make(), tmp_path / "run", resume=True) == straight[0]
    assert vt.audit(tmp_path / "run", jobs.make()).verdict is vt.Verdict.ACCEPTED


def test_resume_of_nothing_begins(straight: tuple[bytes, Path], tmp_path: Path) -> None:
    assert train(jobs.make(), tmp_path / "run", resume=True) == straight[0]
    assert train(jobs.make(), tmp_path / "run", resume=True) == straight[0]  # and of a finished run
    assert contents(tmp_path / "run") == contents(straight[1])


def test_an_error_in_the_loop_commits_what_is_complete(tmp_path: Path) -> None:
    def fail(run: vt.Recorder, number: int) -> None:
        if number == 6:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        drive(jobs.make(), tmp_path / "run", fail)
    assert Transcript.open(tmp_path / "run").checkpoint_steps == (0, 4, 6)


def test_an_error_in_a_step_commits_nothing_false(tmp_path: Path) -> None:
    def failing(model, batch):
        value = jobs.loss(model, batch)  # batch norm has moved its statistics by now
        if model.norm.num_batches_tracked > 12:
            raise RuntimeError("in the step")
        return value

    with pytest.raises(vt.JobError, match="step 7: loss raised RuntimeError: in the step"):
        train(jobs.make(loss=failing), tmp_path / "run")
    assert Transcript.open(tmp_path / "run").checkpoint_steps == (0, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run(bad: float, tmp_path: Path) -> None:
    def loss(model, batch):
        return jobs.loss(model, batch) * (bad if model.norm.num_batches_tracked > 6 else 1)

    with pytest.raises(vt.NumericsError, match="step 4: the loss is (nan|inf)"):
        train(jobs.make(loss=loss), tmp_path / "run")
    assert len(Transcript.open(tmp_path / "run").leaves) == 1


def test_nan_in_the_state_ends_the_run(tmp_path: Path) -> None:
    job = jobs.make(optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1e38), clip_norm=None)
    with pytest.raises(vt.NumericsError, match="step [1-4]: "):
        train(job, tmp_path / "run")


CHANGES = {
    "model/first.weight": lambda run: run.model.first.weight.detach().mul_(2),
    "model/norm.num_batches_tracked": lambda run: run.model.train()(torch.rand(4, 6)),
    "model/second.bias": lambda run: setattr(
        run.model.second, "bias", torch.nn.Parameter(torch.zeros(3))
    ),
    "model/scale": lambda run: run.model.scale.fill_(3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_outside_a_step_is_refused_by_name(name: str, tmp_path: Path) -> None:
    expected = f"{name} was changed outside"
    if name == "model/second.bias":
        expected = r"not a parameter.* was changed outside"

    def change(run: vt.Recorder, number: int) -> None:
        if number == 5:
            CHANGES[name](run)

    with pytest.raises(vt.UsageError, match=expected):
        drive(jobs.make(), tmp_path / "run", change)
    assert Transcript.open(tmp_path / "run").checkpoint_steps == (0, 4)


def test_a_change_of_the_learning_rate_is_refused(tmp_path: Path) -> None:
    optimizers = []

    def build(model):
        optimizers.append(jobs.adamw(model))
        return optimizers[-1]

    def change(run: vt.Recorder, number: int) -> None:
        optimizers[-1].param_groups[0]["lr"] = 1.0

    with pytest.raises(vt.UsageError, match="optimizer/hyper was changed"):
        drive(jobs.make(optimizer=build), tmp_path / "run", change)


def test_a_change_after_the_last_step_is_refused_on_leaving(tmp_path: Path) -> None:
    def change(run: vt.Recorder, number: int) -> None:
        if number == 10:
            run.model.first.weight.detach().mul_(2)

    with pytest.raises(vt.UsageError, match=r"model/first\.weight was changed"):
        drive(jobs.make(), tmp_path / "run", change)


def test_a_buffer_that_appears_in_a_step_is_refused(tmp_path: Path) -> None:
    def loss(model, batch):
        model.register_buffer("late", torch.zeros(1))
        return jobs.loss(model, batch)

    with pytest.raises(vt.JobError, match="model/late appeared in step 1"):
        train(jobs.make(loss=loss), tmp_path / "run")


def test_every_step_is_trained_once_and_in_order(tmp_path: Path) -> None:
    recorder = vt.Recorder(jobs.make(), tmp_path / "run", signer=KEY)
    with pytest.raises(vt.UsageError, match="`with`"):
        _ = recorder.model
    with recorder as run:
        steps = iter(run)
        first = next(steps)
        first.train()
        with pytest.raises(vt.UsageError, match="step 1: expected step 2"):
            first.train()
        second = next(steps)
        with pytest.raises(vt.UsageError, match="step 2 was not trained"):
            next(steps)
        second.train()
    with pytest.raises(vt.UsageError, match="closed"):
        second.train()


def test_refuses_to_mix_runs(straight: tuple[bytes, Path], tmp_path: Path) -> None:
    train(jobs.make(steps=2), tmp_path / "run")
    with pytest.raises(vt.UsageError, match="holds files already"):
        train(jobs.make(steps=2), tmp_path / "run")
    with pytest.raises(vt.UsageError):
        train(jobs.make(steps=3), tmp_path / "run", resume=True)
    with pytest.raises(vt.UsageError):
        vt.train(jobs.make(steps=2), tmp_path / "run", signer=vt.Signer.generate(), resume=True)
    for workers in (-1, 257):
        with pytest.raises(vt.UsageError, match="processes: expected 0 to 256"):
            vt.Recorder(jobs.make(), tmp_path / "other", processes=workers)


def test_default_key_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERITRAIN_KEY", str(tmp_path / "keys/mine.key"))
    vt.train(jobs.make(steps=1), tmp_path / "a")
    vt.train(jobs.make(steps=1), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (tmp_path / "keys/mine.key").stat().st_mode & 0o777 == 0o600


def test_remote_urls(straight: tuple[bytes, Path]) -> None:
    assert vt.train(jobs.make(), "memory://recorder/run", signer=KEY) == straight[0]
    assert vt.audit("memory://recorder/run", jobs.make()).verdict is vt.Verdict.ACCEPTED


SCRIPT = """
import sys, time
from tests import jobs
import veritrain as vt
job = jobs.make(steps=30, checkpoint_every=3)
def pause(report):
    print(report.step, flush=True)
    time.sleep(0.01)
signer = vt.Signer.load(sys.argv[2])
count = int(sys.argv[3])
vt.train(job, sys.argv[1], signer=signer, resume=True, processes=count, callbacks=[pause])
"""


def start(out: Path, key: Path, workers: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(out), str(key), str(workers)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe, start_new_session=True
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_loses_no_step(workers: int, tmp_path: Path) -> None:
    KEY.save(tmp_path / "key")
    process = start(tmp_path / "run", tmp_path / "key", workers)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 7:
            os.killpg(process.pid, signal.SIGINT)  # a terminal signals the workers too
            break
    done = [int(line) for line in process.stdout]
    assert process.wait() != 0
    leaves = Transcript.open(tmp_path / "run").leaves
    assert len(leaves) - 1 in (max([7, *done]), max([7, *done]) + 1)
    assert len(leaves) - 1 < 30
    assert "KeyboardInterrupt" in process.stderr.read()


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.long)])
def test_kill_at_random_moments_and_resume(kills: int, tmp_path: Path) -> None:
    job = jobs.make(steps=30, checkpoint_every=3)
    expected = train(job, tmp_path / "straight")
    KEY.save(tmp_path / "key")
    generator = random.Random(os.getpid())
    for _ in range(kills):
        process = start(tmp_path / "run", tmp_path / "key")
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(generator.uniform(0, 0.25))
        process.kill()
        process.communicate()
    assert train(job, tmp_path / "run", resume=True) == expected
    assert contents(tmp_path / "run") == contents(tmp_path / "straight")


def test_the_old_name_of_processes_still_works(tmp_path):
    with pytest.warns(DeprecationWarning, match="called `processes`"):
        first = vt.train(jobs.make(), tmp_path / "run", workers=1)
    with pytest.warns(DeprecationWarning, match="called `processes`"):
        report = vt.audit(tmp_path / "run", jobs.make(), workers=1)
    assert report.verdict is vt.Verdict.ACCEPTED
    assert first == vt.train(jobs.make(), tmp_path / "again", processes=1)
