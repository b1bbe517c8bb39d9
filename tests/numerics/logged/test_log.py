"""The rounding log against a slow writer in strings of bits; no bytes do anything but parse or be
refused."""

from __future__ import annotations

import struct
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veritrain.errors import TranscriptError
from veritrain.numerics.logged import log as module
from veritrain.numerics.logged.grid import BLOCK, Rounded
from veritrain.numerics.logged.log import LogReader, LogWriter

seeds = st.integers(0, 2**32 - 1)
edges = st.sampled_from([1, 2, 15, 16, 63, 64, 300, BLOCK - 1, BLOCK, BLOCK + 1])
sizes = edges | st.integers(1, 200)


# The layout


def varint(number: int) -> bytes:
    digits: list[int] = []
    while number or not digits:
        digits.append(number % 128)
        number //= 128
    return bytes([*(digit + 128 for digit in digits[:-1]), digits[-1]])


def bit_string(size: int, places: list[int], up: list[bool]) -> str:
    low = max(0, (size // len(places)).bit_length() - 1) if places else 0
    text, before = "", -1
    for place, upward in zip(places, up, strict=True):
        high, rest = divmod(place - before - 1, 2**low)
        text += f"{upward:d}" + "1" * high + "0" + (f"{rest:0{low}b}" if low else "")
        before = place
    return text


def record(size: int, rounded: Rounded) -> bytes:
    text = bit_string(size, rounded.places.tolist(), rounded.up.tolist())
    text += "0" * (-len(text) % 8)
    return (
        struct.pack("<Q", rounded.checksum)
        + struct.pack(f"<{rounded.sketch.size}H", *rounded.sketch.tolist())
        + varint(rounded.places.size)
        + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    )


def made(size: int, places: np.ndarray, rng: np.random.Generator) -> Rounded:
    return Rounded(
        places=np.array(places, np.int64),
        up=rng.random(len(places)) < 0.5,
        checksum=int(rng.integers(0, 2**64, dtype=np.uint64)),
        sketch=rng.integers(0, 2**16, -(-size // BLOCK)).astype(np.uint16),
    )


def drawn(size: int, seed: int, share: float) -> Rounded:
    rng = np.random.default_rng(seed)
    return made(size, np.flatnonzero(rng.random(size) < share), rng)


def written(records: list[tuple[int, Rounded]]) -> bytes:
    writer = LogWriter()
    for size, rounded in records:
        writer.append(size, rounded)
    return writer.to_bytes()


def same(a: Rounded, b: Rounded) -> None:
    assert a.checksum == b.checksum
    assert (a.places.dtype, a.up.dtype) == (np.int64, np.bool_)
    np.testing.assert_array_equal(a.places, b.places)
    np.testing.assert_array_equal(a.up, b.up)
    np.testing.assert_array_equal(a.sketch, b.sketch)


def round_trip(records: list[tuple[int, Rounded]]) -> None:
    data = written(records)
    assert data == b"".join(record(size, rounded) for size, rounded in records)
    reader = LogReader(data)
    for size, rounded in records:
        same(reader.next(size), rounded)
    reader.finish()


def parsed(data: bytes, sizes: list[int]) -> list[Rounded] | None:
    """What a log says; None where it is refused. A log that is not refused is the only one that
    says it."""
    reader = LogReader(data)
    try:
        records = [reader.next(size) for size in sizes]
        reader.finish()
    except TranscriptError:
        return None
    for size, found in zip(sizes, records, strict=True):
        places = [-1, *found.places.tolist(), size]
        assert all(a < b for a, b in pairwise(places))
    assert written(list(zip(sizes, records, strict=True))) == data
    return records


def only(data: bytes, size: int) -> Rounded:
    """The one record of a log."""
    reader = LogReader(data)
    found = reader.next(size)
    reader.finish()
    return found


def refused(data: bytes, size: int, match: str) -> None:
    """`data` is not one record."""
    with pytest.raises(TranscriptError, match=match):
        only(data, size)


@given(
    st.lists(
        st.tuples(sizes, seeds, st.sampled_from([0.0, 0.001, 0.1, 0.5, 0.97, 1.0])), max_size=4
    )
)
@settings(max_examples=80, deadline=None)
def test_a_log_says_what_was_written(records):
    round_trip([(size, drawn(size, seed, share)) for size, seed, share in records])


@pytest.mark.parametrize("size", [1, 63, BLOCK, BLOCK + 1])
def test_none_one_and_all_entries_make_a_log(size):
    rng = np.random.default_rng(0)
    for places in ([], [0], [size - 1], range(size), range(size - 1), sorted({0, size - 1})):
        round_trip([(size, made(size, np.array(places), rng))])


@given(st.integers(1, 40), st.data())
@settings(max_examples=150, deadline=None)
def test_any_choice_of_places_makes_a_log(size, data):
    places = sorted(data.draw(st.sets(st.integers(0, size - 1))))
    round_trip([(size, made(size, np.array(places), np.random.default_rng(size)))])


def test_the_layout_is_the_documented_one():
    rounded = Rounded(
        places=np.array([2, 9], np.int64),
        up=np.array([True, False]),
        checksum=0x0123456789ABCDEF,
        sketch=np.array([0xBEEF], np.uint16),
    )
    # size 16, count 2: a mean gap of 8, so 3 low bits; gaps 2 and 6: 1 0 010, 0 0 110, and padding
    data = (
        bytes.fromhex("efcdab8967452301") + b"\xef\xbe" + b"\x02" + bytes([0b10010001, 0b10000000])
    )
    assert written([(16, rounded)]) == data
    round_trip([(16, rounded)])


def test_an_empty_tensor_has_a_record():
    round_trip([(0, made(0, np.array([]), np.random.default_rng(0)))])


def test_a_log_takes_about_the_entropy_of_its_entries():
    rounded = drawn(10 * BLOCK, 0, 0.001)
    count = rounded.places.size
    entropy = count * (1 + np.log2(np.e * 1000))
    assert 8 * len(written([(10 * BLOCK, rounded)])) < 1.05 * entropy + 8 * (8 + 20 + 3)


# What is refused

BEFORE = bytes(10)  # checksum and sketch of one block


def packed(text: str) -> bytes:
    text = text.replace(" ", "")
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


@pytest.mark.parametrize("shares", [(0.3, 0.0, 1.0), (1.0, 0.01), (0.0,)])
def test_a_log_that_is_cut_anywhere_is_refused(shares):
    sizes = [40 + i for i in range(len(shares))]
    data = written([(s, drawn(s, s, share)) for s, share in zip(sizes, shares, strict=True)])
    assert parsed(data, sizes) is not None
    for end in range(len(data)):
        assert parsed(data[:end], sizes) is None


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_a_flipped_bit_is_refused_or_makes_another_log(share):
    sizes = [130, 70]
    data = written([(size, drawn(size, size, share)) for size in sizes])
    refusals = 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        refusals += parsed(bytes(flipped), sizes) is None
    assert refusals  # the counts at least


@given(st.binary(max_size=60), st.integers(0, 300))
@settings(max_examples=600, deadline=None)
def test_any_bytes_are_a_log_or_refused(data, size):
    parsed(data, [size])
    parsed(BEFORE[: 8 + 2 * -(-size // BLOCK)] + data, [size])


@given(st.binary(max_size=40), st.integers(1, 60), st.data())
@settings(max_examples=400, deadline=None)
def test_any_entries_after_a_fitting_count_are_a_log_or_refused(data, size, choose):
    count = choose.draw(st.integers(1, size))
    parsed(BEFORE + varint(count) + data, [size])


def test_what_is_read_lies_inside_the_log(monkeypatch):
    """The kernel as plain Python: an index beyond the data is an error there."""
    kernel = module._decode_kernel.py_func
    monkeypatch.setattr(
        module, "_decode_kernel", lambda data, *others: kernel(data.astype(np.int64), *others)
    )
    size = 60
    data = written([(size, drawn(size, 1, 0.4))])
    for end in range(len(data)):
        assert parsed(data[:end], [size]) is None
    for count in (1, 5, 16, size):
        for filling in (b"", b"\xff", b"\xff" * 7, b"\x00", b"\x55" * 3, b"\xaa" * 5, b"\x7f\xff"):
            parsed(BEFORE + varint(count) + filling, [size])


def test_an_empty_log_ends_early():
    refused(b"", 1, "byte 0: ends early")


@pytest.mark.parametrize("end", range(8))
def test_a_checksum_has_eight_bytes(end):
    refused(bytes(end), 0, "ends early")


def test_every_block_has_a_sketch():
    for blocks in (1, 2, 3):
        data = bytes(8 + 2 * blocks + 1)
        LogReader(data).next(blocks * BLOCK)
        refused(data, blocks * BLOCK + 1, "ends early")


@pytest.mark.parametrize("count", [4, 127, 128, 2**32, 2**60, 2**63, 2**64 - 1, 2**64, 2**70])
def test_more_entries_than_the_tensor_has_are_refused(count):
    for size in (1, 3):
        refused(BEFORE + varint(count) + bytes(40), size, f"at most {size} entries")


def test_as_many_entries_as_the_tensor_has_are_not_too_many():
    assert LogReader(BEFORE + varint(3) + bytes(1)).next(3).places.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "count", [b"\x80\x00", b"\x81\x00", b"\x82\x80\x00", b"\x80" * 8 + b"\x00"]
)
def test_a_count_in_a_longer_form_is_refused(count):
    refused(BEFORE + count + bytes(10), 300, "longer than need be")


def test_a_count_without_an_end_is_refused():
    for length in (1, 2, 8, 9):
        refused(BEFORE + b"\x80" * length, 300, "ends early")
    for length in (10, 11, 3000):
        refused(BEFORE + b"\x80" * length, 300, "at most 300 entries")


def test_a_count_is_read_no_further_than_any_count_goes():
    """Nine bytes hold 63 bits, more than any size; a million zeros behind them take no time."""
    for length in (9, 10, 1_000_000):
        data = BEFORE + b"\x80" * length + b"\x00"
        refused(data, 300, f"byte {len(BEFORE) + 10}: expected at most 300 entries")


def test_a_count_beyond_what_the_log_can_hold_takes_no_memory():
    size = 2**24
    data = bytes(8 + 2 * (size // BLOCK)) + varint(size) + bytes(100)
    tracemalloc.start()
    try:
        refused(data, size, "ends early")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_padding_that_is_not_zero_is_refused():
    # size 8, count 1: 3 low bits; 5 bits and 3 of padding
    assert LogReader(BEFORE + b"\x01" + packed("0 0 101 000")).next(8).places.tolist() == [5]
    for padding in ("001", "010", "100", "111"):
        refused(BEFORE + b"\x01" + packed("0 0 101 " + padding), 8, "not of this tensor")


def test_a_gap_beyond_the_tensor_is_refused():
    # size 5, count 1: 2 low bits
    for place, text in (
        (3, "1 0 11 0000"),
        (4, "1 10 00 000"),
        (5, "1 10 01 000"),
        (7, "1 10 11 000"),
    ):
        data = BEFORE + b"\x01" + packed(text)
        if place < 5:
            assert LogReader(data).next(5).places.tolist() == [place]
        else:
            refused(data, 5, "not of this tensor")


def test_a_gap_beyond_what_the_entries_before_left_is_refused():
    # size 4, count 2: 1 low bit; the first entry is at 2, so the other one is at 3
    data = BEFORE + b"\x02" + packed("0 10 0 0 0 0 0")
    assert LogReader(data).next(4).places.tolist() == [2, 3]
    refused(BEFORE + b"\x02" + packed("0 10 0 0 0 1 0"), 4, "not of this tensor")
    refused(BEFORE + b"\x02" + packed("0 10 1 0 0 0 0"), 4, "not of this tensor")


def test_a_gap_that_would_overflow_is_refused():
    """Only for a tensor beyond any memory, but then it would count as a small one."""
    data = np.frombuffer(packed("1 11110" + "0" * 66), np.uint8)
    places, up = np.empty(1, np.int64), np.empty(1, np.bool_)
    assert module._decode_kernel(data, 0, 62, 2**62, places, up) == -1


def test_low_bits_that_end_early_are_refused():
    # size 256, count 1: 8 low bits
    assert LogReader(BEFORE + b"\x01" + packed("1 0 11111111 000000")).next(256).places[0] == 255
    refused(BEFORE + b"\x01" + packed("1 0 111111"), 256, "not of this tensor")


@pytest.mark.parametrize("filling", [b"\xff", b"\xff" * 100])
def test_a_gap_without_an_end_is_refused(filling):
    refused(BEFORE + b"\x01" + filling, 2000, "not of this tensor")


@pytest.mark.parametrize("after", [b"\x00", b"\xff", bytes(11)])
def test_bytes_after_the_last_record_are_refused(after):
    for share in (0.0, 0.4):
        data = written([(50, drawn(50, 3, share))])
        refused(data + after, 50, f"byte {len(data)}: goes on after the step's last tensor")


def test_a_record_too_few_is_refused():
    data = written([(50, drawn(50, 3, 0.4))])
    reader = LogReader(data)
    reader.next(50)
    with pytest.raises(TranscriptError, match=f"byte {len(data)}: ends early"):
        reader.next(50)


def test_a_log_that_goes_on_unread_is_not_finished():
    reader = LogReader(written([(50, drawn(50, seed, 0.4)) for seed in range(2)]))
    reader.next(50)
    with pytest.raises(TranscriptError, match="goes on"):
        reader.finish()


def test_a_log_of_another_tensor_size_is_refused_or_read_as_other_places():
    rounded = drawn(4000, 5, 0.01)
    data = written([(4000, rounded)])
    for size in (1, 40, 1000, 2000, 2 * BLOCK):
        assert parsed(data, [size]) is None
    again = parsed(data, [3999])  # of the same code
    assert again is None or again[0].places.tolist() == rounded.places.tolist()


def test_long_logs_of_ones_are_refused_in_linear_time():
    data = BEFORE + varint(4000) + b"\xff" * 3_000_000
    refused(data, 4000, "not of this tensor")
