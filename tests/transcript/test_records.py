from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builder import make_header, make_run

from veritrain.encoding import decode, digest, encode
from veritrain.errors import TranscriptError, UsageError
from veritrain.transcript import merkle
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.records import (
    DTYPE_BYTES,
    Checkpoint,
    Head,
    Header,
    Leaf,
    SignedHead,
    TensorEntry,
    decode_segment,
    encode_segment,
    state_root,
)

DIGEST = bytes(range(32))
LEAF = Leaf(step=3, state=DIGEST, batch=DIGEST, loss=0.5, rounding=None, previous=DIGEST)
HEAD = Head(run=DIGEST, size=4, root=DIGEST, segment=DIGEST, checkpoint=DIGEST, previous=None)
SIGNED = SignedHead(head=HEAD, signature=bytes(64))
ENTRY = TensorEntry(name="b", dtype="float32", shape=(2, 3), digest=DIGEST)
OTHER = TensorEntry(name="a", dtype="int64", shape=(), digest=bytes(32))
CHECKPOINT = Checkpoint(step=3, tensors=(OTHER, ENTRY), packs=(0, 3))
RECORDS = [make_header(), LEAF, HEAD, SIGNED, CHECKPOINT]

by_type = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.type_name)

digests = st.binary(min_size=32, max_size=32)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
entries = st.builds(
    TensorEntry,
    name=names,
    dtype=st.sampled_from(sorted(DTYPE_BYTES)),
    shape=st.lists(st.integers(0, 50), max_size=5).map(tuple),
    digest=digests,
)
losses = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.builds(
    Leaf,
    step=st.integers(1, 10**12 - 1),
    state=digests,
    batch=digests,
    loss=losses,
    rounding=st.none() | digests,
    previous=digests,
)


def changed(record: Any, name: str, value: object) -> bytes:
    return encode({**record.to_value(), name: value})


@by_type
def test_bytes_round_trip_and_are_digested_in_the_record_s_domain(record: Any) -> None:
    again = type(record).from_bytes(record.to_bytes(), where="here")
    assert again == record
    assert again.digest == digest(record.type_name, record.to_bytes())


@by_type
def test_a_record_cannot_be_changed(record: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        record.size = 1


@by_type
def test_missing_unknown_and_mistyped_fields_are_refused_by_name(record: Any) -> None:
    fields = record.to_value()
    for name in fields:
        rest = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(TranscriptError, match=rf"^here: .*{name}"):
            type(record).from_bytes(encode(rest), where="here")
        with pytest.raises(TranscriptError, match=r"^here: "):
            type(record).from_bytes(changed(record, name, True), where="here")
    with pytest.raises(TranscriptError, match="unknown field 'note'"):
        type(record).from_bytes(changed(record, "note", 1), where="here")


@by_type
def test_bytes_that_are_not_canonical_are_refused(record: Any) -> None:
    data = record.to_bytes()
    for bad in (data + b"\x00", data[:-1], b"", b"\x80", b"\xa0", b"\xf6", encode([])):
        with pytest.raises(TranscriptError, match=r"^here: "):
            type(record).from_bytes(bad, where="here")


@by_type
@given(data=st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_no_bytes_raise_anything_but_a_transcript_error(record: Any, data: bytes) -> None:
    with pytest.raises(TranscriptError):
        type(record).from_bytes(data, where="here")


@by_type
@given(place=st.integers(0), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_is_refused_or_changes_the_digest(record: Any, place: int, bit: int) -> None:
    data = bytearray(record.to_bytes())
    data[place % len(data)] ^= 1 << bit
    try:
        again = type(record).from_bytes(bytes(data), where="here")
    except TranscriptError:
        return
    assert again.digest != record.digest
    assert again.to_bytes() == bytes(data)


@by_type
def test_a_record_of_one_type_is_not_read_as_another(record: Any) -> None:
    for other in RECORDS:
        if other is not record:
            with pytest.raises(TranscriptError, match=r"type: expected|format|expected at most"):
                type(other).from_bytes(record.to_bytes(), where="here")


@by_type
def test_the_size_limit_holds_before_decoding(record: Any) -> None:
    with pytest.raises(TranscriptError, match=f"at most {record.max_bytes} bytes"):
        type(record).from_bytes(bytes(record.max_bytes + 1), where="here")


def test_another_format_version_is_refused_by_number() -> None:
    future = encode({**make_header().to_value(), "format": 2, "extra": "from the future"})
    with pytest.raises(TranscriptError, match="format version 2; this software reads version 1"):
        Header.from_bytes(future, where="header")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("numerics", ""),
        ("numerics", "x" * 1025),
        ("numerics_version", -1),
        ("numerics_version", True),
        ("job", []),
        ("job", {"a": object()}),
        ("job", {"a": math.nan}),
        ("job", {"a": "\ud800"}),
        ("job", {"a": b"x" * LIMITS.header_bytes}),
        ("dataset_root", bytes(31)),
        ("dataset_count", 0),
        ("environment", {"torch": 2}),
        ("environment", None),
        ("public_key", bytes(33)),
    ],
)
def test_a_header_with_a_wrong_field_cannot_be_made(field: str, value: object) -> None:
    with pytest.raises(UsageError):
        replace(make_header(), **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", -1),
        ("step", 10**12),
        ("step", True),
        ("step", 1.0),
        ("state", bytes(31)),
        ("state", "x" * 32),
        ("batch", None),
        ("loss", None),
        ("loss", 1),
        ("loss", math.inf),
        ("loss", math.nan),
        ("rounding", b""),
        ("previous", None),
    ],
)
def test_a_leaf_with_a_wrong_field_cannot_be_made(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"field {field}: expected"):
        replace(LEAF, **{field: value})


