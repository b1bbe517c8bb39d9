"""The claim of the product: one digest on every machine of the matrix.

Each machine is a process with other threads and instruction sets (tests/machines.py). The same matrix
under `native` numerics must disagree, or the test would prove nothing.
"""

from __future__ import annotations

import json

import pytest

from tests.machines import MACHINES, run

STEPS = 20


@pytest.fixture(scope="module")
def digests() -> dict[str, dict[str, list[str]]]:
    """machine -> model -> one line per step (state, batch, loss)."""
    return {
        machine.name: json.loads(run(machine, "tests.train_digests", "exact", str(STEPS)))
        for machine in MACHINES
    }


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "model", ["convnet-sgd", "perceptron-adam", "resnet-nesterov", "transformer-adamw"]
)
def test_every_step_has_the_same_bits_on_every_machine(digests, model):
    first = digests[MACHINES[0].name][model]
    assert len(first) == STEPS + 1
    assert len(set(first)) == STEPS + 1, "a step that changes nothing would prove nothing"
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
