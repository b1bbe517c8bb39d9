"""Audits of runs with a rounding log: honest ones on every machine, and trainers who cheat in the
log."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import veritrain as vt
from tests import zoo
from veritrain.adversaries import rounders
from veritrain.errors import TranscriptError, UsageError
from veritrain.job.data import Batches
from veritrain.job.state import capture
from veritrain.job.step import Program, run_step
from veritrain.numerics.logged.logged_mode import LoggedMode
from veritrain.numerics.logged.rounding import Following, Recording
from veritrain.replay.report import Verdict
from veritrain.transcript import Transcript

STEPS = 4


def job(numerics: str = "logged", **changes: object) -> vt.Job:
    return replace(
        zoo.jobs(STEPS, numerics)["convnet-sgd"], checkpoint_every=2, **changes
    )  # fmt: skip


@pytest.fixture(scope="module")
def signer() -> vt.Signer:
    return vt.Signer.generate()


@pytest.mark.parametrize("numerics", ["logged", "logged-b26", "logged-bf16"])
def test_honest_run_is_accepted_and_resumes_to_the_same_digest(tmp_path, signer, numerics):
    digest = vt.train(job(numerics), tmp_path / "run", signer=signer)
    report = vt.audit(tmp_path / "run", job(numerics))
    report.require_accepted()
    assert "decisions were logged" in str([check.detail for check in report.checks])
    with vt.Recorder(job(numerics), tmp_path / "again", signer=signer) as run:
        for step in run:
            step.train()
            if step.number == 3:
                break
    assert vt.train(job(numerics), tmp_path / "again", signer=signer, resume=True) == digest


def test_auditor_with_other_threads_follows_the_log(tmp_path, signer):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        vt.train(job("logged-bf16"), tmp_path / "run", signer=signer)
        torch.set_num_threads(1)
        vt.audit(tmp_path / "run", job("logged-bf16")).require_accepted()
    finally:
        torch.set_num_threads(threads)


class Masked(nn.Module):
    """Attention with weights that are asked for and a causal mask of -inf; a temperature without
    axes."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.temperature = nn.Parameter(torch.tensor(0.3))
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        found, _ = self.attention(x, x, x, attn_mask=mask)
        return self.last(found.mean(1)) * self.temperature


def masked_job(numerics: str) -> vt.Job:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(64, 12, 16, generator=random)
    return vt.Job(
        model=Masked, dataset=TensorDataset(x, torch.arange(64) % 3),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
        batch_size=16, steps=STEPS, seed=1, numerics=numerics,
    )  # fmt: skip


@pytest.mark.parametrize("numerics", ["logged", "logged-bf16"])
def test_masks_of_minus_infinity_leave_honest_machines_equal(
    tmp_path, signer, numerics, monkeypatch
):
    """The auditor's sums run the other way round."""
    vt.train(masked_job(numerics), tmp_path / "run", signer=signer)
    monkeypatch.setattr(Following, "reordered", True)
    vt.audit(tmp_path / "run", masked_job(numerics)).require_accepted()


def test_all_of_the_state_is_on_the_grid():
    job = masked_job("logged-bf16")
    program, batches = Program.build(job), Batches(job)
    for step in range(1, STEPS + 1):
        run_step(program, step, batches[step], program.recording())
    state = {name: x for name, x in capture(program).items() if x.dtype == torch.float32}
    assert any(not x.dim() for x in state.values())
    for name, x in state.items():
        if not name.endswith("/step"):  # the optimiser's counters
            assert torch.equal(x, x.bfloat16().float()), name


def test_another_device_than_the_cpu_is_refused():
    with pytest.raises(UsageError, match="on the CPU, not on meta"):
        LoggedMode(torch.device("meta"), torch.float64, None)