def test_leaf_0_has_neither_batch_nor_loss() -> None:
    replace(LEAF, step=0, batch=None, loss=None)
    with pytest.raises(UsageError, match="field batch: expected nothing at step 0"):
        replace(LEAF, step=0, loss=None)
    with pytest.raises(UsageError, match="field loss: expected nothing at step 0"):
        replace(LEAF, step=0, batch=None)


def test_a_nan_loss_is_refused_in_bytes_too() -> None:
    fields = LEAF.to_value()
    data = encode({**fields, "loss": 0.5}).replace(b"\xf9\x38\x00", b"\xf9\x7e\x00")
    with pytest.raises(TranscriptError, match="canonical"):
        Leaf.from_bytes(data, where="here")
    with pytest.raises(TranscriptError, match="loss: expected a finite float, got inf"):
        Leaf.from_bytes(changed(LEAF, "loss", math.inf), where="here")


@given(leaf=leaves)
@settings(max_examples=60, deadline=None)
def test_any_leaf_round_trips(leaf: Leaf) -> None:
    again = Leaf.from_bytes(leaf.to_bytes(), where="here")
    assert again.to_bytes() == leaf.to_bytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "\ud800"),
        ("name", "x" * 1025),
        ("dtype", "float31"),
        ("dtype", "object"),
        ("shape", (-1,)),
        ("shape", (True,)),
        ("shape", (1.0,)),
        ("shape", (2**63,)),
        ("shape", (0, 2**62, 2**62)),
        ("shape", (1,) * 65),
        ("digest", bytes(31)),
    ],
)
def test_an_entry_with_a_wrong_field_cannot_be_made(field: str, value: object) -> None:
    with pytest.raises(UsageError):
        replace(ENTRY, **{field: value})


@given(entry=entries)
@settings(max_examples=100, deadline=None)
def test_the_fast_bytes_of_an_entry_are_its_canonical_bytes(entry: TensorEntry) -> None:
    assert entry.to_bytes() == encode(entry.to_value())
    assert TensorEntry.from_value(decode(entry.to_bytes(), where="here")) == entry


