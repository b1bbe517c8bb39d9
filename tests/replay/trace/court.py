"""Whole disputes in one process: two parties, a referee with the real judge, no network.

How to use it:

    scene = Scene.of(job, tmp_path / "run")      # trains an honest run: once for a module
    liar = Liar(scene, step, job=another_job)    # its step is that of another job
    liar = Liar(scene, step, change=change)      # or its trace is: bodies in, bodies out
    verdict = decide(scene, step, trainer=liar)  # the other party tells the truth
    referee = hold(scene, step, trainer=liar)    # the same, where a test needs the bundle

A liar signs a leaf that fits its trace, unless it is given another one. Both parties agree about
the state before the step. `changed` gives a copy with one value changed somewhere, for `change`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import veritrain as vt
from veritrain.encoding import digest
from veritrain.errors import UsageError
from veritrain.job.job import Job
from veritrain.parties.journal import Journal
from veritrain.protocols.dispute.challenge import make_challenge, open_challenge
from veritrain.protocols.dispute.claims import Entries
from veritrain.protocols.dispute.judging.operator_judge import OperatorJudge
from veritrain.protocols.dispute.messages import Opening, Role, TraceClaim
from veritrain.protocols.dispute.party import DisputeParty
from veritrain.protocols.dispute.referee import Deadlines, Referee
from veritrain.protocols.dispute.replayed_claims import ReplayedClaims
from veritrain.protocols.dispute.verdict import DisputeVerdict
from veritrain.replay.trace.entry import TraceEntry
from veritrain.transcript import Signer, Transcript, merkle
from veritrain.transcript.records import Head, Leaf, SignedHead

Change = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Scene:
    """An honest run, the keys of the three parties, and what honest ones have at hand of it."""

    job: Job
    transcript: Transcript
    trainer: Signer
    challenger: Signer
    referee: Signer
    _honest: dict[int | None, ReplayedClaims] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, job: Job, folder: Path) -> Scene:
        keys = [Signer.generate() for _ in range(3)]
        with vt.Recorder(job, folder, signer=keys[0]) as run:
            for step in run:
                step.train()
        return cls(job, Transcript.open(folder), *keys)

    @property
    def leaves(self) -> list[Leaf]:
        return list(self.transcript.leaves)

    def claims(self, leaves: int | None = None) -> ReplayedClaims:
        return ReplayedClaims(self.job, self.transcript, encoded(self.leaves[:leaves]))

    def honest(self, leaves: int | None = None) -> ReplayedClaims:
        """The honest party of all disputes: it replays a step once for them."""
        if leaves not in self._honest:
            self._honest[leaves] = self.claims(leaves)
        return self._honest[leaves]

    @cached_property
    def judge(self) -> OperatorJudge:
        """The referee's: it keeps nothing of a dispute."""
        return OperatorJudge(self.job)


class Liar:
    """Claims of a party whose step is another: by another job, or by a changed trace."""

    def __init__(
        self,
        scene: Scene,
        step: int,
        job: Job | None = None,
        change: Change | None = None,
        leaf: Leaf | None = None,
    ) -> None:
        self._claims = ReplayedClaims(job or scene.job, scene.transcript, encoded(scene.leaves))
        bodies = [e.body for e in read(self._claims.replayed(step).entries)]
        bodies = change(bodies) if change is not None else bodies
        before = scene.leaves[step].previous
        self.entries = chained(bodies, before)
        own = leaf if leaf is not None else self._fitting(scene.leaves[step], bodies[-1])
        self.leaves = rechained([*scene.leaves[:step], own, *scene.leaves[step + 1 :]])

    def _fitting(self, honest: Leaf, end: dict[str, Any]) -> Leaf:
        """A leaf that fits the trace, and is another than the honest one."""
        leaf = honest
        if end["kind"] == "outcome":
            for name in ("state", "loss", "batch", "rounding"):
                with suppress(KeyError, UsageError):  # a leaf could not say so
                    leaf = replace(leaf, **{name: end[name]})
        if leaf.digest == honest.digest:
            leaf = replace(leaf, state=digest("tensor", b"another"))
        return leaf

    def up_to(self, step: int) -> Liar:
        """As a challenger, who commits to no more."""
        made = copy(self)
        made.leaves = self.leaves[: step + 1]
        return made

    def leaf(self, index: int) -> Opening:
        return Entries(encoded(self.leaves)).opening(index)

    def trace(self, step: int) -> TraceClaim:
        return Entries(self.entries).claim()

    def operator(self, step: int, index: int) -> Opening:
        return Entries(self.entries).opening(index)

    def detail(self, step: int, index: int, what: Any) -> Any:
        return self._claims.detail(step, index, what)


