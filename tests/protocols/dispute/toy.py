"""Runs whose steps are a few integer operations, parties that hold them, and a judge of them.

How to use it. A run of six steps, in which the trainer lies at operation 0 of step 2:

    job = header(seed=5, operations=3)
    false, true = Run(job, 6, (Lie(2, 0),)), Run(job, 6)
    data = challenge(trainer=false, challenger=true)     # signed bytes
    terms = opened(data)
    trainer = party(Role.TRAINER, terms, RunClaims(false))
    challenger = party(Role.CHALLENGER, terms, RunClaims(true))

`simulator.decide` plays such a dispute to its verdict. A cheat of
`veritrain.adversaries.disputants` goes around a party or around its claims. Keys are always the
same: `SIGNERS` by role, and `STRANGER`, who has no part in the dispute.

An operation takes the value to `31 * value + operand`; the operands follow from the header's seed.
A trace entry holds the digest of its operand and the value after it. A leaf holds the digest of the
step's last value. So `ToyJudge` asks for the operand, and at the first entry for the value before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from veritrain.adversaries.disputants import Trace, chained
from veritrain.encoding import Digest, Value, digest_value
from veritrain.errors import InconclusiveError
from veritrain.parties.journal import Journal
from veritrain.protocols.dispute.challenge import DisputeTerms, make_challenge, open_challenge
from veritrain.protocols.dispute.claims import Entries
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Loser, Ruling
from veritrain.protocols.dispute.messages import PARTIES, Opening, Role, TraceClaim
from veritrain.protocols.dispute.party import Claims, DisputeParty
from veritrain.replay.trace.entry import TraceEntry
from veritrain.transcript.records import Head, Header, Leaf, SignedHead
from veritrain.transcript.signing import Signer

MODULUS = 2**32


def key(number: int) -> Signer:
    return Signer(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


SIGNERS = {Role.TRAINER: key(1), Role.CHALLENGER: key(2), Role.REFEREE: key(3)}
STRANGER = key(4)


def header(seed: int = 0, operations: int = 3) -> Header:
    return Header(
        numerics="toy",
        numerics_version=1,
        job={"seed": seed, "operations": operations},
        dataset_root=bytes(32),
        dataset_count=1,
        environment={},
        public_key=SIGNERS[Role.TRAINER].public_key,
    )


def operand(header: Header, step: int, index: int) -> int:
    data = digest_value("toy operand", [header.job["seed"], step, index])
    return int.from_bytes(data[:4], "big")


def operations(header: Header, step: int) -> int:
    """How many operations a step has: 1 up to what the job says."""
    return 1 + (step * 7 + header.job["seed"]) % header.job["operations"]


def committed(value: Value) -> Digest:
    return digest_value("toy value", value)


def leaf_after(header: Header, step: int, value: int, previous: Digest) -> Leaf:
    return Leaf(
        step=step,
        state=committed(value),
        batch=digest_value("toy batch", [header.job["seed"], step]) if step else None,
        loss=float(value % 97) if step else None,
        rounding=None,
        previous=previous,
    )


@dataclass(frozen=True)
class Lie:
    """Something false in a run: at one operation of a step, or, at None, in the leaf alone."""

    step: int
    index: int | None
    change: int = 1
    field: str = "state"


@dataclass
class Run:
    """Leaves and traces of the steps 0 to `last`, with the lies of whoever made it."""

    header: Header
    last: int
    lies: tuple[Lie, ...] = ()
    _values: dict[tuple[int, int], int] = field(default_factory=dict)

    @cached_property
    def leaves(self) -> list[Leaf]:
        leaves: list[Leaf] = []
        previous = self.header.digest
        for step in range(self.last + 1):
            leaf = self._said(leaf_after(self.header, step, self._after(step), previous))
            leaves.append(leaf)
            previous = leaf.digest
        return leaves

    def start(self, step: int) -> int:
        return self._after(step - 1) if step else 0

    def trace(self, step: int) -> Trace:
        first = self.leaves[step - 1].digest if step else self.header.digest
        entries = [
            TraceEntry(
                index=index,
                previous=first,
                final=False,
                body={
                    "operand": committed(operand(self.header, step, index)),
                    "value": self._value(step, index),
                },
            )
            for index in range(operations(self.header, step))
        ]
        return chained(entries)

    def _after(self, step: int) -> int:
        return self._value(step, operations(self.header, step) - 1)

    def _value(self, step: int, index: int) -> int:
        if (step, index) not in self._values:
            before = self._value(step, index - 1) if index else self.start(step)
            value = (31 * before + operand(self.header, step, index)) % MODULUS
            lie = sum(lie.change for lie in self.lies if (lie.step, lie.index) == (step, index))
            self._values[step, index] = (value + lie) % MODULUS
        return self._values[step, index]

    def _said(self, leaf: Leaf) -> Leaf:
        for lie in self.lies:
            if lie.step == leaf.step and lie.index is None:
                false = {
                    "state": committed(lie.change),
                    "batch": bytes(32) if leaf.step else None,
                    "previous": bytes(32),
                    "loss": (leaf.loss or 0.0) + lie.change if leaf.step else None,
                }
                field = lie.field if leaf.step or lie.field == "previous" else "state"
                leaf = replace(leaf, **{field: false[field]})
        return leaf


class RunClaims:
    """What the maker of a run claims."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.leaves = Entries([leaf.to_bytes() for leaf in run.leaves])
        self._traces: dict[int, Entries] = {}

    def leaf(self, index: int) -> Opening:
        return self.leaves.opening(index)

    def trace(self, step: int) -> TraceClaim:
        return self._entries(step).claim()

    def operator(self, step: int, index: int) -> Opening:
        return self._entries(step).opening(index)

    def detail(self, step: int, index: int, what: Value) -> Value:
        if what == "start":
            return self._run.start(step)
        return operand(self._run.header, step, index)

    def _entries(self, step: int) -> Entries:
        if step not in self._traces:
            self._traces[step] = Entries([one.to_bytes() for one in self._run.trace(step)])
        return self._traces[step]


