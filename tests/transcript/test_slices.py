"""Slices: every opened byte leads to the digest, and nothing else is accepted."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import blake3
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from veritrain.encoding import digest, encode
from veritrain.errors import TranscriptError, UsageError, VerificationError
from veritrain.transcript import chaining
from veritrain.transcript.slices import (
    CHUNK_BYTES,
    MAX_SLICES_BYTES,
    Slices,
    SliceTree,
    opened_size,
    verify,
    verify_groups,
)

KIB = 1024
EDGES = sorted(
    {
        max(0, edge + shift)
        for edge in (0, 64, 128, *(KIB * n for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 64)))
        for shift in (-1, 0, 1)
    }
)
sizes = st.sampled_from(EDGES) | st.integers(0, 70 * KIB)


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{seed} {size}").randbytes(size)


@st.composite
def contents_with_ranges(draw, sizes=sizes):
    total = draw(sizes)
    place = st.integers(0, total) | st.sampled_from([0, total])
    pairs = draw(st.lists(st.tuples(place, place), max_size=6))
    return content(total), [(min(pair), max(pair)) for pair in pairs]


# The oracle, from sections 2.1 to 2.6 of the paper.

IV = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB,
    0x5BE0CD19]  # fmt: skip
PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
COLUMNS = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
DIAGONALS = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
START, END, PARENT, ROOT, CONTEXT, MATERIAL = 1, 2, 4, 8, 32, 64


def slow_compress(value, block, counter, flags):
    words = [int.from_bytes(block[i : i + 4].ljust(4, b"\0"), "little") for i in range(0, 64, 4)]
    state = [*value, *IV[:4], counter % 2**32, counter >> 32, len(block), flags]
    for _ in range(7):
        for number, (a, b, c, d) in enumerate(COLUMNS + DIAGONALS):
            for word, left, right in ((0, 16, 12), (1, 8, 7)):
                state[a] = (state[a] + state[b] + words[2 * number + word]) % 2**32
                state[d] = rotated(state[d] ^ state[a], left)
                state[c] = (state[c] + state[d]) % 2**32
                state[b] = rotated(state[b] ^ state[c], right)
        words = [words[place] for place in PERMUTATION]
    return [low ^ high for low, high in zip(state[:8], state[8:], strict=True)]


def rotated(word, right):
    return (word >> right | word << 32 - right) % 2**32


def slow_chunk(key, flags, chunk, number, root=0):
    blocks = [chunk[place : place + 64] for place in range(0, len(chunk), 64)] or [b""]
    value = key
    for place, block in enumerate(blocks):
        ends = (START if place == 0 else 0) | (END | root if place == len(blocks) - 1 else 0)
        value = slow_compress(value, block, number, flags | ends)
    return value


def slow_tree(key, flags, data, first=0, root=ROOT):
    """The value of the subtree over `data`, whose first chunk has the number `first`."""
    if len(data) <= CHUNK_BYTES:
        return slow_chunk(key, flags, data, first, root)
    left = 1
    while 2 * left * CHUNK_BYTES < len(data):
        left *= 2
    cut = left * CHUNK_BYTES
    values = [
        *slow_tree(key, flags, data[:cut], first, 0),
        *slow_tree(key, flags, data[cut:], first + left, 0),
    ]
    block = b"".join(word.to_bytes(4, "little") for word in values)
    return slow_compress(key, block, 0, flags | PARENT | root)


def slow_key(domain):
    return slow_tree(IV, CONTEXT, f"veritrain v1 {domain}".encode())


def in_bytes(value):
    return b"".join(word.to_bytes(4, "little") for word in value)


def test_the_oracle_is_blake3():
    for size in (0, 1, 63, 64, 65, 1024, 1025, 2048, 3000, 5121):
        data = content(size)
        assert in_bytes(slow_tree(IV, 0, data)) == blake3.blake3(data).digest()
        assert in_bytes(slow_tree(slow_key("tensor"), MATERIAL, data)) == digest("tensor", data)


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 3072, 5 * KIB + 7, 8 * KIB])
def test_groups_are_the_values_of_the_oracle(size):
    data, key = content(size), slow_key("tensor")
    tree = SliceTree("tensor", data)
    for chunks in (1, 2, 4, 8, 16):
        step = chunks * CHUNK_BYTES
        if size <= step:
            assert tree.groups(chunks) == [digest("tensor", data)]
            continue
        assert tree.groups(chunks) == [
            in_bytes(slow_tree(key, MATERIAL, data[i : i + step], i // CHUNK_BYTES, 0))
            for i in range(0, size, step)
        ]


def test_a_counter_of_more_than_32_bits():
    mode, data = chaining.mode("tensor"), content(CHUNK_BYTES)
    for number in (2**32 - 1, 2**32, 2**52 + 12345):
        array = np.frombuffer(data, np.uint8)
        found = chaining.chunk_values(mode, array, np.array([number]), is_root=False)
        assert found[0].tolist() == slow_chunk(slow_key("tensor"), MATERIAL, data, number)


# The digest.


@pytest.mark.parametrize("size", EDGES)
def test_the_root_is_the_digest(size):
    assert SliceTree("tensor", content(size)).digest == digest("tensor", content(size))


@settings(max_examples=60, deadline=None)
@given(sizes, st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_the_root_is_the_digest_in_every_domain(size, domain):
    assert SliceTree(domain, content(size)).digest == digest(domain, content(size))


def test_a_domain_of_more_than_a_chunk():
    assert SliceTree("d" * 5000, b"data").digest == digest("d" * 5000, b"data")


@pytest.mark.parametrize("size", [(1 << 21) + 1, (3 << 20) - 17, 5 << 20])
def test_the_root_of_some_mib(size):
    data = content(size)
    assert SliceTree("tensor", data).digest == digest("tensor", data)


@pytest.mark.parametrize("shift", range(5))
def test_buffers_of_any_kind(shift):
    """Read-only or not, on a word's border or not, of other items than bytes, empty."""
    data = bytearray(content(4 * KIB + 8))
    expected = digest("tensor", bytes(data[shift:]))
    assert SliceTree("tensor", memoryview(data)[shift:]).digest == expected
    assert SliceTree("tensor", memoryview(bytes(data))[shift:]).digest == expected
    numbers = np.arange(1000.0)
    assert SliceTree("tensor", numbers.data).digest == digest("tensor", numbers.tobytes())
    assert SliceTree("tensor", np.empty(0, np.uint8).data).digest == digest("tensor", b"")


