"""Whole disputes: whoever told the truth never loses, and whoever lied does."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from random import Random

import pytest

from tests.parties.simulator import Faults
from tests.protocols.dispute.simulator import decide, decide_over
from tests.protocols.dispute.toy import (
    SIGNERS,
    Lie,
    Run,
    RunClaims,
    ToyJudge,
    challenge,
    header,
    opened,
    operations,
    party,
)
from veritrain.adversaries import disputants as cheat
from veritrain.adversaries.disputants import Disputant
from veritrain.protocols.dispute.challenge import DisputeTerms
from veritrain.protocols.dispute.judge import Loser
from veritrain.protocols.dispute.messages import PARTIES, Role
from veritrain.protocols.dispute.offline_check import check_bundle
from veritrain.protocols.dispute.party import Claims, DisputeParty
from veritrain.protocols.dispute.referee import Referee
from veritrain.protocols.dispute.verdict import DisputeVerdict

REFEREES = [SIGNERS[Role.REFEREE].public_key]
SEED = 5


def honest_game(trainer: Run, challenger: Run) -> DisputeVerdict:
    """Both answer by their own runs, without tricks on the way."""
    data = challenge(trainer, challenger)
    terms = opened(data)
    runs = dict(zip(PARTIES, (trainer, challenger), strict=True))
    disputants = {
        role: cheat.honest(party(role, terms, RunClaims(run))) for role, run in runs.items()
    }
    verdict = decide(data, disputants).verdict
    assert verdict is not None
    return verdict


def checked(referee: Referee) -> DisputeVerdict:
    verdict = check_bundle(referee.bundle(), judge=ToyJudge(), referees=REFEREES)
    assert verdict == referee.verdict
    return verdict


def places(last: int, operations_at_most: int) -> list[Lie]:
    """Every place for a lie in a run."""
    job = header(SEED, operations_at_most)
    return [
        Lie(step, index)
        for step in range(last + 1)
        for index in (None, *range(operations(job, step)))
    ]


@pytest.mark.parametrize("last", range(9))
def test_every_single_lie_is_found_on_either_side(last: int) -> None:
    job = header(SEED, 3)
    true = Run(job, last)
    for lie in places(last, 3):
        false = Run(job, last, (lie,))
        for trainer, challenger, loser in (
            (false, true, Loser.TRAINER),
            (true, false, Loser.CHALLENGER),
        ):
            verdict = honest_game(trainer, challenger)
            assert (verdict.loser, verdict.step, verdict.index) == (loser, lie.step, lie.index)
            bound = halvings(last + 1) + halvings(operations(job, lie.step)) + 4
            assert verdict.rounds <= bound


@pytest.mark.parametrize("last", range(4))
def test_of_two_liars_one_loses_at_least(last: int) -> None:
    job = header(SEED, 3)
    lies = places(last, 3)
    for one in lies:
        for other in lies:
            trainer = Run(job, last, (one,))
            challenger = Run(job, last, (Lie(other.step, other.index, change=2),))
            verdict = honest_game(trainer, challenger)
            first = min(one.step, other.step)
            assert verdict.step == first
            if one.step != other.step:
                loser = Loser.TRAINER if one.step == first else Loser.CHALLENGER
                assert verdict.loser is loser
            elif one.index == other.index:
                assert verdict.loser is Loser.BOTH
            else:
                assert verdict.loser is not Loser.NONE


@pytest.mark.parametrize("last", [0, 1, 5])
def test_a_challenge_without_a_difference_loses_at_once(last: int) -> None:
    run = Run(header(), last)
    verdict = honest_game(run, run)
    assert verdict.loser is Loser.CHALLENGER
    assert (verdict.rounds, verdict.step, verdict.messages) == (1, None, 3)


def test_a_head_may_cover_more_steps_than_are_challenged() -> None:
    job = header(SEED)
    lie = Lie(2, 0)
    verdict = honest_game(Run(job, 9, (lie,)), Run(job, 4))
    assert (verdict.loser, verdict.step) == (Loser.TRAINER, 2)
    assert honest_game(Run(job, 9, (lie,)), Run(job, 1)).loser is Loser.CHALLENGER


@pytest.mark.parametrize("field", ["state", "batch", "loss"])
def test_a_lie_in_the_leaf_alone_shows_at_the_end_of_the_trace(field: str) -> None:
    job = header(SEED)
    verdict = honest_game(Run(job, 6, (Lie(3, None, field=field),)), Run(job, 6))
    assert (verdict.loser, verdict.step, verdict.index) == (Loser.TRAINER, 3, None)


@pytest.mark.parametrize("step", range(4))
def test_a_leaf_that_does_not_follow_the_agreed_one_loses(step: int) -> None:
    job = header(SEED)
    unchained = Lie(step, None, field="previous")
    for trainer, challenger, loser, whose in (
        ((unchained,), (), Loser.TRAINER, "trainer"),
        ((), (unchained,), Loser.CHALLENGER, "challenger"),
        ((unchained,), (unchained, Lie(step, 0)), Loser.BOTH, "trainer and challenger"),
    ):
        verdict = honest_game(Run(job, 4, trainer), Run(job, 4, challenger))
        assert (verdict.loser, verdict.step) == (loser, step)
        assert (
            verdict.reason == f"leaf {step} of the {whose} does not follow the agreed one before it"
        )


@pytest.mark.parametrize("role", PARTIES)
@pytest.mark.parametrize(
    ("change", "index", "reason"),
    [
        (cheat.break_link(0), 0, "trace entry 0 of the ROLE does not follow"),
        (cheat.break_link(2), 2, "trace entry 2 of the ROLE does not follow"),
        (cheat.break_link(3), 3, "trace entry 3 of the ROLE does not follow"),
        (cheat.alter_body(1, {"operand": bytes(32), "value": 1}), 1, "operation 1: false of ROLE"),
        (cheat.shorten(1), 2, "operation 2: false of ROLE"),
        (cheat.shorten(9), 0, "operation 0: false of ROLE"),
        (cheat.lengthen(1), 3, "operation 3: false of ROLE"),
        (cheat.lengthen(9), 3, "operation 3: false of ROLE"),
        (cheat.misnumber(3), None, "trace entry 3: expected index 3, got 4"),
        (cheat.end_twice(3), None, "trace entry 3 of 4: final is False"),
    ],
)
def test_a_false_trace_loses_where_it_is_false(role: Role, change, index, reason: str) -> None:
    job = header(SEED, 4)
    assert operations(job, 2) == 4
    true, false = Run(job, 3), Run(job, 3, (Lie(2, None),))
    runs = dict(zip(PARTIES, (false, true) if role is Role.TRAINER else (true, false), strict=True))
    data = challenge(runs[Role.TRAINER], runs[Role.CHALLENGER])
    terms = opened(data)
    claims: dict[Role, Claims] = {one: RunClaims(run) for one, run in runs.items()}
    claims[role] = cheat.AlteredTrace(claims[role], change)
    disputants = {one: cheat.honest(party(one, terms, claims[one])) for one in PARTIES}
    verdict = checked(decide(data, disputants))
    assert (verdict.loser, verdict.step, verdict.index) == (Loser.of(role), 2, index)
    assert reason.replace("ROLE", role.value) in verdict.reason


# Random games: lies at random places, cheats in claims and on the wire, a network with faults.


def halvings(count: int) -> int:
    return ceil(log2(max(1, count)))


def false_claims(claims: Claims, random: Random) -> Claims:
    at = random.randrange(6)
    change = random.choice(
        [
            cheat.alter_body(at, {"operand": bytes(32), "value": 7}),
            cheat.alter_body(at, {"nothing": True}),
            cheat.break_link(at),
            cheat.shorten(at),
            cheat.lengthen(at),
            cheat.misnumber(at),
            cheat.end_twice(at),
        ]
    )
    return random.choice(
        [
            cheat.AlteredTrace(claims, change),
            cheat.FalseDetail(claims, random.choice([None, 5, "x", [1, 2]])),
        ]
    )


def false_sender(party: DisputeParty, role: Role, random: Random) -> Disputant:
    signer = SIGNERS[role]
    change = random.choice(
        [
            cheat.wrong_proof,
            cheat.wrong_size,
            cheat.wrong_number,
            cheat.wrong_question,
            cheat.wrong_kind,
            cheat.other_dispute,
            cheat.other_content,
        ]
    )
    behaviour = random.choice(
        [
            cheat.silent,
            cheat.garbage(random.randbytes(50)),
            cheat.signed_garbage(signer, random.randbytes(50)),
            cheat.resigning(party),
            cheat.replaying(party),
            cheat.Altered(party, signer, change),
            cheat.Altered(party, signer, change, also=True),
        ]
    )
    return cheat.from_question(random.randint(1, 9), cheat.honest(party), behaviour)


@dataclass
class Side:
    """One party of a random game."""

    role: Role
    run: Run
    is_honest: bool

    def disputant(self, terms: DisputeTerms, random: Random) -> tuple[Disputant, Claims]:
        claims: Claims = RunClaims(self.run)
        if not self.is_honest and random.random() < 0.5:
            claims = false_claims(claims, random)
        own = party(self.role, terms, claims)
        if self.is_honest or random.random() < 0.5:
            return cheat.honest(own), claims
        return false_sender(own, self.role, random), claims


def random_side(role: Role, last: int, step: int, random: Random, operations_at_most: int) -> Side:
    job = header(SEED, operations_at_most)
    if random.random() < 0.4:
        return Side(role, Run(job, last), True)
    lies = [
        lie for lie in places(step, operations_at_most) if random.random() < 1 / (1 + step)
    ] or [Lie(random.randint(0, step), None, field=random.choice(["state", "loss", "batch"]))]
    return Side(role, Run(job, last, tuple(lies)), False)


def random_game(seed: int) -> None:
    random = Random(seed)
    step = random.randint(0, 12)
    last = step + random.choice([0, 0, random.randint(0, 4)])
    operations_at_most = random.randint(1, 9)
    trainer = random_side(Role.TRAINER, last, step, random, operations_at_most)
    challenger = random_side(Role.CHALLENGER, step, step, random, operations_at_most)
    data = challenge(trainer.run, challenger.run, nonce=random.randbytes(16))
    terms = opened(data)
    players = [side.disputant(terms, random) for side in (trainer, challenger)]
    disputants = dict(zip(PARTIES, (player[0] for player in players), strict=True))
    if random.random() < 0.5:
        referee = decide(data, disputants)
    else:
        faults = Faults(
            loss=random.choice([0, 0.3]),
            duplicates=random.choice([0, 0.5]),
            delay=random.choice([0, 1, 8]),
            noise=random.choice([0, 0.2]),
        )
        referee = decide_over(faults, random, data, disputants)
    verdict = checked(referee)
    assert verdict.loser in expected_losers(trainer, challenger), seed
    sizes = [1] if verdict.step is None else [p[1].trace(verdict.step).size for p in players]
    assert verdict.rounds <= halvings(step + 1) + halvings(max(sizes)) + 4, seed


def expected_losers(trainer: Side, challenger: Side) -> set[Loser]:
    if trainer.is_honest:
        return {Loser.CHALLENGER}
    if challenger.is_honest:
        return {Loser.TRAINER}
    return {Loser.TRAINER, Loser.CHALLENGER, Loser.BOTH}


@pytest.mark.parametrize("first", range(0, 900, 100))
def test_random_games(first: int) -> None:
    for seed in range(first, first + 100):
        random_game(seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(900, 10_900, 500))
def test_more_random_games(first: int) -> None:
    for seed in range(first, first + 500):
        random_game(seed)