class Absent:
    """A judge that cannot say anything."""

    def next(self, case: Case, answered: Sequence[Answered]) -> NoReturn:
        raise InconclusiveError("not recomputed")


class ToyJudge:
    """Recomputes one operation. It asks for the operand, and at entry 0 for the value before."""

    def next(self, case: Case, answered: Sequence[Answered]) -> Ruling | Ask:
        if case.index is None:
            return self._compare_leaves(case)
        wanted = ["operand"] + (["start"] if case.index == 0 and case.step > 0 else [])
        if len(answered) < len(wanted):
            return Ask(of=PARTIES, what=wanted[len(answered)])
        details = dict(zip(wanted, (one.details for one in answered), strict=True))
        false = [
            role
            for role, entry in zip(PARTIES, case.entries, strict=True)
            if not self._is_true(case, role, entry, details)
        ]
        whose = " and ".join(role.value for role in false)
        return Ruling(loser=Loser.of(*false), reason=f"operation {case.index}: false of {whose}")

    def _is_true(
        self, case: Case, role: Role, entry: TraceEntry, details: Mapping[str, Mapping[Role, Value]]
    ) -> bool:
        right = operand(case.header, case.step, entry.index)
        if details["operand"][role] != right:
            return False
        if case.previous is not None:
            before = case.previous.body.get("value")
        elif case.before is None:
            before = 0
        else:
            before = details["start"][role]
            if committed(before) != case.before.state:
                return False
        if type(before) is not int:  # both agree to nonsense
            return False
        body = {"operand": committed(right), "value": (31 * before + right) % MODULUS}
        return entry.body == body and entry.final == (
            entry.index == operations(case.header, case.step) - 1
        )

    def _compare_leaves(self, case: Case) -> Ruling:
        value = case.entries[0].body.get("value")
        if type(value) is not int:
            return Ruling(loser=Loser.BOTH, reason="the trace ends with nonsense")
        before = case.header.digest if case.before is None else case.before.digest
        right = leaf_after(case.header, case.step, value, before)
        pairs = zip(PARTIES, (case.trainer, case.challenger), strict=True)
        false = [role for role, leaf in pairs if leaf.digest != right.digest]
        return Ruling(loser=Loser.of(*false), reason="the leaf does not follow from the trace")


def signed_head(run: Run) -> bytes:
    """The trainer's commitment to a whole run."""
    claims = RunClaims(run)
    head = Head(
        run=run.header.digest,
        size=len(run.leaves),
        root=claims.leaves.commitment.root,
        segment=bytes(32),
        checkpoint=bytes(32),
        previous=None,
    )
    signature = SIGNERS[Role.TRAINER].sign(Head.type_name, head.to_bytes())
    return SignedHead(head=head, signature=signature).to_bytes()


def challenge(trainer: Run, challenger: Run, nonce: bytes = bytes(16)) -> bytes:
    """The challenger's challenge of its own last leaf."""
    return make_challenge(
        signer=SIGNERS[Role.CHALLENGER],
        header=trainer.header.to_bytes(),
        head=signed_head(trainer),
        referee=SIGNERS[Role.REFEREE].public_key,
        nonce=nonce,
        leaves=RunClaims(challenger).leaves,
    )


def opened(data: bytes) -> DisputeTerms:
    return open_challenge(data, referee=SIGNERS[Role.REFEREE].public_key)


def party(role: Role, terms: DisputeTerms, claims: Claims) -> DisputeParty:
    return DisputeParty(
        role=role, signer=SIGNERS[role], terms=terms, claims=claims, journal=Journal({})
    )
