"""The canonical encoding: one value has one form, and no bytes cost more than their size."""

from __future__ import annotations

import math
import struct
import time
import tracemalloc

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from veritrain.encoding import MAX_DEPTH, Value, decode, digest, digest_parts, encode, same
from veritrain.errors import TranscriptError

MIB = 1 << 20

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
integers = st.integers(-(2**63), 2**64 - 1) | st.sampled_from(
    [
        sign + way * 2**power
        for power in (5, 8, 16, 32, 63)
        for sign in (-1, 0, 1)
        for way in (1, -1)
    ]
).filter(lambda number: number >= -(2**63))
floats = (
    st.floats(allow_nan=False)
    | st.floats(width=32, allow_nan=False)
    | st.floats(width=16, allow_nan=False)
)
values = st.recursive(
    st.none() | st.booleans() | integers | floats | texts | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(texts, inner, max_size=30),
    max_leaves=40,
)


def refused(data: bytes) -> str:
    with pytest.raises(TranscriptError, match=r"^here: not a canonical CBOR record: ") as caught:
        decode(data, where="here")
    assert str(caught.value).isprintable()
    return str(caught.value)


def array_head(count: int) -> bytes:
    return bytes([0x80 | count]) if count < 24 else b"\x99" + count.to_bytes(2, "big")


def shared_values(levels: int, width: int = 100) -> bytes:
    """Tags 28 and 29: every level refers to the one below `width` times."""
    data = array_head(levels + 1) + b"\xd8\x1c\x80"
    for level in range(levels):
        reference = b"\xd8\x1d" + encode(level)
        data += b"\xd8\x1c" + array_head(width) + reference * width
    return data


def string_references(count: int) -> bytes:
    """Tags 256 and 25: one long text, named many times."""
    text = b"\x7a" + MIB.to_bytes(4, "big") + b"a" * MIB
    return b"\xd9\x01\x00\x9a" + (count + 1).to_bytes(4, "big") + text + b"\xd8\x19\x00" * count


BIG = b"\x5a" + MIB.to_bytes(4, "big") + b"\xfe" * MIB

BOMBS = {
    "shared values": shared_values(4),
    "string references": string_references(1000),
    "bignum": b"\xc2" + BIG,
    "negative bignum": b"\xc3" + BIG,
    "decimal fraction": b"\xc4\x82\x00\xc2" + BIG,
    "decimal fraction of a huge exponent": b"\xc4\x82\x1b" + (10**12).to_bytes(8, "big") + b"\x01",
    "bigfloat": b"\xc5\x82\x1b" + (10**12).to_bytes(8, "big") + b"\x01",
    "rational": b"\xd8\x1e\x82\xc2" + BIG + b"\xc2" + BIG,
    "regular expression": b"\xd8\x23\x7a" + (MIB).to_bytes(4, "big") + b"(a|b)" * (MIB // 5) + b"x",
    "array of a claimed size": b"\x9b" + (1 << 40).to_bytes(8, "big"),
    "arrays of claimed sizes": b"\x9b" + (1 << 40).to_bytes(8, "big") * 16,
    "map of a claimed size": b"\xbb" + (1 << 40).to_bytes(8, "big"),
    "bytes of a claimed size": b"\x5b" + (1 << 40).to_bytes(8, "big"),
    "text of a claimed size": b"\x7b" + (1 << 63).to_bytes(8, "big"),
    "nested arrays that claim all that is left": b"\x9a\x00\x30\x00\x00" * 14 + b"\xf6" * (3 * MIB),
    "nested arrays": b"\x81" * MIB,
    "nested tags": b"\xc6" * MIB,
    "nested maps": b"\xa1\x60" * MIB,
    "indefinite arrays": b"\x9f" * MIB,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name: str) -> None:
    began = time.process_time()
    refused(BOMBS[name])
    assert time.process_time() - began < 5  # seconds; one that goes off takes hours


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_memory(name: str) -> None:
    tracemalloc.start()
    try:
        refused(BOMBS[name])
        assert tracemalloc.get_traced_memory()[1] < 40 * len(BOMBS[name]) + MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("unit", ["80", "a0", "8180", "81818180", "a160a0", "a160a160f6", "f93c00"])
def test_memory_is_bounded_by_the_size_of_what_is_accepted(unit: str) -> None:
    count = 80_000
    data = b"\x9a" + count.to_bytes(4, "big") + bytes.fromhex(unit) * count
    tracemalloc.start()
    try:
        value = decode(data, where="here")
        assert tracemalloc.get_traced_memory()[1] < 100 * len(data)  # as limits.py says
    finally:
        tracemalloc.stop()
    assert encode(value) == data


@given(values)
@settings(max_examples=300, deadline=None)
def test_values_round_trip_and_the_library_reads_the_same(value: object) -> None:
    data = encode(value)
    assert repr(decode(data, where="here")) == repr(cbor2.loads(data))
    assert encode(decode(data, where="here")) == data


def count(value: object) -> int:
    if isinstance(value, list):
        return 1 + sum(map(count, value))
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(count, value.values()))
    return 1


@given(values)
@settings(max_examples=200, deadline=None)
def test_the_number_of_values_can_be_bounded(value: object) -> None:
    data, limit = encode(value), count(value)
    assert encode(decode(data, where="here", max_items=limit)) == data
    with pytest.raises(TranscriptError, match=f"more than {limit - 1} values"):
        decode(data, where="here", max_items=limit - 1)


