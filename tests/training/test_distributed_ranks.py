"""What ranks exchange and compare, and how the loss of one ends the others."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import jobs
from tests.training.ranks_support import as_ranks
from veritrain import JobError, UsageError
from veritrain.errors import LostRankError, UnlikeRanksError, VeritrainError
from veritrain.training.distributed import agreement, signs
from veritrain.training.distributed.ranks import Place, Ranks
from veritrain.training.distributed.signs import Sign, SignKind
from veritrain.transcript import state_entries


def test_bytes_and_texts_of_all_ranks_arrive() -> None:
    def act(ranks: Ranks) -> tuple[list[bytes], list[bytes], bytes]:
        return (
            ranks.gather(bytes([ranks.rank, 7])),
            ranks.gather_texts(b"x" * ranks.rank, 10),
            ranks.from_first(b"of the first" if ranks.rank == 0 else None, 100),
        )

    for found in as_ranks(3, act):
        assert found == (
            [b"\x00\x07", b"\x01\x07", b"\x02\x07"],
            [b"", b"x", b"xx"],
            b"of the first",
        )


def test_a_text_that_is_too_long_is_refused_before_it_is_sent() -> None:
    for error in as_ranks(2, lambda ranks: ranks.gather_texts(b"x" * 11 * ranks.rank, 10)):
        assert isinstance(error, UsageError)
        assert "rank 1: 11 bytes to compare, expected at most 10" in str(error)
    for error in as_ranks(2, lambda ranks: ranks.from_first(b"x" * 11, 10)):
        assert isinstance(error, UsageError)


@given(st.sampled_from(list(SignKind)), st.text(max_size=900))
def test_a_sign_comes_back_or_is_cut(kind: SignKind, text: str) -> None:
    sign = Sign.from_tensor(Sign(kind=kind, text=text).to_tensor())
    assert sign.kind is kind
    assert text.startswith(sign.text.removesuffix("\ufffd"))


@given(st.binary(min_size=512, max_size=512))
def test_any_bytes_make_a_sign(data: bytes) -> None:
    sign = Sign.from_tensor(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    assert sign.kind in set(SignKind)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "2"}, "RANK: expected 0 to 1, got 2"),
        ({"RANK": None}, "RANK: expected an integer, got None; start the ranks by torchrun"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: expected 1 to"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected an integer, got 'two'"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK: expected an integer"),
    ],
)
def test_an_environment_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **changes}
    with pytest.raises(UsageError, match=message):
        Place.of({name: value for name, value in environment.items() if value is not None})


def test_the_job_cannot_see_that_it_is_on_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "TORCHELASTIC_RUN_ID",
    )
    for name, value in zip(names, ("0", "1", "0", "127.0.0.1", "0", "none"), strict=True):
        monkeypatch.setenv(name, value)
    with Ranks.join(deadline=5) as ranks:
        assert ranks.size == 1
        assert not set(names) & set(os.environ)
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan")])
def test_a_deadline_that_is_none_is_refused(deadline: float) -> None:
    with pytest.raises(UsageError, match="deadline: expected a number of seconds above 0"):
        Ranks.join(deadline=deadline)


def test_all_ranks_learn_why_one_ended() -> None:
    def act(ranks: Ranks) -> None:
        if ranks.rank == 1:
            raise JobError("record 7 is broken")
        ranks.gather(b"x")

    first, second, third = as_ranks(3, act)
    assert str(second) == "record 7 is broken"
    for error in (first, third):
        assert isinstance(error, LostRankError)
        assert str(error) == "rank 1 ended: record 7 is broken"


@pytest.mark.parametrize("silent", [0, 2])
def test_a_silent_rank_ends_the_others_within_the_deadline(
    silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = threading.Event()
    exchanged = signs.Watch._exchanged

    def freezing(self: Any, own: Any, present: Any) -> Any:
        if self._channel.rank() == silent:
            frozen.wait(20)
        return exchanged(self, own, present)

    monkeypatch.setattr(signs.Watch, "_exchanged", freezing)
    seconds: dict[int, float] = {}

    def act(ranks: Ranks) -> None:
        begin = time.monotonic()
        try:
            if ranks.rank == silent:
                frozen.wait(20)
            else:
                ranks.gather(b"x")
        finally:
            seconds[ranks.rank] = time.monotonic() - begin
            if len(seconds) == 2:
                frozen.set()

    results = as_ranks(3, act, deadline=1.5)
    for rank in {0, 1, 2} - {silent}:
        assert isinstance(results[rank], LostRankError)
        assert str(results[rank]) == f"rank {silent} is lost: no sign of life for 1.5 s"
        assert seconds[rank] < 6


def test_a_slow_rank_is_not_lost() -> None:
    def act(ranks: Ranks) -> list[bytes]:
        time.sleep(3.0 if ranks.rank == 1 else 0)  # as in a long step
        return ranks.gather(b"x")

    assert as_ranks(2, act, deadline=1.0) == [[b"x", b"x"]] * 2


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 cannot parse in two threads at once, and a real rank has a process of its own."""
    lock, commitment = threading.Lock(), agreement.commitment

    def locked(job: Any) -> Any:
        with lock:
            return commitment(job)

    monkeypatch.setattr(agreement, "commitment", locked)


