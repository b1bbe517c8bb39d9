"""ResNet-50 and GPT-2 124M at full size: the same bits on every machine of the matrix."""

from __future__ import annotations

import json

import pytest

from benchmarks.large import MODELS
from tests.machines import MACHINES, run

pytestmark = pytest.mark.long

STEPS = "2"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("numerics", ["exact", "exact14"])
@pytest.mark.parametrize("model", MODELS)
def test_full_size_models_have_the_same_bits_on_every_machine(model, numerics):
    found = {
        machine.name: json.loads(
            run(machine, "tests.full_size_digests", numerics, STEPS, model, timeout=1800)
        )
        for machine in MACHINES
    }
    first = found[MACHINES[0].name]
    assert len(set(first)) == int(STEPS) + 1
    assert all(digests == first for digests in found.values()), found
