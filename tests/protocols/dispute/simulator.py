"""A whole dispute in one process: a clock that ticks in seconds, and a network with faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from tests.protocols.dispute.toy import SIGNERS, STRANGER, ToyJudge
from veritrain.adversaries.disputants import Disputant
from veritrain.parties.envelope import SignedEnvelope
from veritrain.protocols.dispute.judge import Judge
from veritrain.protocols.dispute.messages import PARTIES, Role
from veritrain.protocols.dispute.referee import Deadlines, Referee
from veritrain.transcript.merkle import leaf_hash

DEADLINES = Deadlines(memory=90, replay=120)
_ASK_AGAIN = 3  # seconds


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What the network does to each message, on either way. Delays reorder messages."""

    loss: float = 0.0
    duplicates: float = 0.0
    delay: int = 0  # seconds, at most
    noise: float = 0.0  # probability of a stranger's message in each second


class Network:
    """Messages on their way to somebody, with the second of their arrival."""

    def __init__(self, faults: Faults, random: Random) -> None:
        self._faults = faults
        self._random = random
        self._flying: list[tuple[int, Role, bytes]] = []

    def send(self, now: int, to: Role, data: bytes) -> None:
        faults, random = self._faults, self._random
        copies = 1 + (random.random() < faults.duplicates)
        for _ in range(copies):
            if random.random() >= faults.loss:
                self._flying.append((now + random.randint(0, faults.delay), to, data))

    def arriving(self, now: int) -> list[tuple[Role, bytes]]:
        due = [(to, data) for when, to, data in self._flying if when <= now]
        self._flying = [one for one in self._flying if one[0] > now]
        self._random.shuffle(due)
        return due

    def noise(self, referee: Referee) -> bytes | None:
        """Something that no party signed: junk, or a party's question signed by a stranger."""
        if self._random.random() >= self._faults.noise:
            return None
        question = referee.question(Role.TRAINER) or leaf_hash(b"junk")
        signature = STRANGER.sign("dispute message", question)
        forged = SignedEnvelope(message=question, signature=signature).to_bytes()
        return self._random.choice([question, forged, question[:-1], b""])


def settle(
    challenge: bytes,
    disputants: Mapping[Role, Disputant],
    *,
    judge: Judge | None = None,
) -> Referee:
    """Play a dispute to its end, where every message arrives at once."""
    referee = referee_for(judge or ToyJudge())
    referee.receive(challenge, 0)
    now = 0.0
    while referee.verdict is None:
        open_question = [referee.question(role) for role in PARTIES]
        for role in PARTIES:
            question = referee.question(role)
            for answer in disputants[role](question) if question else ():
                referee.receive(answer, now)
        if open_question == [referee.question(role) for role in PARTIES]:
            assert referee.deadline is not None
            now = referee.deadline  # nobody will say any more
            referee.tick(now)
    return referee


def settle_over(
    faults: Faults, random: Random, challenge: bytes, disputants: Mapping[Role, Disputant]
) -> Referee:
    """Play a dispute to its end over a network with faults. Questions are repeated until the deadline."""
    network = Network(faults, random)
    referee = referee_for(ToyJudge())
    referee.receive(challenge, 0)
    now = 0
    while referee.verdict is None:
        for role in PARTIES:
            question = referee.question(role)
            if question is not None and now % _ASK_AGAIN == 0:
                network.send(now, role, question)
        for to, data in network.arriving(now):
            if to is Role.REFEREE:
                referee.receive(data, now)
            else:
                for answer in disputants[to](data):
                    network.send(now, Role.REFEREE, answer)
        noise = network.noise(referee)
        if noise is not None:
            referee.receive(noise, now)
        now += 1
        referee.tick(now)
    return referee


def referee_for(judge: Judge, deadlines: Deadlines = DEADLINES) -> Referee:
    return Referee(signer=SIGNERS[Role.REFEREE], judge=judge, deadlines=deadlines, now=0)