def raised(size: int, act: Any, kind: type[VeritrainError]) -> str:
    """The message that every rank raises."""
    results = as_ranks(size, act)
    assert {type(error) for error in results} == {kind}, results
    (message,) = set(map(str, results))
    return message


@pytest.mark.usefixtures("one_at_a_time")
def test_the_rank_with_another_job_is_named() -> None:
    job = jobs.make(shards=4, accumulate=1)

    def act(ranks: Ranks) -> None:
        agreement.require_same_job(ranks, replace(job, seed=12) if ranks.rank == 1 else job)

    message = raised(3, act, JobError)
    assert message.startswith(
        "the ranks are not alike; beside rank 0, rank 1: job: config: seed: expected 0000"
    )


@pytest.mark.usefixtures("one_at_a_time")
def test_the_rank_with_other_numerics_or_packages_is_named(monkeypatch) -> None:
    job = jobs.make(shards=4, accumulate=1)

    def act(ranks: Ranks) -> None:
        agreement.require_same_job(
            ranks, replace(job, numerics="exact14") if ranks.rank == 0 else job
        )

    # Two against one: the majority is what the others are compared with.
    message = raised(3, act, JobError)
    assert message.startswith(
        "the ranks are not alike; beside rank 1, rank 0: job: config: numerics"
    )
    assert "numerics: name: expected 'exact', got 'exact14'" in message

    found, thread = agreement.found, threading.local()
    monkeypatch.setattr(agreement, "found", lambda names: {**found(names), **thread.versions})

    def packages(ranks: Ranks) -> None:
        thread.versions = {"numpy": "0.1"} if ranks.rank else {}
        agreement.require_same_packages(ranks, {"numpy": "1"} if ranks.rank == 0 else None)

    message = raised(2, packages, JobError)
    assert "rank 1: packages: numpy: expected '" in message
    assert message.endswith("got '0.1'")


@pytest.mark.usefixtures("one_at_a_time")
def test_more_ranks_than_shards_are_refused() -> None:
    job = jobs.make(shards=2, accumulate=1)
    message = raised(3, lambda ranks: agreement.require_same_job(ranks, job), JobError)
    assert "2 shards, too few for 3 processes; start at most 2" in message
    with pytest.raises(JobError, match="not divided .shards=1., and 2 processes.*set shards=2"):
        agreement.require_divisible(jobs.make(), 2)


def test_the_rank_with_another_state_is_named_with_the_tensor() -> None:
    digests = [bytes([shard]) * 32 for shard in range(5)]

    def act(ranks: Ranks) -> agreement.StepAgreement:
        state = {"a": torch.zeros(3), "b": torch.ones(4)}
        if ranks.rank in odd:
            state["b"][2] = 1 + 2**-23 * (1 + ranks.rank % 2)
        mine = agreement.shards_of(ranks.rank, ranks.size, 5)
        return agreement.agree(
            ranks,
            9,
            state_entries(state),
            digests[mine.start : mine.stop],
            5,
            stops=ranks.rank == 1,
        )

    odd: set[int] = set()
    for outcome in as_ranks(3, act):
        assert outcome == agreement.StepAgreement(batches=digests, is_last=True)
    for now, named in (
        ({1}, "beside rank 0, rank 1: tensor 'b': expected float32 [4] "),
        ({0}, "beside rank 1, rank 0: tensor 'b'"),
        ({0, 2}, "beside rank 0, rank 1: tensor 'b'"),
    ):
        odd = now
        message = raised(3, act, UnlikeRanksError)
        assert message.startswith(f"step 9: the ranks do not have one state; {named}"), message


def test_the_state_of_the_first_rank_reaches_all() -> None:
    whole = {"a": torch.arange(5.0), "n": torch.tensor(3), "none": torch.zeros(0, 2)}

    def act(ranks: Ranks) -> Any:
        state = whole if ranks.rank == 0 else {"a": torch.zeros(5)}
        return agreement.shared_state(ranks, 40 if ranks.rank == 0 else 0, state, list)

    first, second = as_ranks(2, act)
    assert first == (40, None)
    step, state = second
    assert step == 40
    assert {name: (t.dtype, t.tolist()) for name, t in state.items()} == {
        name: (t.dtype, t.tolist()) for name, t in whole.items()
    }
