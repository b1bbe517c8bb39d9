"""Batches are a function of the seed alone, and digests tell any two different records apart."""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset

from tests import jobs
from veritrain import JobError
from veritrain.encoding import digest_value, encode
from veritrain.job.data import Batches, batch_digest, canonical

Pair = namedtuple("Pair", "left right")


class Noisy:
    """Uses every random source that a data set may use."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> torch.Tensor:
        values = [float(torch.rand(())), random.random(), float(np.random.rand()), float(index)]
        return torch.tensor(values, dtype=torch.float64)


def digests(batches: Batches, steps: range, workers: int = 0) -> list[bytes]:
    return [batch_digest(b) for b in batches.iterate(steps.start, steps.stop - 1, workers)]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(4, 50), size=st.integers(1, 4), seed=st.integers(0, 2**256 - 1))
def test_each_epoch_takes_each_record_at_most_once(count: int, size: int, seed: int) -> None:
    batches = Batches(
        jobs.make(dataset=list(range(count)), batch_size=size, seed=seed, accumulate=1)
    )
    per_epoch = count // size
    for epoch in range(2):
        first = epoch * per_epoch + 1
        taken = [i for step in range(first, first + per_epoch) for i in batches.indices(step)]
        assert len(taken) == len(set(taken)) == per_epoch * size
        assert set(taken) <= set(range(count))


def test_order_follows_seed_and_epoch() -> None:
    a, b = (Batches(jobs.make(seed=seed)) for seed in (1, 2))
    assert a.indices(1) != b.indices(1)
    assert a.indices(1) != a.indices(6)  # 40 records in batches of 8: step 6 begins epoch 1
    assert a.indices(3) == Batches(jobs.make(seed=1)).indices(3)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("dataset", [Noisy(), jobs.Points()])
def test_workers_change_no_bit(workers: int, dataset: Any) -> None:
    batches = Batches(jobs.make(dataset=dataset))
    expected = digests(batches, range(1, 9))
    assert len(set(expected)) == 8
    assert digests(batches, range(1, 9), workers) == expected
    assert digests(batches, range(4, 9), workers) == expected[3:]


def test_custom_collate_is_keyed_too() -> None:
    def mixed(records: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(records) + torch.rand(())

    batches = Batches(jobs.make(dataset=Noisy(), collate=mixed))
    assert digests(batches, range(1, 4)) == digests(batches, range(1, 4), 2)


def test_fetching_leaves_the_callers_generators_alone() -> None:
    batches = Batches(jobs.make(dataset=Noisy()))
    for seed_all, draw in (
        (torch.manual_seed, lambda: float(torch.rand(()))),
        (random.seed, random.random),
        (np.random.seed, lambda: float(np.random.rand())),
    ):
        seed_all(3)
        expected = draw()
        seed_all(3)
        batches[1]
        list(batches.iterate(1, 2, 1))
        assert draw() == expected


def test_micro_batches_are_collated_apart() -> None:
    one, four = Batches(jobs.make(accumulate=1)), Batches(jobs.make(accumulate=4))
    assert [len(labels) for _, labels in four[1]] == [2, 2, 2, 2]
    assert torch.equal(torch.cat([labels for _, labels in four[1]]), one[1][0][1])


def test_a_data_set_may_be_a_function_or_a_class() -> None:
    for source in (lambda: Noisy(), Noisy):
        assert digests(Batches(jobs.make(dataset=source)), range(1, 3)) == digests(
            Batches(jobs.make(dataset=Noisy())), range(1, 3)
        )


class Lines(IterableDataset):
    def __iter__(self):
        return iter([1])


class Unsized(Dataset):
    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "at least batch_size = 8 records, got 0"),
        ([1] * 7, "at least batch_size = 8 records, got 7"),
        (lambda: Lines(), "map-style data set .* got Lines"),
        (lambda: 3, "map-style data set .* got int"),
        (lambda: Unsized(), "map-style data set .* got Unsized"),
        (lambda: 1 / 0, "the function raised ZeroDivisionError"),
    ],
)
def test_refuses_data_sets_without_batches(source: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        Batches(jobs.make(dataset=source))


class Broken(Noisy):
    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 5:
            raise KeyError("gone")
        return torch.zeros(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_a_data_set_name_the_place(workers: int) -> None:
    batches = Batches(jobs.make(dataset=Broken(), batch_size=20, accumulate=1))
    with pytest.raises(JobError, match=r"record 5 \(step 1\) raised KeyError: 'gone'"):
        list(batches.iterate(1, 1, workers))
    batches = Batches(jobs.make(dataset=[torch.zeros(i) for i in range(8)]))
    with pytest.raises(JobError, match="step 2: the records of a batch do not collate"):
        list(batches.iterate(2, 2, workers))
    batches = Batches(jobs.make(dataset=[{"a": 1}, {"b": 1}] * 4))
    with pytest.raises(JobError, match=r"step 1: the records of a batch do not collate \(KeyError"):
        list(batches.iterate(1, 1, workers))


class Leaving(Noisy):
    def __getitem__(self, index: int) -> torch.Tensor:
        sys.exit(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_or_collate_that_exits_is_an_error(workers: int) -> None:
    def leave(records: list[Any]) -> None:
        sys.exit(0)

    with pytest.raises(JobError, match=r"step 1\) raised SystemExit: 0"):
        list(Batches(jobs.make(dataset=Leaving())).iterate(1, 1, workers))
    with pytest.raises(JobError, match=r"collate \(step 1\) raised SystemExit: 0"):
        list(Batches(jobs.make(collate=leave)).iterate(1, 1, workers))


class Sizeless(Noisy):
    def __len__(self) -> int:
        raise OSError("no such disk")


def test_a_length_that_raises_is_a_clear_error() -> None:
    with pytest.raises(JobError, match="dataset: len raised OSError: no such disk"):
        Batches(jobs.make(dataset=Sizeless()))


class Suicidal(Noisy):
    def __getitem__(self, index: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_worker_is_a_clear_error() -> None:
    with pytest.raises(JobError, match="worker process"):
        list(Batches(jobs.make(dataset=Suicidal())).iterate(1, 2, 1))


def test_commitment_does_not_depend_on_the_seed() -> None:
    roots = {Batches(jobs.make(seed=seed, dataset=Noisy())).commitment() for seed in (1, 2)}
    assert len(roots) == 1


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 9), part=st.integers(0, 2))
def test_one_changed_record_or_label_changes_the_commitment(index: int, part: int) -> None:
    data = [(torch.arange(3.0) + i, i, f"name {i}") for i in range(10)]
    root = Batches(jobs.make(dataset=data)).commitment()
    x, label, name = data[index]
    changed = [(x + 2.0**-20, label, name), (x, label + 1, name), (x, label, name + "!")][part]
    data[index] = changed
    assert Batches(jobs.make(dataset=data)).commitment() != root


class Augmented:
    """Records of which those at the odd places draw, each in a way of its own."""

    def __init__(self, draw: Callable[[], object]) -> None:
        self._draw = draw

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index % 2:
            self._draw()
        return index


def restored_python() -> None:
    state = random.getstate()
    random.random()
    random.setstate(state)


def restored_numpy() -> None:
    state = np.random.get_state()
    np.random.rand()
    np.random.set_state(state)


def restored_torch() -> None:
    with torch.random.fork_rng():
        torch.rand(2)


def seeded_and_restored_torch() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.rand(2)


GENERATOR = torch.Generator().manual_seed(5)


DRAWS: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.rand(2),
    "random": random.random,
    "numpy": np.random.rand,
    "numpy normal": lambda: np.random.normal(),
    "624 words of random": lambda: [random.getrandbits(32) for _ in range(624)],
    "624 words of numpy": lambda: np.random.randint(0, 2**32, 624, np.uint32),
    "normal of random": lambda: random.gauss(0.0, 1.0),
    "shuffle": lambda: random.shuffle([1, 2]),
    "restored random": restored_python,
    "restored numpy": restored_numpy,
    "restored torch": restored_torch,
    "torch before seeding": lambda: torch.rand(1) and torch.manual_seed(1),
    "torch before a generator's": lambda: torch.rand(1, generator=torch.default_generator),
    "generator of before": lambda: torch.rand(1, generator=GENERATOR),
    "seed that was drawn": lambda: torch.manual_seed(random.getrandbits(30)) and torch.rand(1),
}


def expected_digests(is_random: Callable[[int], bool]) -> list[bytes]:
    domains = ["random record" if is_random(i) else "record" for i in range(8)]
    return [digest_value(domain, canonical(i, "")) for i, domain in enumerate(domains)]


@pytest.mark.parametrize("numerics", ["exact", "logged"])
@pytest.mark.parametrize("draw", DRAWS)
def test_records_that_draw_are_committed_in_a_domain_of_their_own(draw: str, numerics: str) -> None:
    batches = Batches(jobs.make(dataset=Augmented(DRAWS[draw]), numerics=numerics))
    assert list(batches.record_digests(range(8))) == expected_digests(lambda i: i % 2 == 1)
    batches.record(1)
    assert random.getstate.__module__ == "random"  # as before


@pytest.mark.parametrize(
    "still",
    [
        lambda: random.Random(3).random(),
        lambda: np.random.default_rng(3).random(),
        lambda: torch.ones(3) * 2,
        lambda: torch.manual_seed(1) and torch.rand(1),
        lambda: torch.manual_seed(1) and np.random.normal(),
        lambda: torch.rand(1, generator=torch.Generator().manual_seed(3)),
        lambda: torch.rand(1, generator=torch.Generator()),
        seeded_and_restored_torch,
    ],
)
def test_records_that_draw_from_generators_of_their_own_are_plain(still: Any) -> None:
    batches = Batches(jobs.make(dataset=Augmented(still)))
    assert list(batches.record_digests(range(8))) == expected_digests(lambda i: False)


def test_what_a_data_set_draws_once_does_not_make_its_records_random() -> None:
    batches = Batches(jobs.make(dataset=Augmented(functools.cache(lambda: torch.rand(3)))))
    assert list(batches.record_digests(range(8))) == expected_digests(lambda i: False)


def test_swapped_records_change_the_commitment() -> None:
    data = list(range(10))
    assert (
        Batches(jobs.make(dataset=data)).commitment()
        != Batches(jobs.make(dataset=[1, 0, *data[2:]])).commitment()
    )


IMAGE = {"getpalette": None, "mode": "RGB", "info": {}}
PALETTE = {"size": (1, 2), "tobytes": lambda: b"ab", "mode": "P"}  # as Pillow's have it
# Every two of these are different values, so their canonical forms must be different.
DISTINCT: list[Any] = [
    None, True, False, 0, 1, -1, 2**64, -(2**70), 0.0, -0.0, 1.0, float("nan"), float("inf"),
    "", "1", "a", b"", b"a", [], (), {}, [1], (1,), [[1]], [1, 1], {"a": 1}, {"a": 2}, {"b": 1},
    {1: "a"}, ["list", 1], ("tuple", 1), Pair(1, 2), (1, 2), ["int", b"\x01"],
    torch.tensor(1), torch.tensor(1.0), torch.tensor([1]), torch.tensor(1, dtype=torch.int32),
    torch.tensor(True), torch.zeros(2), torch.zeros(2, 1), torch.zeros(1, 2), torch.zeros(0),
    torch.zeros(0, 1), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16),
    np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32), np.zeros(0), np.float32(1), np.int8(1),
    np.zeros(2, np.int16), np.array(["a"]), np.array(["b"]), np.datetime64("2020-01-01"),
    SimpleNamespace(size=(1, 2), tobytes=lambda: b"ab", **IMAGE),
    SimpleNamespace(size=(2, 1), tobytes=lambda: b"ab", **IMAGE),
    SimpleNamespace(size=(2, 1), tobytes=lambda: b"ac", **IMAGE),
    SimpleNamespace(**PALETTE, getpalette=lambda mode: [1, 2, 3, 255], info={}),
    SimpleNamespace(**PALETTE, getpalette=lambda mode: [1, 2, 4, 255], info={}),
    SimpleNamespace(**PALETTE, getpalette=lambda mode: [1, 2, 4, 255], info={"transparency": 0}),
    SimpleNamespace(**PALETTE, getpalette=lambda mode: [1, 2, 4, 255], info={"transparency": b"a"}),
]  # fmt: skip


def test_canonical_forms_are_all_different() -> None:
    forms = [encode(canonical(value, "here")) for value in DISTINCT]
    assert len(set(forms)) == len(DISTINCT)


def test_canonical_form_ignores_strides_and_byte_order() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert canonical(x.t().contiguous().t(), "") == canonical(x, "")
    a = np.arange(6, dtype="<i4")
    assert canonical(a.astype(">i4"), "") == canonical(a, "")
    assert canonical(np.asfortranarray(a.reshape(2, 3)), "") == canonical(a.reshape(2, 3), "")


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([1, {"k": object()}], r"record 3\[1\]\['k'\]: a value of type builtins.object"),
        ((1, {2}), r"record 3\[1\]: a value of type builtins.set"),
        (np.array([object()]), "record 3: an array of dtype object"),
        (torch.zeros(2, dtype=torch.complex64), "record 3.*complex64"),
        (torch.eye(2).to_sparse(), "record 3"),
        ({object(): 1}, r"record 3 \(key\)"),
    ],
)
def test_refuses_what_has_no_canonical_form(value: Any, place: str) -> None:
    data = [0, 0, 0, value, *[0] * 8]
    with pytest.raises(JobError, match=place):
        Batches(jobs.make(dataset=data)).commitment()


def test_deep_nesting_is_a_clear_error() -> None:
    value: Any = 1
    for _ in range(40):
        value = [value]
    with pytest.raises(JobError, match="record 0: nested"):
        Batches(jobs.make(dataset=[value] * 8)).commitment()


@pytest.mark.parametrize("value", [np.longdouble(1) / 3, np.full(3, 2j, np.clongdouble)])
def test_long_doubles_have_no_canonical_bytes(value: object) -> None:
    """Six of their sixteen bytes are whatever was in memory."""
    with pytest.raises(JobError, match="record 3: an array of dtype (float128|complex256)"):
        canonical(value, "record 3")