@given(st.lists(entries, min_size=1, max_size=8, unique_by=lambda entry: entry.name))
@settings(max_examples=50, deadline=None)
def test_the_state_root_is_the_merkle_root_in_the_order_of_names(found: list[TensorEntry]) -> None:
    ordered = sorted(found, key=lambda entry: entry.name)
    expected = merkle.root([encode(entry.to_value()) for entry in ordered])
    assert state_root(found) == state_root(found[::-1]) == expected


def test_an_empty_state_and_a_name_twice_have_no_root() -> None:
    with pytest.raises(UsageError, match="without tensors"):
        state_root([])
    with pytest.raises(UsageError, match="'b' is in the state twice"):
        state_root([ENTRY, ENTRY])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": (), "packs": ()}, "expected 1 to"),
        ({"packs": (0,)}, "packs: expected 2 steps, got 1"),
        ({"packs": (0, 4)}, "packs: expected an integer from 0 to 3"),
        ({"packs": (-1, 3)}, "packs: expected an integer"),
        ({"tensors": (ENTRY, OTHER)}, "strictly rising"),
        ({"tensors": (ENTRY, ENTRY)}, "strictly rising"),
        ({"tensors": (replace(OTHER, digest=DIGEST), ENTRY)}, "its digest stands for"),
        ({"tensors": (replace(OTHER, shape=(2**40,)), ENTRY)}, "a state of at most"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_cannot_be_made(change: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(CHECKPOINT, **change)
    value = CHECKPOINT.to_value()
    if "tensors" in change:
        value["tensors"] = [entry.to_value() for entry in change["tensors"]]
    if "packs" in change:
        value["packs"] = list(change["packs"])
    with pytest.raises(TranscriptError, match=message):
        Checkpoint.from_bytes(encode(value), where="here")


@pytest.mark.parametrize("tensors", [None, [1], [{}], [[]], [{"type": "tensor"}], {}, [None]])
def test_a_manifest_with_other_things_than_entries_is_refused(tensors: Any) -> None:
    with pytest.raises(TranscriptError, match=r"^here: "):
        Checkpoint.from_bytes(changed(CHECKPOINT, "tensors", tensors), where="here")


@pytest.mark.parametrize(
    ("name", "value"), [("dtype", []), ("dtype", 1), ("shape", 3), ("shape", {}), ("type", "leaf")]
)
def test_a_mistyped_entry_in_a_manifest_is_refused(name: str, value: Any) -> None:
    tensors = [{**ENTRY.to_value(), name: value}]
    data = encode({**CHECKPOINT.to_value(), "tensors": tensors, "packs": [3]})
    with pytest.raises(TranscriptError, match=rf"^here: .*{name}"):
        Checkpoint.from_bytes(data, where="here")


def test_own_contents_are_listed_once() -> None:
    tied = replace(ENTRY, name="c")
    both = Checkpoint(step=3, tensors=(OTHER, ENTRY, tied), packs=(0, 3, 3))
    assert both.stored_sizes() == {DIGEST: 24}


def test_a_segment_is_an_array_of_leaves() -> None:
    pair = [replace(LEAF, step=1), LEAF]
    assert decode_segment(encode_segment(pair), where="here") == tuple(pair)
    with pytest.raises(UsageError, match="expected 1 to"):
        encode_segment([])
    for value in ([], {}, None, [[]], [1]):
        with pytest.raises(TranscriptError, match=r"^here: "):
            decode_segment(encode(value), where="here")
    bad = encode([LEAF.to_value(), {**LEAF.to_value(), "loss": None}])
    with pytest.raises(TranscriptError, match=r"^here: entry 1: field loss"):
        decode_segment(bad, where="here")


def test_hostile_text_in_errors_is_short_and_printable() -> None:
    with pytest.raises(TranscriptError) as caught:
        Leaf.from_bytes(changed(LEAF, "\x1b[31m" + "x" * 500, 1), where="here")
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 200


def test_the_header_of_a_run_is_its_first_file() -> None:
    assert Header.from_bytes(make_run()["header"], where="header") == make_header()
