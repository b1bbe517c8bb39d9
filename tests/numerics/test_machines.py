"""The claim of the product: one digest on every machine of the matrix.

Each machine is a process with other threads and instruction sets (tests/machines.py). The same matrix
under `native` numerics must disagree, or the test would prove nothing.
"""

from __future__ import annotations

import json

import pytest

from tests import zoo
from tests.machines import MACHINES, Machine, run

# The small models run long enough for an error to grow; of the other families a few steps meet every
# operator that they have.
SMALL = list(zoo.small.jobs(1, "exact"))
FAMILIES = [name for name in zoo.jobs(1) if name not in SMALL]
STEPS = {**dict.fromkeys(SMALL, 12), **dict.fromkeys(FAMILIES, 3)}


def trained(machine: Machine, names: list[str]) -> dict[str, list[str]]:
    """model -> one line per step (state, batch, loss), of models with one number of steps."""
    steps = str(STEPS[names[0]])
    return json.loads(run(machine, "tests.train_digests", "exact", steps, *names))


@pytest.fixture(scope="module")
def digests() -> dict[str, dict[str, list[str]]]:
    """machine -> model -> its lines."""
    return {
        machine.name: trained(machine, SMALL) | trained(machine, FAMILIES) for machine in MACHINES
    }


@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", STEPS)
def test_every_step_has_the_same_bits_on_every_machine(digests, model):
    first = digests[MACHINES[0].name][model]
    assert len(first) == STEPS[model] + 1
    assert len(set(first)) == len(first), "a step that changes nothing would prove nothing"
    for machine in MACHINES[1:]:
        for step, (expected, got) in enumerate(
            zip(first, digests[machine.name][model], strict=True)
        ):
            assert got == expected, f"{model} differs at step {step} on {machine.name}"


def test_native_numerics_tells_the_machines_apart():
    results = {
        machine.name: run(machine, "tests.train_digests", "native", "2", "resnet-nesterov")
        for machine in MACHINES
    }
    assert len(set(results.values())) == len(MACHINES), results
