"""The claim of `logged` numerics: one machine writes its rounding log, all others come to the same
bits.

The same families as under `exact` (tests/zoo), over the same machines. On some computers the
matrix's settings change no bit of a vendor's kernel, so the last machine's sums run in another
order besides, and raw values of each class that is named must differ there, or the test would prove
nothing.
"""

from __future__ import annotations

import json

import pytest

from benchmarks.large import MODELS
from tests import zoo
from tests.machines import MACHINES, run

FAMILIES = list(zoo.jobs(1))
SMALL = ["convnet-sgd", "transformer-adamw", "gru", "gpt2"]  # for the narrow targets
TARGETS = ["logged-bf16", "logged-b26"]
# for the short suite: the writer, and the one whose kernels are least like its own
UNLIKE = [m for m in MACHINES if m.name in (MACHINES[0].name, "sse4-1-thread")]

# classes whose raw values another order of sums changes
UNLIKE_CLASSES = {"convolution", "norm", "product"}


def followed(
    folder, numerics: str, steps: int, names: list[str], machines=MACHINES, timeout: float = 900
) -> dict:
    """machine -> what it printed; the first machine writes, the last one's sums are reordered."""
    roles = ["write", *["follow"] * (len(machines) - 2), "reorder"]
    found = {}
    for machine, role in zip(machines, roles, strict=True):
        arguments = [numerics, str(steps), str(folder), role, *names]
        printed = run(machine, "tests.logged_digests", *arguments, timeout=timeout)
        found[machine.name] = json.loads(printed)
    return found


def require_equal(found: dict, steps: int, unlike: set[str]) -> None:
    """The same bits everywhere, although raw values of the classes `unlike` differ on the last
    machine."""
    machines = [(machine, printed["digests"]) for machine, printed in found.items()]
    _, first = machines[0]
    for machine, models in machines:
        for model, lines in models.items():
            assert lines == first[model], f"{model} differs on {machine}: {lines[-1]}"
            assert len(set(lines)) == steps + 1
    *_, last = found.values()
    assert unlike <= {name for name, gap in last["gaps"].items() if gap > 0.0}, last["gaps"]


@pytest.mark.timeout(900)
def test_all_families_have_the_same_bits_on_machines_unlike_each_other(tmp_path):
    assert len(UNLIKE) == 2
    require_equal(
        followed(tmp_path, "logged", 1, FAMILIES, UNLIKE), 1, UNLIKE_CLASSES | {"attention"}
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("numerics", TARGETS)
def test_other_targets_have_the_same_bits_on_machines_unlike_each_other(tmp_path, numerics):
    require_equal(followed(tmp_path, numerics, 2, SMALL, UNLIKE), 2, UNLIKE_CLASSES)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("numerics", TARGETS)
def test_other_targets_have_the_same_bits_on_every_machine(tmp_path, numerics):
    require_equal(followed(tmp_path, numerics, 5, SMALL, timeout=3600), 5, UNLIKE_CLASSES)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_all_families_keep_the_same_bits(tmp_path):
    require_equal(followed(tmp_path, "logged", 50, FAMILIES, timeout=7200), 50, UNLIKE_CLASSES)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("model", MODELS)
def test_full_size_models_have_the_same_bits_on_every_machine(tmp_path, model):
    require_equal(followed(tmp_path, "logged", 3, [model], timeout=3600), 3, {"product"})
