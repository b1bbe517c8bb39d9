"""Audits of runs with a rounding log: honest ones on every machine, and trainers who cheat in the log."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import veritrain as vt
from tests import zoo
from veritrain.adversaries import rounders
from veritrain.errors import TranscriptError
from veritrain.numerics.logged.rounding import Recording
from veritrain.transcript import Transcript
from veritrain.verify.report import Verdict

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


CHEATS = {
    "drops the log": (rounders.Dropping, "ends early"),
    "appends as much as it may": (rounders.Huge, "goes on after"),
    "repeats the first step's log": (rounders.Repeating, "rounding log"),
    "swaps two records": (rounders.Swapping, "rounding log"),
    "flips one decision": (rounders.Flipping, "on any machine"),
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
    """One float32 step from one state: each weight moves by a few units in its last place at most."""
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