# Slices.


@given(contents_with_ranges())
def test_the_size_of_slices_is_known_before_they_are_made(given):
    data, ranges = given
    made = SliceTree("tensor", data).open(ranges).to_value()
    num_bytes, num_values = opened_size(len(data), ranges)
    found = len(encode(made))
    assert found <= num_bytes <= found + 1300 + 20 * len(made["runs"])
    assert count(made) <= num_values


def count(value):
    """CBOR values, keys of maps among them."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(count, value.values()))
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


@settings(max_examples=200, deadline=None)
@given(contents_with_ranges())
@example((b"", [(0, 0)]))
@example((b"", []))
@example((content(KIB), [(0, KIB)]))
@example((content(64 * KIB), [(0, 64 * KIB)]))
@example((content(5000), [(0, 1), (4999, 5000)]))
def test_ranges_are_opened_and_read(given):
    data, ranges = given
    tree = SliceTree("tensor", data)
    slices = Slices.from_bytes(tree.open(ranges).to_bytes(), where="here")
    opened = verify("tensor", digest("tensor", data), len(data), slices)
    assert opened.total == len(data)
    for start, stop in ranges:
        assert opened.read(start, stop) == data[start:stop]
    chunks = {n for start, stop in ranges if start < stop for n in range(start // KIB,
        -(-stop // KIB))}  # fmt: skip
    last = max(1, -(-len(data) // KIB)) - 1
    assert {n for first, count in slices.runs for n in range(first, first + count)} == (
        chunks or {last}
    )
    for number in range(last + 1):
        start, stop = number * KIB, min((number + 1) * KIB, len(data))
        if start == stop or number in (chunks or {last}):
            assert opened.read(start, stop) == data[start:stop]
        else:
            with pytest.raises(VerificationError, match="not all opened"):
                opened.read(start, stop)


@pytest.mark.parametrize("ranges", [[(-1, 2)], [(2, 1)], [(0, 5001)], [(0, 1), (6000, 6000)]])
def test_ranges_outside_are_refused(ranges):
    with pytest.raises(UsageError, match="outside a content of 5000 bytes"):
        SliceTree("tensor", content(5000)).open(ranges)


def test_nothing_else_is_read():
    data = content(9 * KIB)
    opened = verify(
        "tensor",
        digest("tensor", data),
        9 * KIB,
        SliceTree("tensor", data).open([(KIB, 2 * KIB), (4 * KIB, 6 * KIB)]),
    )
    assert opened.read(KIB + 5, 2 * KIB) == data[KIB + 5 : 2 * KIB]
    assert opened.read(5 * KIB - 1, 6 * KIB) == data[5 * KIB - 1 : 6 * KIB]
    assert opened.read(3 * KIB, 3 * KIB) == b""
    for start, stop in (
        (0, 1),
        (KIB - 1, KIB + 1),
        (KIB, 2 * KIB + 1),
        (KIB, 5 * KIB),
        (8500, 9216),
    ):
        with pytest.raises(VerificationError, match="not all opened"):
            opened.read(start, stop)
    for start, stop in ((-1, 1), (2, 1), (0, 9 * KIB + 1), (9 * KIB + 1, 9 * KIB + 1)):
        with pytest.raises(VerificationError, match="outside a content of 9216"):
            opened.read(start, stop)


def test_the_largest_subtrees_stand_for_what_is_not_opened():
    """Of eleven chunks the fifth: 0-3, then 5, then 6-7, then 8-10, from left to right."""
    data, key = content(11 * KIB), slow_key("tensor")
    slices = SliceTree("tensor", data).open([(4 * KIB, 4 * KIB + 1)])
    assert slices.proof == tuple(
        in_bytes(slow_tree(key, MATERIAL, data[a * KIB : b * KIB], a, 0))
        for a, b in ((0, 4), (5, 6), (6, 8), (8, 11))
    )


@pytest.mark.parametrize(
    ("size", "ranges"),
    [(1, [(0, 1)]), (70, []), (1500, [(1400, 1500)]), (5 * KIB, [(0, 5), (3000, 3001)])],
)
def test_every_changed_bit_is_found(size, ranges):
    """In the encoded slices: the bytes are refused, or the slices that they are."""
    data = content(size)
    root, encoded = digest("tensor", data), SliceTree("tensor", data).open(ranges).to_bytes()
    verify("tensor", root, size, Slices.from_bytes(encoded, where="here"))
    for bit in range(8 * len(encoded)):
        changed = bytearray(encoded)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((TranscriptError, VerificationError)):
            verify("tensor", root, size, Slices.from_bytes(bytes(changed), where="here"))


@settings(max_examples=60, deadline=None)
@given(contents_with_ranges(), st.randoms())
def test_a_changed_bit_of_what_is_opened_is_found(given, chosen):
    data, ranges = given
    root, slices = digest("tensor", data), SliceTree("tensor", data).open(ranges)
    if slices.data:
        changed = bytearray(slices.data)
        changed[chosen.randrange(len(changed))] ^= 1 << chosen.randrange(8)
        with pytest.raises(VerificationError, match="digest of slices"):
            verify("tensor", root, len(data), replace(slices, data=bytes(changed)))
    for place in range(len(slices.proof)):
        node = bytearray(slices.proof[place])
        node[chosen.randrange(32)] ^= 1 << chosen.randrange(8)
        proof = (*slices.proof[:place], bytes(node), *slices.proof[place + 1 :])
        with pytest.raises(VerificationError, match="digest of slices"):
            verify("tensor", root, len(data), replace(slices, proof=proof))


def test_another_domain_or_digest_is_found():
    data = content(5000)
    slices = SliceTree("tensor", data).open([(0, 10)])
    with pytest.raises(VerificationError, match="digest of slices: expected"):
        verify("leaf", digest("tensor", data), 5000, slices)
    with pytest.raises(VerificationError, match="digest of slices: expected"):
        verify("tensor", digest("leaf", data), 5000, slices)


@pytest.mark.parametrize("size", [0, 1, 1024, 3000, 9 * KIB])
def test_wrong_totals(size):
    """Refused where they are not what the caller expects, and where the last chunk is opened."""
    data = content(size)
    root, slices = digest("tensor", data), SliceTree("tensor", data).open([])
    for total in {0, 1, size - 1, size + 1, size + 1024, 2 * size, 2**63 - 1} - {size, -1}:
        with pytest.raises(VerificationError, match=f"expected a total of {total} bytes"):
            verify("tensor", root, total, slices)
        with pytest.raises((UsageError, VerificationError)):
            verify("tensor", root, total, replace(slices, total=total))
    for shift in (-1, 1):  # the last chunk as a shorter and as a longer one
        last = slices.data[:-1] if shift < 0 else slices.data + b"\0"
        if size + shift < 0 or -(-(size + shift) // KIB) != max(1, -(-size // KIB)):
            continue
        with pytest.raises(VerificationError, match="digest of slices"):
            verify("tensor", root, size + shift, replace(slices, total=size + shift, data=last))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_the_last_chunk_binds_the_number_of_chunks(honest, claimed):
    """The nodes of the honest tree's right edge do not pass for that of another shape."""
    if honest == claimed:
        return
    data = content(honest * KIB)
    tree = SliceTree("tensor", data)
    proof = tree.open([]).proof
    shape = SliceTree("tensor", content(claimed * KIB)).open([])
    nodes = [*proof, *tree.groups(1), *tree.groups(2)][: len(shape.proof)]
    forged = replace(shape, data=data[-KIB:], proof=(*nodes, *[bytes(32)] * 9)[: len(shape.proof)])
    with pytest.raises(VerificationError, match="digest of slices"):
        verify("tensor", tree.digest, claimed * KIB, forged)


