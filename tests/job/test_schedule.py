"""Rates that machines agree on, also where the C library's last bit does not."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.machines import MACHINES, run
from tests.zoo.small import Images, image_loss, perceptron
from veritrain import Job
from veritrain.errors import JobError
from veritrain.job.schedule import round_rate
from veritrain.job.step import Program


@given(st.floats(-1e300, 1e300))
def test_settling_is_near_and_stays(value):
    rounded = round_rate(value)
    assert round_rate(rounded) == rounded
    assert abs(rounded - value) <= abs(value) * 2.0**-32 + 5e-324


@given(st.floats(1e-9, 10))
def test_rounded_values_have_32_bits(value):
    fraction, _ = math.frexp(round_rate(value))
    assert (fraction * 2**32).is_integer()


def test_tuples_are_rounded_and_other_values_stay():
    tensor = torch.tensor(0.1)
    assert round_rate((0.5, 1)) == (0.5, 1)
    assert round_rate(tensor) is tensor
    assert round_rate(True) is True
    assert math.isinf(round_rate(math.inf))


@pytest.fixture(scope="module")
def on_machines() -> list[dict[str, str]]:
    """Digests of rates, of each machine of the matrix."""
    return [json.loads(run(machine, "tests.rate_digests")) for machine in MACHINES]


@pytest.mark.parametrize(
    ("raw", "rounded"), [("powers", ["rounded powers"]), ("decay", ["sequence", "chain"])]
)
def test_rates_differ_between_machines_and_round_to_one_value(on_machines, raw, rounded):
    """Powers by themselves, and those that composed schedulers compute and remember."""
    shown = {digests[raw] for digests in on_machines}
    assert len(shown) > 1, "the matrix has one C library: nothing is shown"
    for name in rounded:
        assert len({digests[name] for digests in on_machines}) == 1, name


def test_a_schedule_that_follows_a_metric_is_refused():
    job = Job(
        model=perceptron, dataset=Images(), loss=image_loss, batch_size=8, steps=2, seed=0,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
        scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o),
    )  # fmt: skip
    with pytest.raises(JobError, match="ReduceLROnPlateau"):
        Program.build(job)
