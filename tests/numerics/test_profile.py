"""What a profile promises: keyed random numbers, the caller's generators untouched, IEEE
arithmetic."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch.backends import mha

from tests.machines import MACHINES, run
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


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_gets_the_same_dropout_again(reentrant):
    """Recomputing with another mask would train, and replay, a wrong gradient."""
    weight = torch.ones(64, requires_grad=True)

    def dropped(x):
        return torch.nn.functional.dropout(x * weight, 0.5)

    def gradient(function):
        weight.grad = None
        with EXACT.active(seed=3, purpose="step", step=1):
            torch.rand(2)  # the block is not the first to draw
            out = function(torch.ones(64, requires_grad=True))
            torch.rand(2)
            (out * out).sum().backward()
            after = torch.rand(3)
        return weight.grad.clone(), after

    plain, plain_after = gradient(dropped)
    saved, saved_after = gradient(
        lambda x: torch.utils.checkpoint.checkpoint(dropped, x, use_reentrant=reentrant)
    )
    assert 0 < int((plain == 0).sum()) < 64
    assert torch.equal(plain, saved)
    assert torch.equal(plain_after, saved_after)


@pytest.mark.parametrize("enabled", [True, False])
def test_fused_layers_are_off_inside_and_as_before_outside_also_after_an_error(enabled):
    outer = torch.backends.mkldnn.enabled, mha.get_fastpath_enabled()
    torch.backends.mkldnn.enabled = enabled
    mha.set_fastpath_enabled(enabled)
    try:
        with contextlib.suppress(ZeroDivisionError), EXACT.active(seed=0, purpose="x", step=0):
            assert not torch.backends.mkldnn.enabled
            assert not mha.get_fastpath_enabled()
            raise ZeroDivisionError
        assert torch.backends.mkldnn.enabled == enabled
        assert mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mkldnn.enabled, fast = outer
        mha.set_fastpath_enabled(fast)


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


def test_subnormals_flushed_within_a_step_are_an_error_of_it():
    try:
        with (
            pytest.raises(NumericsError, match="subnormal.*fresh process"),
            EXACT.active(seed=0, purpose="x", step=0),
        ):
            torch.set_flush_denormal(True)
    finally:
        torch.set_flush_denormal(False)


def test_threads_that_flush_subnormals_are_found():
    printed = run(MACHINES[-1], "tests.numerics.flushed_threads").splitlines()
    assert printed[0] == "True"
    assert "fresh process" in printed[1]


@pytest.mark.parametrize("seed", [-1, 2**64 - 1, 2**63 - 1, 2**63])
def test_of_a_seed_32_bits_are_taken(seed):
    """As PyTorch's own generator does."""
    found = []
    for number in (seed, seed % 2**32):
        with EXACT.active(seed=0, purpose="x", step=0):
            torch.manual_seed(number)
            found.append((torch.rand(3).tolist(), torch.rand(3).tolist()))
    assert found[0] == found[1]


def test_flags_that_may_not_be_set_are_no_obstacle(monkeypatch):
    module = torch.backends.disable_global_flags.__globals__
    monkeypatch.setitem(module, "__allow_nonbracketed_mutation_flag", False)
    with pytest.raises(RuntimeError, match="disable_global_flags"):
        torch.backends.mkldnn.enabled = True
    with EXACT.active(seed=0, purpose="x", step=0):
        assert not torch.backends.mkldnn.enabled
        assert (torch.ones(300, 300) @ torch.ones(300, 300))[0, 0] == 300
    assert torch.backends.mkldnn.enabled


def test_threads_take_turns_and_leave_the_process_as_it_was():
    """A profile replaces names of the whole process: two at once would put back each other's."""
    names = [(math, "exp"), (np.random, "binomial"), (threading.Thread, "start"), (torch, "seed")]
    before = [getattr(owner, name) for owner, name in names]
    inside, overlaps, results = [0], [], []

    def work(seed: int) -> None:
        for step in range(5):
            with EXACT.active(seed=seed, purpose="test", step=step):
                inside[0] += 1
                overlaps.append(inside[0])
                results.append((seed, step, draws()))
                inside[0] -= 1

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(overlaps) == {1}
    assert [getattr(owner, name) for owner, name in names] == before
    alone = []
    for seed, step, _ in results:
        with EXACT.active(seed=seed, purpose="test", step=step):
            alone.append((seed, step, draws()))
    assert results == alone


def test_a_child_of_a_fork_is_not_blocked_by_a_thread_of_its_parent():
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with EXACT.active(seed=1, purpose="test", step=0):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking beside a thread is what is tested
        child = os.fork()
    if not child:
        signal.alarm(30)
        with NATIVE.active(seed=1, purpose="test", step=0):
            os._exit(0)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
