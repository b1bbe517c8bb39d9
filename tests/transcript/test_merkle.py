from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veritrain.errors import UsageError, VerificationError
from veritrain.transcript import merkle

# Inputs and roots of the Certificate Transparency reference tests.
CT_INPUTS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def slow_root(entries: list[bytes]) -> bytes:
    """The recursive definition of RFC 9162 section 2.1.1, word for word."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    split = 1
    while split * 2 < len(entries):
        split *= 2
    left, right = slow_root(entries[:split]), slow_root(entries[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def numbered(size: int) -> list[bytes]:
    return [b"entry %d" % index for index in range(size)]


@pytest.mark.parametrize("size", range(9))
def test_roots_of_the_reference_tests(size: int) -> None:
    assert merkle.root(CT_INPUTS[:size]).hex() == CT_ROOTS[size]


@given(st.lists(st.binary(max_size=8), max_size=70))
@settings(max_examples=60, deadline=None)
def test_root_and_frontier_follow_the_definition(entries: list[bytes]) -> None:
    frontier = merkle.Frontier()
    for index, entry in enumerate(entries):
        assert frontier.root() == slow_root(entries[:index])
        frontier.append(entry)
    assert frontier.size == len(entries)
    assert frontier.root() == merkle.root(entries) == slow_root(entries)


@pytest.mark.parametrize("size", [*range(1, 20), 31, 32, 33, 64, 65])
def test_every_inclusion_proof_verifies_and_only_for_its_entry(size: int) -> None:
    entries = numbered(size)
    root = merkle.root(entries)
    for index in range(size):
        proof = merkle.inclusion_proof(entries, index)
        merkle.verify_inclusion(entries[index], index, size, proof, root)
        with pytest.raises(VerificationError, match="expected root"):
            merkle.verify_inclusion(b"other", index, size, proof, root)
        with pytest.raises(VerificationError, match="wrong size: expected"):
            merkle.verify_inclusion(entries[index], index, size, (*proof, bytes(32)), root)
        if size > 1:
            with pytest.raises(VerificationError):
                merkle.verify_inclusion(entries[index], (index + 1) % size, size, proof, root)
            with pytest.raises(VerificationError, match="wrong size: expected"):
                merkle.verify_inclusion(entries[index], index, size, proof[:-1], root)


@pytest.mark.parametrize("size", [*range(20), 33])
def test_a_kept_tree_gives_the_same_roots_and_proofs(size: int) -> None:
    entries = numbered(size)
    tree = merkle.Tree(iter(entries))
    assert (tree.size, tree.root) == (size, slow_root(entries))
    for index in range(size):
        merkle.verify_inclusion(entries[index], index, size, tree.proof(index), tree.root)
    for index in (-1, size):
        with pytest.raises(UsageError, match="outside"):
            tree.proof(index)


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_outside_the_tree_is_refused(index: int) -> None:
    entries = numbered(3)
    with pytest.raises(UsageError, match="outside"):
        merkle.inclusion_proof(entries, index)
    with pytest.raises(VerificationError, match="outside a tree of 3"):
        merkle.verify_inclusion(entries[0], index, 3, (), merkle.root(entries))


def test_an_inner_node_is_not_an_entry() -> None:
    entries = numbered(4)
    left = merkle.root(entries[:2])
    right = merkle.root(entries[2:])
    with pytest.raises(VerificationError):
        merkle.verify_inclusion(left, 0, 2, [right], merkle.root(entries))


def test_a_node_of_another_size_is_refused() -> None:
    entries = numbered(2)
    with pytest.raises(VerificationError, match="nodes of 32 bytes, got 31"):
        merkle.verify_inclusion(entries[0], 0, 2, [bytes(31)], merkle.root(entries))


def test_every_consistency_proof_up_to_33_verifies_and_breaks_when_changed() -> None:
    entries = numbered(33)
    roots = [merkle.root(entries[:size]) for size in range(34)]
    for new in range(1, 34):
        for old in range(1, new + 1):
            proof = merkle.consistency_proof(entries[:new], old)
            merkle.verify_consistency(old, roots[old], new, roots[new], proof)
            for place in range(len(proof)):
                forged = [*proof]
                forged[place] = bytes(32)
                with pytest.raises(VerificationError, match="expected root"):
                    merkle.verify_consistency(old, roots[old], new, roots[new], forged)
            with pytest.raises(VerificationError, match="expected root"):
                merkle.verify_consistency(old, roots[old - 1], new, roots[new], proof)
            with pytest.raises(VerificationError, match="expected root"):
                merkle.verify_consistency(old, roots[old], new, roots[new - 1], proof)
            with pytest.raises(VerificationError, match="wrong size"):
                merkle.verify_consistency(old, roots[old], new, roots[new], [*proof, bytes(32)])


def test_consistency_lengths_are_those_of_the_rfc_example() -> None:
    # RFC 9162 section 2.1.5: PROOF(3, D[7]) = [c, d, g, l], PROOF(4, D[7]) = [l],
    # PROOF(6, D[7]) = [i, j, k].
    lengths = {old: len(merkle.consistency_proof(numbered(7), old)) for old in (3, 4, 6)}
    assert lengths == {3: 4, 4: 1, 6: 3}


@pytest.mark.parametrize(("old", "new"), [(0, 3), (4, 3), (-1, 3)])
def test_consistency_with_nothing_or_with_less_is_refused(old: int, new: int) -> None:
    with pytest.raises(VerificationError, match="expected an old size"):
        merkle.verify_consistency(old, bytes(32), new, bytes(32), [])
    with pytest.raises(UsageError, match="old size"):
        merkle.consistency_proof(numbered(new), old)
