"""What a party claims about a list of entries: how many there are, and the root of their tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from veritrain.encoding import Digest
from veritrain.errors import VerificationError
from veritrain.protocols.dispute.messages import Opening, TraceClaim
from veritrain.replay.trace.entry import TraceEntry
from veritrain.transcript.merkle import Tree, verify_inclusion
from veritrain.transcript.records import Leaf


@dataclass(frozen=True, kw_only=True)
class Commitment:
    """A list that can no longer be changed; its entries are opened one by one."""

    size: int
    root: Digest

    def leaf(self, index: int, opening: Opening) -> Leaf:
        """Leaf `index` of a run.

        Raises:
            TranscriptError: the entry is not a leaf.
            VerificationError: it is not at that place, or of another step.
        """
        verify_inclusion(opening.entry, index, self.size, opening.proof, self.root)
        leaf = Leaf.from_bytes(opening.entry, where=f"leaf {index}")
        if leaf.step != index:
            raise VerificationError(f"leaf {index}: expected step {index}, got {leaf.step}")
        return leaf

    def entry(self, index: int, opening: Opening) -> TraceEntry:
        """Entry `index` of a trace.

        Raises:
            TranscriptError: the entry is not one of a trace.
            VerificationError: it is not at that place, or its `index` or `final` is wrong.
        """
        where = f"trace entry {index}"
        verify_inclusion(opening.entry, index, self.size, opening.proof, self.root)
        entry = TraceEntry.from_bytes(opening.entry, where=where)
        if entry.index != index:
            raise VerificationError(f"{where}: expected index {index}, got {entry.index}")
        if entry.final != (index == self.size - 1):
            raise VerificationError(f"{where} of {self.size}: final is {entry.final}")
        return entry


class Entries:
    """A list that a party commits to and opens: encoded leaves, or encoded entries of a trace."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        self._entries = entries
        self._tree = Tree(entries)

    @property
    def commitment(self) -> Commitment:
        """What the party is bound to."""
        return Commitment(size=self._tree.size, root=self._tree.root)

    def opening(self, index: int) -> Opening:
        """Entry `index` with its proof.

        Raises:
            UsageError: there is no such entry.
        """
        proof = self._tree.proof(index)
        return Opening(entry=self._entries[index], proof=proof)

    def claim(self) -> TraceClaim:
        """The commitment with the last entry opened.

        Raises:
            UsageError: there is no entry.
        """
        last = self.opening(self._tree.size - 1)
        return TraceClaim(
            size=self._tree.size, root=self._tree.root, entry=last.entry, proof=last.proof
        )
