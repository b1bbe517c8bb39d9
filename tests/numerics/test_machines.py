"""The claim of the product: one digest on every machine of the matrix.

Each machine is a process with other threads and instruction sets (tests/machines.py). The same
matrix under `native` numerics must disagree, or the test would prove nothing.
"""

from __future__ import annotations

import json

import pytest

from tests import zoo
from tests.machines import MACHINES, run

# The small models run long enough for an error to grow; of the other families a few steps meet
# every operator that they have.
SMALL = list(zoo.small.jobs(1, "exact"))
FAMILIES = [name for name in zoo.jobs(1) if name not in SMALL]
STEPS = {**dict.fromkeys(SMALL, 12), **dict.fromkeys(FAMILIES, 3)}


APART = "resnet-nesterov"  # by PyTorch's own kernels

Lines = dict[str, list[str]]  # of each model: one for its first state, and one for each step


@pytest.fixture(scope="module")
def digests() -> dict[str, dict[str, Lines]]:
    """machine -> numerics -> lines; one process of each machine trains everything."""
    plan = json.dumps({"exact": STEPS, "native": {APART: 2}})
    return {
        machine.name: json.loads(run(machine, "tests.train_digests", plan)) for machine in MACHINES
    }


@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", STEPS)
def test_every_step_has_the_same_bits_on_every_machine(digests, model):
    first = digests[MACHINES[0].name]["exact"][model]
    assert len(first) == STEPS[model] + 1
    assert len(set(first)) == len(first), "a step that changes nothing would prove nothing"
    for machine in MACHINES[1:]:
        lines = digests[machine.name]["exact"][model]
        for step, (expected, got) in enumerate(zip(first, lines, strict=True)):
            assert got == expected, f"{model} differs at step {step} on {machine.name}"


def test_native_numerics_tells_the_machines_apart(digests):
    results = {name: tuple(found["native"][APART]) for name, found in digests.items()}
    assert len(set(results.values())) == len(MACHINES), results
