"""What every signer relies on: rosters, envelopes, journals and proofs of equivocation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.parties.toy_protocol import OtherEnvelope, ToyEnvelope, envelope, key, signed
from veritrain.encoding import encode
from veritrain.errors import TranscriptError, UsageError, VerificationError
from veritrain.parties.envelope import SignedEnvelope
from veritrain.parties.equivocation import EquivocationError, check_equivocation
from veritrain.parties.journal import Journal, JournalEntry
from veritrain.parties.party_folder import ContextFolder, PartyFolder
from veritrain.parties.roster import MAX_PARTIES, Roster

KEYS = tuple(key(number).public_key for number in (1, 2, 3))
CALLER = key(1)


def test_a_roster_comes_back_and_its_order_and_epoch_count() -> None:
    roster = Roster(epoch=2, keys=KEYS)
    assert Roster.from_bytes(roster.to_bytes(), where="x") == roster
    others = [replace(roster, epoch=3), replace(roster, keys=KEYS[::-1])]
    assert len({roster.digest, *(other.digest for other in others)}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"keys": ()},
        {"keys": (KEYS[0], KEYS[0])},
        {"keys": (KEYS[0], b"short")},
        {"keys": list(KEYS)},
        {"keys": tuple(n.to_bytes(32, "big") for n in range(MAX_PARTIES + 1))},
        {"epoch": -1},
        {"epoch": True},
    ],
)
def test_a_wrong_roster_cannot_be_made(change) -> None:
    with pytest.raises(UsageError):
        replace(Roster(epoch=0, keys=KEYS), **change)


small = st.integers(-(2**60), 2**60)


@given(st.sampled_from(["epoch", "keys", "type", "more"]), st.none() | small | st.text())
def test_a_hostile_roster_is_malformed(name: str, value) -> None:
    hostile = encode({**Roster(epoch=0, keys=KEYS).to_value(), name: value})
    try:
        found = Roster.from_bytes(hostile, where="x")
    except TranscriptError:
        return
    assert found.to_bytes() == hostile


def test_the_largest_roster_can_be_read() -> None:
    keys = tuple(n.to_bytes(32, "big") for n in range(MAX_PARTIES))
    roster = Roster(epoch=2**53, keys=keys)
    assert Roster.from_bytes(roster.to_bytes(), where="x").keys == keys


def test_the_signature_says_who_signed_and_the_named_sender_does_not() -> None:
    roster = Roster(epoch=0, keys=KEYS)
    by_second = replace(envelope(), sender="caller").signed(key(2))
    assert roster.signer(by_second, ToyEnvelope.type_name, (0, 1, 2)) == 1
    assert roster.signer(by_second, ToyEnvelope.type_name, (0, 2)) is None
    assert roster.signer(by_second, OtherEnvelope.type_name, (0, 1, 2)) is None
    assert roster.signer(signed(key(9)), ToyEnvelope.type_name, (0, 1, 2)) is None


def test_an_envelope_is_read_within_its_bounds() -> None:
    one = signed(CALLER, text="x" * 200)
    data = one.to_bytes()
    assert SignedEnvelope.read(data, limit=len(data), where="x") == one
    with pytest.raises(TranscriptError, match="at most"):
        SignedEnvelope.read(data, limit=len(data) - 1, where="x")
    assert one.opened(ToyEnvelope, where="x") == envelope(text="x" * 200)
    with pytest.raises(TranscriptError):
        one.opened(OtherEnvelope, where="x")
    with pytest.raises(TranscriptError):
        one.opened(ToyEnvelope, where="x", max_items=3)
    with pytest.raises(UsageError, match="at most 1000"):
        signed(CALLER, text="x" * 2000)


def test_two_envelopes_of_one_slot_convict() -> None:
    first, second = signed(CALLER), signed(CALLER, text="bye")
    slot = check_equivocation(
        first.to_bytes(), second.to_bytes(), key=CALLER.public_key, of=ToyEnvelope
    )
    assert slot == envelope().slot


@pytest.mark.parametrize(
    "second",
    [
        signed(CALLER),
        signed(CALLER, number=2, text="bye"),
        signed(key(2), text="bye"),
        replace(envelope(text="bye"), sender="listener").signed(CALLER),
        replace(envelope(text="bye"), round=b"\x01" * 32).signed(CALLER),
        OtherEnvelope(round=bytes(32), sender="caller", number=1, text="bye").signed(CALLER),
        SignedEnvelope(message=b"", signature=CALLER.sign(ToyEnvelope.type_name, b"")),
    ],
    ids=["same", "number", "key", "sender", "context", "protocol", "garbage"],
)
def test_other_pairs_convict_nobody(second: SignedEnvelope) -> None:
    pair = [signed(CALLER).to_bytes(), second.to_bytes()]
    for one, other in (pair, pair[::-1]):
        with pytest.raises((VerificationError, TranscriptError)):
            check_equivocation(one, other, key=CALLER.public_key, of=ToyEnvelope)


class Counter:
    """Signs something new each time that it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> bytes:
        self.calls += 1
        return b"answer %d" % self.calls


