"""What a profile promises: keyed random numbers, the caller's generators untouched, IEEE arithmetic."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
import torch

from veritrain import numerics
from veritrain.errors import NumericsError, UsageError

EXACT = numerics.resolve("exact")
NATIVE = numerics.resolve("native")


def draws() -> tuple[object, ...]:
    return (
        random.random(), float(np.random.rand()), torch.rand(3).tolist(), torch.randn(2).tolist(),
        torch.randperm(5).tolist(), torch.empty(4).bernoulli_(0.5).tolist(),
    )  # fmt: skip


@pytest.mark.parametrize("profile", [EXACT, NATIVE], ids=lambda p: p.name)
def test_random_numbers_are_a_function_of_seed_purpose_and_step(profile):
    seen = set()
    for seed in (0, 2**256 - 1):
        for purpose in ("step", "init"):
            for step in (0, 1):
                with profile.active(seed=seed, purpose=purpose, step=step):
                    first = draws()
                with profile.active(seed=seed, purpose=purpose, step=step):
                    assert draws() == first
                seen.add(repr(first))
    assert len(seen) == 8


@pytest.mark.parametrize("profile", [EXACT, NATIVE], ids=lambda p: p.name)
def test_rekeying_equals_entering_anew(profile):
    with profile.active(seed=1, purpose="a", step=1) as scope:
        draws()
        scope.rekey(seed=2, purpose="b", step=3)
        rekeyed = draws()
    with profile.active(seed=2, purpose="b", step=3):
        assert draws() == rekeyed


@pytest.mark.parametrize("profile", [EXACT, NATIVE], ids=lambda p: p.name)
def test_the_callers_generators_are_as_before_also_after_an_error(profile):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = draws()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with contextlib.suppress(ZeroDivisionError), profile.active(seed=5, purpose="x", step=0):
        draws()
        raise ZeroDivisionError
    assert draws() == expected


def test_an_unknown_profile_is_named():
    with pytest.raises(UsageError, match="'fast'.*exact"):
        numerics.resolve("fast")


def test_flushed_subnormals_are_refused():
    if not torch.set_flush_denormal(True):
        pytest.fail("this processor cannot flush subnormals, so that the check cannot be tested")
    try:
        with (
            pytest.raises(NumericsError, match="subnormal"),
            EXACT.active(seed=0, purpose="x", step=0),
        ):
            pass
    finally:
        torch.set_flush_denormal(False)