CHEATS = {
    "drops the log": (rounders.Dropping, "ends early"),
    "appends as much as it may": (rounders.Huge, "goes on after"),
    "repeats the first step's log": (rounders.Repeating, "rounding log"),
    "swaps two records": (rounders.Swapping, "rounding log"),
    "flips one decision": (rounders.Flipping, "one way and recorded as rounded the other"),
    "logs a decision for a value far from any boundary": (rounders.Inventing, "forged decision"),
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheating_in_the_log_is_never_accepted(tmp_path, signer, name):
    cheat, words = CHEATS[name]
    with rounders.rounding_by(cheat):
        vt.train(job(), tmp_path / "run", signer=signer)
    report = vt.audit(tmp_path / "run", job())
    assert report.verdict is Verdict.REJECTED, report
    assert any(finding.what == "rounding log" for finding in report.findings)
    with pytest.raises(vt.VerificationError, match=words):
        report.require_accepted()


@pytest.mark.parametrize("cheat", [rounders.Steering, rounders.SteeringUp, rounders.Diluting])
def test_steering_is_seen_and_never_accepted(tmp_path, signer, cheat):
    with rounders.rounding_by(cheat):
        vt.train(job("logged-bf16"), tmp_path / "run", signer=signer)
    report = vt.audit(tmp_path / "run", job("logged-bf16"))
    assert report.verdict is Verdict.INCONCLUSIVE
    with pytest.raises(vt.InconclusiveError, match="steered its rounding"):
        report.require_accepted()


def test_steering_whatever_is_possible_is_not_accepted(tmp_path, signer):
    with rounders.rounding_by(rounders.Greedy):
        vt.train(job("logged-bf16"), tmp_path / "run", signer=signer)
    assert vt.audit(tmp_path / "run", job("logged-bf16")).verdict is not Verdict.ACCEPTED


def test_steering_moves_a_weight_by_little_more_than_its_rounding(tmp_path, signer):
    """One float32 step from one state: each weight moves by a few units in its last place at
    most."""
    honest = weights_after(tmp_path / "honest", signer, Recording)
    steered = weights_after(tmp_path / "steered", signer, rounders.Steering)
    for name, weight in honest.items():
        if weight.dtype == torch.float32 and weight.dim():
            unit = torch.finfo(torch.float32).eps * weight.abs().max()
            assert (weight - steered[name]).abs().max() <= 64 * unit, name


def weights_after(run, signer, make) -> dict[str, torch.Tensor]:
    with rounders.rounding_by(make):
        vt.train(job(steps=1), run, signer=signer)
    return Transcript.open(run).load_state(1)


class Silent(Recording):
    """Commits to no log at all."""

    def finish(self):
        return None


def test_run_without_its_logs_is_rejected(tmp_path, signer):
    with rounders.rounding_by(Silent):
        vt.train(job(), tmp_path / "run", signer=signer)
    report = vt.audit(tmp_path / "run", job())
    assert report.verdict is Verdict.REJECTED
    assert "missing: logged numerics have one" in report.findings[0].got


def test_honest_rounder_in_the_cheats_place_is_accepted(tmp_path, signer):
    with rounders.rounding_by(Recording):
        vt.train(job(), tmp_path / "run", signer=signer)
    vt.audit(tmp_path / "run", job()).require_accepted()


def test_log_file_is_part_of_the_run(tmp_path, signer):
    vt.train(job(), tmp_path / "run", signer=signer)
    log = tmp_path / "run" / "rounding" / "000000000003"
    data = log.read_bytes()
    log.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert vt.audit(tmp_path / "run", job()).verdict is Verdict.REJECTED
    log.unlink()
    with pytest.raises(TranscriptError, match="missing"):
        vt.audit(tmp_path / "run", job())
    log.write_bytes(data)
    (log.parent / "000000000000").write_bytes(b"")
    with pytest.raises(TranscriptError, match="no leaf names this file"):
        vt.audit(tmp_path / "run", job())


def test_thresholds_are_covered_by_the_job(tmp_path, signer):
    vt.train(job(thresholds={"norm": 8.0}), tmp_path / "run", signer=signer)
    vt.audit(tmp_path / "run", job(thresholds={"norm": 8.0})).require_accepted()
    report = vt.audit(tmp_path / "run", job(thresholds={"norm": 9.0}))
    assert report.verdict is Verdict.REJECTED
