"""Rates that machines agree on, also where the C library's last bit does not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.machines import MACHINES, run
from tests.zoo.small import Images, image_loss, perceptron
from veritrain import Job
from veritrain.errors import JobError
from veritrain.job.schedule import settle
from veritrain.job.step import Program


@given(st.floats(-1e300, 1e300))
def test_settling_is_near_and_stays(value):
    settled = settle(value)
    assert settle(settled) == settled
    assert abs(settled - value) <= abs(value) * 2.0**-32 + 5e-324


@given(st.floats(1e-9, 10))
def test_settled_values_have_32_bits(value):
    fraction, _ = math.frexp(settle(value))
    assert (fraction * 2**32).is_integer()


def test_tuples_settle_and_other_values_stay():
    tensor = torch.tensor(0.1)
    assert settle((0.5, 1)) == (0.5, 1)
    assert settle(tensor) is tensor
    assert settle(True) is True
    assert math.isinf(settle(math.inf))


POWERS = """
import sys
from veritrain.job.schedule import settle
raw = [(0.5 + i / 400001) ** (i % 1000) for i in range(1, 100000)]
print(hash(tuple(raw)), hash(tuple(map(settle, raw))))
"""


def test_powers_differ_between_machines_and_settle_to_one_value(tmp_path, monkeypatch):
    (tmp_path / "powers_on_a_machine.py").write_text(POWERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    results = [run(machine, "powers_on_a_machine").split() for machine in MACHINES]
    assert len({raw for raw, _ in results}) > 1, "the matrix has one C library: nothing is shown"
    assert len({settled for _, settled in results}) == 1


COMPOSED = """
import torch, warnings
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LinearLR, SequentialLR
from veritrain.job.schedule import settle_records, settled_rates
warnings.simplefilter("ignore")
def decay(optimizer):
    return LambdaLR(optimizer, lambda t: 0.97 ** (t * 0.153))
def sequence(optimizer):
    return SequentialLR(optimizer, [LinearLR(optimizer), decay(optimizer)], [5])
def chain(optimizer):
    return ChainedScheduler([decay(optimizer), LinearLR(optimizer)], optimizer)
for make in (sequence, chain):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with settled_rates(optimizer):
        scheduler = make(optimizer)
    settle_records(scheduler)
    seen = [0.97 ** (t * 0.153) for t in range(300)]
    for _ in range(300):
        with settled_rates(optimizer):
            scheduler.step()
        settle_records(scheduler)
        seen.append(str(scheduler.state_dict()))
    print(hash(tuple(seen[:300])), str(hash(tuple(map(str, seen[300:])))))
"""


def test_composed_schedulers_remember_settled_rates(tmp_path, monkeypatch):
    (tmp_path / "schedules_on_a_machine.py").write_text(COMPOSED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    results = [run(machine, "schedules_on_a_machine").split() for machine in MACHINES]
    assert len({raw for raw, *_ in results}) > 1, "the matrix has one C library: nothing is shown"
    assert len({tuple(settled[1::2]) for settled in results}) == 1


def test_a_schedule_that_follows_a_metric_is_refused():
    job = Job(
        model=perceptron, dataset=Images(), loss=image_loss, batch_size=8, steps=2, seed=0,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
        scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o),
    )  # fmt: skip
    with pytest.raises(JobError, match="ReduceLROnPlateau"):
        Program.build(job)
