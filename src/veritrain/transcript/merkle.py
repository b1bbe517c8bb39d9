"""Merkle trees of RFC 9162 section 2.1 with SHA-256: roots, inclusion and consistency proofs.

Entries are byte strings. Leaf and node hashes have different prefixes (section 2.1.1), so an inner
node can never pass for an entry; a proof's length follows from the tree's size and is checked
before anything is hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Self

from veritrain.encoding import DIGEST_BYTES, Digest
from veritrain.errors import UsageError, VerificationError

_LEAF_PREFIX = b"\x00"  # RFC 9162 section 2.1.1
_NODE_PREFIX = b"\x01"


def leaf_hash(entry: bytes) -> Digest:
    """Hash of one entry."""
    return hashlib.sha256(_LEAF_PREFIX + entry).digest()


def root(entries: Sequence[bytes]) -> Digest:
    """Merkle tree hash of `entries` in their order; of no entries, SHA-256 of nothing."""
    return _root([leaf_hash(entry) for entry in entries])


class Frontier:
    """The tree over entries that come one by one, in O(log n) memory."""

    def __init__(self) -> None:
        self.size = 0
        self.peaks: list[Digest] = []  # roots of the perfect subtrees, the largest first

    @classmethod
    def resumed(cls, size: int, peaks: Sequence[Digest]) -> Self:
        """The tree over `size` entries that has these peaks.

        Raises:
            UsageError: a tree of that size has another number of them.
        """
        if len(peaks) != size.bit_count():
            raise UsageError(f"expected {size.bit_count()} peaks, got {len(peaks)}")
        made = cls()
        made.size, made.peaks = size, list(peaks)
        return made

    def append(self, entry: bytes) -> None:
        """Add the next entry."""
        node = leaf_hash(entry)
        size = self.size
        while size & 1:
            node = _node_hash(self.peaks.pop(), node)
            size >>= 1
        self.peaks.append(node)
        self.size += 1

    def root(self) -> Digest:
        """Merkle tree hash of all entries so far."""
        if not self.peaks:
            return _root([])
        node = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            node = _node_hash(peak, node)
        return node


class Tree:
    """The whole tree over `entries`, every level kept, for those who make many proofs."""

    def __init__(self, entries: Iterable[bytes]) -> None:
        level = [leaf_hash(entry) for entry in entries]
        self.size = len(level)
        self._levels = [level]
        while len(level) > 1:
            level = _parents(level)
            self._levels.append(level)

    @property
    def root(self) -> Digest:
        """Merkle tree hash of all entries."""
        return _root(self._levels[-1])

    def proof(self, index: int) -> tuple[Digest, ...]:
        """Sibling hashes from entry `index` up to the root (RFC 9162 section 2.1.3.1).

        Raises:
            UsageError: `index` is outside the tree.
        """
        if not 0 <= index < self.size:
            raise UsageError(f"entry {index} is outside a tree of {self.size}")
        siblings = [(level, (index >> height) ^ 1) for height, level in enumerate(self._levels)]
        # The last node of an odd level has no sibling and moves up; nor has the root.
        return tuple(level[place] for level, place in siblings if place < len(level))


def inclusion_proof(entries: Sequence[bytes], index: int) -> tuple[Digest, ...]:
    """`Tree.proof` of a tree that is needed once.

    Raises:
        UsageError: `index` is outside the tree.
    """
    return Tree(entries).proof(index)


def verify_inclusion(
    entry: bytes, index: int, size: int, proof: Sequence[Digest], root: Digest
) -> None:
    """Check that `entry` is number `index` of the `size` entries under `root`.

    Source: RFC 9162 section 2.1.3.2.

    Raises:
        VerificationError: index outside the tree, wrong proof length, or root mismatch.
    """
    if not 0 <= index < size:
        raise VerificationError(f"inclusion proof: entry {index} is outside a tree of {size}")
    sides = _inclusion_sides(index, size)
    _check_proof("inclusion", proof, len(sides))
    node = leaf_hash(entry)
    for sibling_is_left, sibling in zip(sides, proof, strict=True):
        node = _node_hash(sibling, node) if sibling_is_left else _node_hash(node, sibling)
    _check_root("inclusion", root, node)


def consistency_proof(entries: Sequence[bytes], old_size: int) -> tuple[Digest, ...]:
    """Proof that the first `old_size` entries are a prefix of all (RFC 9162 section 2.1.4.1).

    Raises:
        UsageError: `old_size` is not from 1 to the number of entries.
    """
    if not 0 < old_size <= len(entries):
        raise UsageError(f"old size: expected 1 to {len(entries)}, got {old_size}")
    return tuple(_subproof([leaf_hash(entry) for entry in entries], old_size, known=True))


def verify_consistency(
    old_size: int, old_root: Digest, new_size: int, new_root: Digest, proof: Sequence[Digest]
) -> None:
    """Check that the tree under `old_root` is a prefix of the one under `new_root`.

    Source: RFC 9162 section 2.1.4.2. An empty old tree is refused: it would prove nothing.

    Raises:
        VerificationError: sizes out of order, wrong proof length, or a root mismatch.
    """
    if not 0 < old_size <= new_size:
        raise VerificationError(
            f"consistency proof: expected an old size from 1 to {new_size}, got {old_size}"
        )
    if old_size == new_size:
        _check_proof("consistency", proof, 0)
        _check_root("consistency", old_root, new_root)
        return
    # The path starts at the root of the last perfect subtree of the old tree; where that is the
    # whole old tree, the verifier knows it already and the proof leaves it out.
    shift = ((old_size & -old_size).bit_length()) - 1
    index, last = (old_size - 1) >> shift, (new_size - 1) >> shift
    sides = _inclusion_sides(index, last + 1)
    is_whole = old_size & (old_size - 1) == 0
    _check_proof("consistency", proof, len(sides) + (0 if is_whole else 1))
    path = list(proof) if not is_whole else [old_root, *proof]
    old = new = path[0]
    for sibling_is_left, sibling in zip(sides, path[1:], strict=True):
        if sibling_is_left:
            old, new = _node_hash(sibling, old), _node_hash(sibling, new)
        else:
            new = _node_hash(new, sibling)
    _check_root("consistency of the old tree", old_root, old)
    _check_root("consistency of the new tree", new_root, new)


def _node_hash(left: Digest, right: Digest) -> Digest:
    return hashlib.sha256(_NODE_PREFIX + left + right).digest()


def _parents(level: list[Digest]) -> list[Digest]:
    # Pairing neighbours and moving a last odd node up gives the RFC's recursive split at the
    # largest power of two below n: that split only ever cuts off perfect subtrees on the left.
    parents = [
        _node_hash(left, right) for left, right in zip(level[::2], level[1::2], strict=False)
    ]
    return parents if len(level) % 2 == 0 else [*parents, level[-1]]


def _root(level: list[Digest]) -> Digest:
    if not level:
        return hashlib.sha256(b"").digest()
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def _inclusion_sides(index: int, size: int) -> list[bool]:
    """For each sibling on the way up: is it the left one?"""
    sides: list[bool] = []
    last = size - 1
    while last > 0:
        if index & 1:
            sides.append(True)
        elif index < last:
            sides.append(False)
        index >>= 1
        last >>= 1
    return sides


def _subproof(level: list[Digest], old_size: int, *, known: bool) -> list[Digest]:
    """SUBPROOF of RFC 9162 section 2.1.4.1; `known`: the verifier has this subtree's hash."""
    size = len(level)
    if old_size == size:
        return [] if known else [_root(level)]
    split = 1 << ((size - 1).bit_length() - 1)  # largest power of two below size
    if old_size <= split:
        return [*_subproof(level[:split], old_size, known=known), _root(level[split:])]
    return [*_subproof(level[split:], old_size - split, known=False), _root(level[:split])]


def _check_proof(kind: str, proof: Sequence[Digest], expected: int) -> None:
    if len(proof) != expected:
        raise VerificationError(
            f"{kind} proof has wrong size: expected {expected}, got {len(proof)}"
        )
    for node in proof:
        if len(node) != DIGEST_BYTES:
            raise VerificationError(
                f"{kind} proof: expected nodes of {DIGEST_BYTES} bytes, got {len(node)}"
            )


def _check_root(kind: str, expected: Digest, got: Digest) -> None:
    if expected != got:
        raise VerificationError(f"{kind} proof: expected root {expected.hex()}, got {got.hex()}")