def test_a_shape_that_is_not_the_contents_shows_no_other_byte():
    """What `verify` documents: three chunks pass for four, and what is opened is still true."""
    data = content(3 * KIB)
    slices = replace(SliceTree("tensor", data).open([(0, 1)]), total=4 * KIB)
    assert verify("tensor", digest("tensor", data), 4 * KIB, slices).read(0, KIB) == data[:KIB]
    with pytest.raises(VerificationError, match="digest of slices"):
        verify(
            "tensor",
            digest("tensor", data),
            4 * KIB,
            replace(slices, data=bytes(KIB)),
        )


# Hostile slices.


def good() -> Slices:
    return SliceTree("tensor", content(9 * KIB)).open([(0, 1), (3 * KIB, 5 * KIB)])


@pytest.mark.parametrize("change", [-1, 1, 2, 1000])
def test_the_number_of_proof_nodes_is_checked(change):
    slices = good()
    proof = (slices.proof + slices.proof[:1] * 1000)[: len(slices.proof) + change]
    message = f"wrong size: expected {len(slices.proof)}, got {len(proof)}"
    with pytest.raises(VerificationError, match=message):
        verify("tensor", digest("tensor", content(9 * KIB)), 9 * KIB, replace(slices, proof=proof))


@pytest.mark.parametrize(
    "changes",
    [
        {"runs": ()},
        {"runs": (), "data": b""},
        {"runs": ((0, 1), (0, 1), (3, 1))},  # twice
        {"runs": ((3, 2), (0, 1))},  # unsorted
        {"runs": ((0, 2), (1, 1))},  # overlapping
        {"runs": ((0, 1), (1, 2))},  # without a gap
        {"runs": ((0, 0), (3, 3))},
        {"runs": ((0, -1), (3, 4))},
        {"runs": ((-1, 1), (3, 2))},
        {"runs": ((0, 1), (8, 2))},  # past the end
        {"runs": ((0, 1), (9, 2))},
        {"runs": ((0, 1), (2**70, 2))},
        {"runs": ((0, 1), (3, 2**70))},
        {"runs": ((0, 1), (3, 2.0))},
        {"runs": ((0, True), (3, 2))},
        {"runs": ((0, 1), (2, 1), (4, 1), (6, 1))},  # more than chunks
        {"runs": ((0, 1), (7, 2))},  # the last one is shorter
        {"data": b""},
        {"data": bytes(3 * KIB + 1)},
        {"data": bytes(3 * KIB - 1)},
        {"data": "text"},
        {"total": -1},
        {"total": 0},
        {"total": 4 * KIB},
        {"total": 2**63},
        {"total": 9.0 * KIB},
        {"total": True},
        {"proof": (b"short",)},
        {"proof": (None,)},
    ],
)
def test_malformed_slices_do_not_exist(changes):
    slices = SliceTree("tensor", content(9 * KIB - 1)).open([(0, 1), (3 * KIB, 5 * KIB)])
    with pytest.raises(UsageError):
        replace(slices, **changes)
    values = {**slices.to_value(), **changes}
    if "runs" in changes:
        values["runs"] = [list(run) for run in changes["runs"] if max(run) < 2**64]
    if "proof" in changes:
        values["proof"] = list(changes["proof"])
    with pytest.raises(TranscriptError, match="^here: "):
        Slices.from_bytes(encode(values), where="here")


