"""A whole dispute in one process.

How to use it: make a challenge and a `Disputant` for each party (see `toy`). `decide` plays where
every message arrives at once, `decide_over` over a network with faults. Both return the referee,
which has the verdict and the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from tests.parties.simulator import Answering, Faults, simulate
from tests.protocols.dispute.toy import SIGNERS, STRANGER, ToyJudge
from veritrain.adversaries.disputants import Disputant
from veritrain.parties.envelope import SignedEnvelope
from veritrain.parties.machine import Machine
from veritrain.protocols.dispute.judge import Judge
from veritrain.protocols.dispute.messages import PARTIES, Message, Role
from veritrain.protocols.dispute.referee import Deadlines, Referee
from veritrain.transcript.merkle import leaf_hash

DEADLINES = Deadlines(memory=90, replay=120)


def decide(
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


def decide_over(
    faults: Faults, random: Random, challenge: bytes, disputants: Mapping[Role, Disputant]
) -> Referee:
    """Play a dispute to its end over a network with faults. Questions are repeated until the
    deadline."""
    referee = referee_for(ToyJudge())
    referee.receive(challenge, 0)
    key = SIGNERS[Role.REFEREE].public_key
    machines: dict[bytes, Machine] = {key: referee}
    for role in PARTIES:
        machines[SIGNERS[role].public_key] = Answering(key, disputants[role])

    def noise() -> bytes:
        """Something that no party signed: junk, or a party's question signed by a stranger."""
        question = referee.question(Role.TRAINER) or leaf_hash(b"junk")
        signature = STRANGER.sign(Message.type_name, question)
        forged = SignedEnvelope(message=question, signature=signature).to_bytes()
        return random.choice([question, forged, question[:-1], b""])

    simulate(machines, until=[key], faults=faults, random=random, noise=noise)
    return referee


def referee_for(judge: Judge, deadlines: Deadlines = DEADLINES) -> Referee:
    return Referee(signer=SIGNERS[Role.REFEREE], judge=judge, deadlines=deadlines, now=0)