def decide(scene: Scene, step: int, trainer: Any = None, challenger: Any = None) -> DisputeVerdict:
    """The verdict on leaf `step`; a party without claims tells the truth, but for that one leaf if
    both do."""
    return hold(scene, step, trainer, challenger).verdict


def hold(scene: Scene, step: int, trainer: Any = None, challenger: Any = None) -> Referee:
    trainers = trainer.leaves if trainer is not None else scene.leaves
    challengers = (challenger.leaves if challenger is not None else scene.leaves)[: step + 1]
    signed = head(scene, trainers)
    header = scene.transcript.header.to_bytes()
    challenge = make_challenge(
        signer=scene.challenger, header=header, head=signed, referee=scene.referee.public_key,
        nonce=bytes(16), leaves=Entries(encoded(challengers)),
    )  # fmt: skip
    terms = open_challenge(challenge, referee=scene.referee.public_key)
    parties = {
        Role.TRAINER: DisputeParty(
            role=Role.TRAINER, signer=scene.trainer, terms=terms, journal=Journal({}),
            claims=trainer or scene.honest(),
        ),
        Role.CHALLENGER: DisputeParty(
            role=Role.CHALLENGER, signer=scene.challenger, terms=terms, journal=Journal({}),
            claims=challenger.up_to(step) if challenger else scene.honest(step + 1),
        ),
    }  # fmt: skip
    referee = Referee(signer=scene.referee, judge=scene.judge, deadlines=Deadlines(), now=0.0)
    referee.receive(challenge, 0.0)
    while referee.verdict is None:
        for role, party in parties.items():
            question = referee.question(role)
            if question is not None:
                referee.receive(party.answer(question), 0.0)
    return referee


def head(scene: Scene, leaves: Sequence[Leaf]) -> bytes:
    last = scene.transcript.heads[-1].head
    made = replace(last, size=len(leaves), root=merkle.root(encoded(leaves)))
    signature = scene.trainer.sign(Head.type_name, made.to_bytes())
    return SignedHead(head=made, signature=signature).to_bytes()


def encoded(leaves: Sequence[Leaf]) -> list[bytes]:
    return [leaf.to_bytes() for leaf in leaves]


def rechained(leaves: Sequence[Leaf]) -> list[Leaf]:
    made = [leaves[0]]
    for leaf in leaves[1:]:
        made.append(replace(leaf, previous=made[-1].digest))
    return made


def read(entries: Sequence[bytes]) -> list[TraceEntry]:
    return [TraceEntry.from_bytes(entry, where="own") for entry in entries]


def chained(bodies: Sequence[dict[str, Any]], previous: bytes) -> list[bytes]:
    made: list[bytes] = []
    for index, body in enumerate(bodies):
        entry = TraceEntry(
            index=index, previous=previous, final=index == len(bodies) - 1, body=body
        )
        made.append(entry.to_bytes())
        previous = entry.digest
    return made


def changed(value: Any, rng: random.Random) -> tuple[Any, Any, Any]:
    """A copy with one value changed anywhere in it; what it was, and what it is."""
    box = [deepcopy(value)]
    container, key = rng.choice(_spots(box[0], [(box, 0)]))
    old = container[key]
    container[key] = _another(old, rng)
    return box[0], old, container[key]


def _spots(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        found.append((value, key))
        _spots(value[key], found)
    return found


def _another(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool) or value is None:
        return rng.choice([0, 1, True, False, "x", b"", []])
    if isinstance(value, int):
        return rng.choice([value + 1, max(0, value - 1), -1, 2**40, float(value)])
    if isinstance(value, float):
        return rng.choice([value + 1.0, -value, 0.0])
    if isinstance(value, bytes):
        return rng.choice([bytes(byte ^ 1 for byte in value) or b"x", value[:-1], value + b"x"])
    if isinstance(value, str):
        return rng.choice([value + "x", "float64", "aten.add.Tensor"])
    if isinstance(value, list):
        return rng.choice([value[:-1], value + value[:1], [], None, {}])
    return rng.choice([{}, None, {**value, "more": 1}, []])