@pytest.mark.parametrize(
    "changes",
    [
        {"runs": [[0, 1], [3]]},
        {"runs": [[0, 1], [3, 2, 0]]},
        {"runs": [[0, 1], 3]},
        {"runs": {}},
        {"runs": None},
        {"proof": b""},
        {"proof": None},
        {"proof": [1]},
        {"more": 1},
        {"type": "slice"},
    ],
)
def test_other_values_are_refused(changes):
    with pytest.raises(TranscriptError, match="^here: "):
        Slices.from_bytes(encode({**good().to_value(), **changes}), where="here")


def test_huge_totals_cost_nothing():
    """One chunk of 2^63 bytes: a path of 53 nodes."""
    begun = time.process_time()
    slices = replace(good(), total=2**63 - 1, proof=())
    with pytest.raises(VerificationError, match="wrong size: expected 5[0-9], got 0"):
        verify("tensor", bytes(32), 2**63 - 1, slices)
    expected = len(slices.proof) + 50
    for count in range(expected, expected + 9):
        with pytest.raises(VerificationError):
            verify("tensor", bytes(32), 2**63 - 1, replace(slices, proof=(bytes(32),) * count))
    with pytest.raises(VerificationError, match="groups: expected 9007199254740992 values, got 0"):
        verify_groups("tensor", bytes(32), 2**63 - 1, 1, [])
    assert time.process_time() - begun < 5


