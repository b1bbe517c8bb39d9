"""Steering that audits accept: it is found, and what it does to a weight is bounded."""

from __future__ import annotations

from dataclasses import replace

import torch

import veritrain as vt
from tests import zoo
from veritrain.adversaries import rounders
from veritrain.job.data import Batches
from veritrain.job.step import Program, run_step
from veritrain.numerics.logged.rounding import Recording, Target
from veritrain.numerics.logged.thresholds import Thresholds

WEIGHT = "4.weight"  # of a convolution; no other result has as many entries
SIZE = 4608
STEP = 2.0**-7  # of bfloat16's grid, relative to a value at most
RATE = 4.0  # so large that weights do not swallow what gradients move


def job(**changes: object) -> vt.Job:
    return replace(
        zoo.jobs(4, "logged-bf16")["convnet-sgd"], checkpoint_every=2, scheduler=None, **changes
    )


def fast_job() -> vt.Job:
    return job(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=RATE))


def concentrating(target: Target, thresholds: Thresholds) -> rounders.Concentrating:
    return rounders.Concentrating(target, thresholds, size=SIZE)


def stepped(make: rounders.MakeRecording) -> tuple[dict[str, torch.nn.Parameter], Recording]:
    """Parameters after one step that `make` rounds."""
    program = Program.build(fast_job())
    plain = program.recording()
    assert plain is not None
    rounding = make(plain.target, plain.thresholds)
    run_step(program, 1, Batches(fast_job())[1], rounding)
    return dict(program.model.named_parameters()), rounding


def test_modest_steering_of_one_parameter_is_accepted(tmp_path):
    made: list[rounders.Concentrating] = []

    def make(target: Target, thresholds: Thresholds) -> rounders.Concentrating:
        made.append(concentrating(target, thresholds))
        return made[-1]

    with rounders.rounding_by(make):
        vt.train(job(), tmp_path / "run", signer=vt.Signer.generate(), rehearse=False)
    steered = sum(rounding.steered for rounding in made)
    assert steered > 80
    report = vt.audit(tmp_path / "run", job())
    report.require_accepted()
    assert f"{steered} of them not this machine's" in str([c.detail for c in report.checks])


def test_it_moves_the_weight_by_no_more_than_stated():
    honest, _ = stepped(Recording)
    steered, rounding = stepped(concentrating)
    assert isinstance(rounding, rounders.Concentrating)
    logged = rounding.tally["convolution"].logged
    assert logged / 16 < rounding.steered <= logged / 8
    others = [name for name in honest if name != WEIGHT]
    weight, moved = honest[WEIGHT], (steered[WEIGHT] - honest[WEIGHT]).detach()
    assert weight.grad is not None
    most = RATE * weight.grad.abs().max() + weight.detach().abs().max()
    assert 0.0 < float(moved.norm()) <= float(rounding.steered**0.5 * STEP * most)
    assert int((moved != 0).sum()) <= rounding.steered
    for name in others:
        if honest[name].numel() != SIZE:
            assert torch.equal(honest[name], steered[name]), name