def test_a_slot_is_signed_once_also_after_a_restart(tmp_path) -> None:
    make = Counter()
    for _ in range(3):  # processes, one after the other
        journal = Journal(ContextFolder(tmp_path / "00").entries())
        assert journal.sign_once(1, signed(CALLER), make) == b"answer 1"
        assert journal.sign_once(4, signed(CALLER, number=4), make) == b"answer 2"
    assert make.calls == 2


def test_a_second_question_for_a_slot_is_a_proof_and_is_not_answered() -> None:
    make, entries = Counter(), dict[int, JournalEntry]()
    journal = Journal(entries)
    journal.sign_once(1, signed(CALLER), make)
    with pytest.raises(EquivocationError) as caught:
        journal.sign_once(1, signed(CALLER, text="bye"), make)
    pair = caught.value.pair
    assert check_equivocation(*pair, key=CALLER.public_key, of=ToyEnvelope) == envelope().slot
    assert make.calls == len(entries) == 1


def test_slots_are_filled_in_rising_order_and_a_failure_leaves_one_free() -> None:
    journal = Journal({})

    def fails() -> bytes:
        raise UsageError("nothing to say")

    with pytest.raises(UsageError):
        journal.sign_once(2, signed(CALLER, number=2), fails)
    assert journal.sign_once(2, signed(CALLER, number=2), Counter()) == b"answer 1"
    with pytest.raises(VerificationError, match="after a later one"):
        journal.sign_once(1, signed(CALLER), Counter())


def test_a_worker_signs_unasked_and_in_any_order(tmp_path) -> None:
    make = Counter()
    for _ in range(2):  # processes, one after the other
        journal = Journal(ContextFolder(tmp_path / "00").entries(), in_order=False)
        assert journal.sign_once(3, None, make) == b"answer 1"
        assert journal.sign_once(1, None, make) == b"answer 2"
    assert make.calls == 2


def test_what_could_not_be_kept_is_not_sent() -> None:
    class FullDisk(dict[int, JournalEntry]):
        def __setitem__(self, number: int, entry: JournalEntry) -> None:
            raise UsageError("no space left")

    with pytest.raises(UsageError, match="no space"):
        Journal(FullDisk()).sign_once(1, signed(CALLER), Counter())


def test_a_party_folder_keeps_files_once_and_belongs_to_one_process(tmp_path) -> None:
    folder = PartyFolder(tmp_path / "mine")
    with pytest.raises(UsageError, match="by another process"):
        PartyFolder(tmp_path / "mine")
    assert folder.write("note", b"a") and not folder.write("note", b"a")
    with pytest.raises(UsageError, match="exists already"):
        folder.write("note", b"longer")
    assert (folder.read("note", 1), folder.read("other", 1)) == (b"a", None)
    assert folder.contexts() == []
    context = ContextFolder(folder.folder / bytes(32).hex())
    context.add_message(1, b"first")
    context.add_message(2, b"second")
    assert (folder.contexts(), context.messages()) == ([bytes(32)], [b"first", b"second"])
    context.clear()
    assert folder.contexts() == []


@pytest.mark.parametrize("numbers", [(0, 1), (9_999, 10_000, 123_456)])
def test_a_journal_has_every_number_after_a_restart(numbers, tmp_path) -> None:
    folder = ContextFolder(tmp_path / "00")
    made = [Journal(folder.entries()).sign_once(n, signed(CALLER), Counter()) for n in numbers]
    again = Journal(ContextFolder(tmp_path / "00").entries())
    for number, answer in zip(numbers, made, strict=True):
        assert again.sign_once(number, signed(CALLER), Counter()) == answer