def test_the_record_is_bounded():
    size = MAX_SLICES_BYTES
    slices = Slices(total=size, runs=((0, size // KIB),), data=bytes(size), proof=())
    with pytest.raises(UsageError, match=f"expected at most {size} bytes"):
        slices.to_bytes()
    with pytest.raises(TranscriptError, match=f"expected at most {size} bytes"):
        Slices.from_bytes(bytes(size + 1), where="here")


def test_many_runs_take_little_time():
    """Every second chunk of 8 MiB: no quadratic time on either side."""
    data = content(8 << 20)
    tree = SliceTree("tensor", data)
    begun = time.process_time()
    slices = tree.open([(start, start + 1) for start in range(0, len(data), 2 * KIB)])
    opened = verify("tensor", tree.digest, len(data), slices)
    assert opened.read(len(data) - 2 * KIB, len(data) - KIB) == data[-2 * KIB : -KIB]
    assert len(slices.runs) == len(slices.proof) == 4096
    assert time.process_time() - begun < 5


# Groups.


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(0, 8))
def test_groups_lead_to_the_digest(size, power):
    data = content(size)
    tree = SliceTree("tensor", data)
    groups = tree.groups(1 << power)
    assert len(groups) == max(1, -(-size // (KIB << power)))
    verify_groups("tensor", digest("tensor", data), size, 1 << power, groups)
    for wrong in (groups[:-1], [*groups, groups[-1]], [groups[0][:-1], *groups[1:]]):
        with pytest.raises(VerificationError, match="groups: expected"):
            verify_groups("tensor", tree.digest, size, 1 << power, wrong)
    changed = [*groups[:-1], bytes([groups[-1][0] ^ 1]) + groups[-1][1:]]
    with pytest.raises(VerificationError, match="digest of groups"):
        verify_groups("tensor", tree.digest, size, 1 << power, changed)


def test_a_group_of_everything_is_the_digest():
    data = content(3000)
    tree = SliceTree("tensor", data)
    for chunks in (4, 8, 1 << 60):
        assert tree.groups(chunks) == [tree.digest]
        verify_groups("tensor", tree.digest, 3000, chunks, [tree.digest])


@pytest.mark.parametrize("chunks", [0, -1, 3, 6, -4])
def test_groups_are_powers_of_two(chunks):
    tree = SliceTree("tensor", content(9 * KIB))
    with pytest.raises(UsageError, match="power of two"):
        tree.groups(chunks)
    with pytest.raises(UsageError, match="power of two"):
        verify_groups("tensor", tree.digest, 9 * KIB, chunks, tree.groups(1))