@given(st.binary(max_size=24), st.integers(1, 24))
@settings(max_examples=500, deadline=None)
def test_a_bound_on_values_refuses_nothing_else(data: bytes, limit: int) -> None:
    try:
        value = decode(data, where="here", max_items=limit)
    except TranscriptError as error:
        if "more than" not in str(error) or "values" not in str(error):
            refused(data)
        return
    assert count(value) <= limit


def test_an_array_of_many_arrays_is_refused_before_any_is_built() -> None:
    data = b"\x9a" + (4 << 20).to_bytes(4, "big") + b"\x80" * (4 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(TranscriptError, match="more than 1000 values"):
            decode(data, where="here", max_items=1000)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=24))
@example(b"\xf9\x7c\x00")
@example(b"\xf9\x80\x00")
@settings(max_examples=1500, deadline=None)
def test_any_bytes_are_refused_or_are_the_encoding_of_what_they_say(data: bytes) -> None:
    try:
        value = decode(data, where="here")
    except TranscriptError:
        return
    assert encode(value) == data


@given(values, st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_encoding_is_refused_or_says_something_else(
    value: object, data: st.DataObject
) -> None:
    encoded = bytearray(encode(value))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255))
    try:
        again = decode(bytes(encoded), where="here")
    except TranscriptError:
        return
    assert encode(again) == bytes(encoded)


@given(values)
@settings(max_examples=100, deadline=None)
def test_every_truncation_is_refused(value: object) -> None:
    data = encode(value)
    for size in range(max(0, len(data) - 60), len(data)):
        refused(data[:size])
    assert "after its end" in refused(data + b"\x00")


def test_every_half_and_the_edges_of_single_are_read_as_the_library_writes_them() -> None:
    for bits in range(1 << 16):
        data = b"\xf9" + bits.to_bytes(2, "big")
        value = struct.unpack(">e", data[1:])[0]
        if math.isnan(value):
            refused(data)
            continue
        assert repr(decode(data, where="here")) == repr(value)
        refused(b"\xfa" + struct.pack(">f", value))
        refused(b"\xfb" + struct.pack(">d", value))
    for value in (2.0**-149, 2.0**-126, 3.4028234663852886e38, 65520.0, 1 + 2.0**-23):
        assert encode(value)[0] == 0xFA
        assert decode(encode(value), where="here") == value
        refused(b"\xfb" + struct.pack(">d", value))
    for value in (2.0**-150, 3.5e38, 1 + 2.0**-24, 5e-324, 1.7976931348623157e308):
        assert encode(value)[0] == 0xFB
        assert decode(encode(value), where="here") == value


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("", "cut off"),
        ("1817", "shortest"),
        ("1900ff", "shortest"),
        ("1a0000ffff", "shortest"),
        ("1b00000000ffffffff", "shortest"),
        ("3b8000000000000000", "64 bits"),
        ("581700", "shortest"),
        ("5f40ff", "indefinite"),
        ("1c", "indefinite or reserved"),
        ("6180", "UTF-8"),
        ("63eda080", "UTF-8"),  # a surrogate
        ("62c080", "UTF-8"),  # overlong
        ("a10000", "not text"),
        ("a1f600", "not text"),
        ("a2616200616100", "rising"),
        ("a2616100616100", "rising"),
        ("a262616100616200", "rising"),
        ("f97e00", "NaN"),
        ("fa7fc00001", "NaN"),
        ("fb7ff8000000000000", "NaN"),
        ("f7", "simple value"),
        ("e0", "simple value"),
        ("f8ff", "simple value"),
        ("ff", "simple value"),
        ("c000", "tag"),
        ("d9d9f700", "tag"),
        ("0000", "after its end at 1"),
    ],
)
def test_the_problem_is_named(data: str, problem: str) -> None:
    assert problem in refused(bytes.fromhex(data))


def test_the_deepest_value_is_read_and_no_deeper_one() -> None:
    deepest = b"\x81" * MAX_DEPTH + b"\xf6"
    assert encode(decode(deepest, where="here")) == deepest
    assert "nested deeper than" in refused(b"\x81" + deepest)


def test_a_segment_of_four_mebibytes_is_read_in_no_time() -> None:
    leaf = {"type": "leaf", "step": 0, "loss": 0.1, "rounding": None, "batch": bytes(32)}
    leaf |= {"state": bytes(32), "previous": bytes(32)}
    data = encode([dict(leaf, step=step) for step in range(24_000)])
    began = time.process_time()
    decode(data, where="here")
    assert time.process_time() - began < 5  # seconds; 0.3 on a quiet machine


@given(st.binary(max_size=3000), st.integers(1, 500))
@settings(max_examples=50, deadline=None)
def test_a_digest_in_parts_is_the_digest_of_the_whole(data: bytes, size: int) -> None:
    view = memoryview(data)
    parts = (view[start : start + size] for start in range(0, len(data), size))
    assert digest_parts("example", parts) == digest("example", data)


@pytest.mark.parametrize(
    ("left", "right"),
    [(1, 1.0), (1, True), (0.0, -0.0), (0, False), ([1], [1.0]), ({"a": [0.0]}, {"a": [-0.0]})],
)
def test_values_that_python_takes_for_equal_are_told_apart(left: Value, right: Value) -> None:
    assert left == right
    assert not same(left, right)
    assert same(left, left)


def test_the_order_of_a_map_does_not_count() -> None:
    assert same({"a": 1, "b": 2}, {"b": 2, "a": 1})
