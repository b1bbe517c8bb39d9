"""Trainer and referee behind their services, in one process: what they take, keep, and say
again."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from tests import zoo
from tests.replay.trace.court import Liar, Scene, encoded, head
from tests.service.conftest import JOB
from veritrain.adversaries import rounders, trainers
from veritrain.cli import main
from veritrain.errors import (
    InconclusiveError,
    TranscriptError,
    UsageError,
    VerificationError,
    VeritrainError,
)
from veritrain.job.load import load_job
from veritrain.parties.envelope import SignedEnvelope
from veritrain.parties.equivocation import check_equivocation
from veritrain.parties.journal import Journal, JournalEntry
from veritrain.parties.party_folder import KeptEntries
from veritrain.protocols.dispute.challenge import make_challenge, open_challenge
from veritrain.protocols.dispute.claims import Entries
from veritrain.protocols.dispute.dispute_evidence import Bundle
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.find_difference import challenger_claims, first_difference
from veritrain.protocols.dispute.judge import Ask, Loser, Ruling
from veritrain.protocols.dispute.judging.operator_judge import OperatorJudge
from veritrain.protocols.dispute.messages import (
    DetailOf,
    LeafAt,
    Message,
    MessageKind,
    OperatorAt,
    Question,
    Role,
    TraceOf,
    read_reply,
)
from veritrain.protocols.dispute.offline_check import check_bundle
from veritrain.protocols.dispute.party import DisputeParty
from veritrain.protocols.dispute.referee import Deadlines
from veritrain.protocols.dispute.replayed_claims import ReplayedClaims
from veritrain.protocols.dispute.verdict import DisputeVerdict, unseal
from veritrain.replay.trace.replayed_step import ReplayedStep
from veritrain.service.backends import StoppedError
from veritrain.service.dispute_folder import DisputeArchive
from veritrain.service.run_referee import RunReferee
from veritrain.service.run_trainer import RunTrainer
from veritrain.transcript import Signer

STEP = 3


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parties")
    (folder / "job.py").write_text(JOB.replace("steps=12", "steps=4"))
    return Scene.of(load_job(folder / "job.py"), folder / "run")


@pytest.fixture(scope="module")
def liar(scene):
    return Liar(scene, STEP, trainers.wrong_rate(scene.job, 1, 2.0)).up_to(STEP)


def challenge(scene, liar, **changes):
    words = {
        "signer": scene.challenger,
        "header": scene.transcript.header.to_bytes(),
        "head": scene.transcript.heads[-1].to_bytes(),
        "referee": scene.referee.public_key,
        "nonce": bytes(16),
        **changes,
    }
    return make_challenge(**{"leaves": leaves_of(liar), **words})


def leaves_of(side):
    return side.leaves if isinstance(side, ReplayedClaims) else Entries(encoded(side.leaves))


def ask(scene, data, number=1, topic=None, signer=None):
    terms = open_challenge(data, referee=scene.referee.public_key)
    question = Question(of=(Role.TRAINER,), topic=topic or LeafAt(index=STEP))
    message = Message(
        run=terms.run, dispute=terms.dispute, sender=Role.REFEREE, number=number,
        kind=MessageKind.QUESTION, body=question.to_value(),
    )  # fmt: skip
    return message.signed(signer or scene.referee).to_bytes()


class Trainer:
    """Starts and ends as a process would; `told` is what it reported."""

    def __init__(self, scene, state):
        self.scene, self.state, self.told, self.verdicts = scene, state, [], []
        self.backend = self._start()

    def _start(self, **changes):
        words = {
            "job": self.scene.job, "run": self.scene.transcript.location,
            "signer": self.scene.trainer,
            "referees": [self.scene.referee.fingerprint], "state": self.state,
            "report": self.told.append,
            "on_verdict": self.verdicts.append,
        }  # fmt: skip
        return RunTrainer(**{**words, **changes})

    def restart(self, **changes):
        self.backend._archive._store.unlock()
        self.backend = self._start(**changes)

    def reply(self, data):
        name = self.backend.submit(data)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            found = self.backend.get(name)
            if found is not None:
                return found
        raise AssertionError(self.told)


@pytest.fixture
def trainer(scene, tmp_path):
    return Trainer(scene, tmp_path / "state")


def test_a_trainer_says_the_same_again_after_it_was_killed(scene, liar, trainer):
    data = challenge(scene, liar)
    question = ask(scene, data)
    assert trainer.reply(data) == b""
    first = trainer.reply(question)
    trainer.restart()
    with pytest.raises(LookupError):
        trainer.backend.get(bytes(32))
    assert trainer.reply(question) == first


def test_a_question_with_a_used_number_is_refused_and_kept_as_proof(scene, liar, trainer):
    data = challenge(scene, liar)
    trainer.reply(data)
    trainer.reply(ask(scene, data))
    trainer.restart()
    name = trainer.backend.submit(ask(scene, data, topic=LeafAt(index=1)))
    with pytest.raises(LookupError):
        trainer.backend.get(name)  # waits
    assert "two different questions" in trainer.told[0]
    while len(trainer.told) < 2:
        time.sleep(0.01)
    pair = [file.read_bytes() for file in sorted(trainer.state.glob("*/equivocation-*"))]
    assert check_equivocation(*pair, key=scene.referee.public_key, of=Message).number == 1


def test_what_a_trainer_does_not_take(scene, liar, trainer, tmp_path):
    data = challenge(scene, liar)
    other = Signer.generate()
    refused = {
        "another referee": challenge(scene, liar, referee=other.public_key),
        "unknown dispute": ask(scene, data),
        "garbage": b"garbage",
        "a head that was never published": challenge(
            scene, liar, head=head(scene, liar.leaves), nonce=bytes(15) + b"x"
        ),
    }
    for why, message in refused.items():
        assert is_refused(trainer, message), why
    trainer.reply(data)
    with pytest.raises(VerificationError):
        trainer.backend.submit(ask(scene, data, signer=other))
    assert list(trainer.state.iterdir()) == []  # a challenge alone writes nothing


def is_refused(trainer, message):
    try:
        trainer.backend.submit(message)
    except VeritrainError:
        return True
    return False


def test_a_trainer_takes_the_verdict_of_its_referee(scene, liar, trainer):
    data = challenge(scene, liar)
    terms = open_challenge(data, referee=scene.referee.public_key)
    verdict = DisputeVerdict(
        loser=Loser.CHALLENGER, reason="it resigned", timed_out=False, run=terms.run,
        dispute=terms.dispute, root=terms.head.root, step=None, index=None, rounds=1, messages=2,
        bytes=3, evidence=bytes(32),
    )  # fmt: skip
    trainer.reply(data)
    with pytest.raises(LookupError):  # nothing was asked in it
        trainer.backend.conclude(terms.dispute, verdict.seal(scene.referee))
    trainer.reply(ask(scene, data))
    other = replace(verdict, dispute=bytes(32)).seal(scene.referee)
    for false in (b"", verdict.seal(scene.challenger), verdict.seal(scene.referee) + b" ", other):
        with pytest.raises(VeritrainError):
            trainer.backend.conclude(terms.dispute, false)
    for _ in range(2):
        trainer.backend.conclude(terms.dispute, verdict.seal(scene.referee))
    trainer.restart()
    trainer.backend.conclude(terms.dispute, verdict.seal(scene.referee))
    assert trainer.verdicts == [verdict]
    contrary = replace(verdict, loser=Loser.TRAINER)
    with pytest.raises(UsageError):
        trainer.backend.conclude(terms.dispute, contrary.seal(scene.referee))


def test_challenges_that_no_referee_asks_about_are_forgotten(scene, liar, trainer):
    every = [challenge(scene, liar, nonce=bytes(15) + bytes([n])) for n in range(20)]
    for one in every:
        trainer.reply(one)
    with pytest.raises(VerificationError):
        trainer.backend.submit(ask(scene, every[0]))
    assert trainer.reply(ask(scene, every[-1]))


def nonce(number):
    return bytes(15) + bytes([number])


def test_what_is_at_hand_is_answered_while_another_dispute_is_replayed(
    scene, liar, trainer, monkeypatch
):
    real, goes_on = ReplayedStep._trace, threading.Event()
    second, entry = traced(scene, liar, trainer)
    trainer.restart()
    monkeypatch.setattr(
        ReplayedStep, "_trace", lambda self, kept: goes_on.wait(60) and real(self, kept)
    )
    first, third = (challenge(scene, liar, nonce=nonce(n)) for n in (1, 2))
    for data in (first, second, third):
        trainer.reply(data)
    replay = trainer.backend.submit(ask(scene, first, topic=TraceOf(step=STEP)))
    assert trainer.reply(ask(scene, third))  # a leaf
    assert trainer.reply(entry)  # from the disk
    assert trainer.backend.get(replay) is None
    goes_on.set()
    assert trainer.reply(ask(scene, first, topic=TraceOf(step=STEP)))


def test_one_replay_runs_at_a_time(scene, liar, trainer, monkeypatch):
    real, running, most = ReplayedStep._trace, [], []

    def slow(self, kept):
        running.append(self)
        most.append(len(running))
        time.sleep(0.2)
        running.pop()
        return real(self, kept)

    monkeypatch.setattr(ReplayedStep, "_trace", slow)
    every = [challenge(scene, liar, nonce=nonce(n)) for n in range(6)]
    questions = [ask(scene, one, topic=TraceOf(step=STEP)) for one in every]
    for one, asked in zip(every, questions, strict=True):
        trainer.reply(one)
        trainer.backend.submit(asked)
    for asked in questions:
        trainer.reply(asked)
    assert most == [1] * 6
    time.sleep(0.1)
    assert len(trainer.backend._active) == 4


def traced(scene, liar, trainer):
    """A dispute in which the trainer has committed to its trace; a question for an entry of it."""
    data = challenge(scene, liar)
    trainer.reply(data)
    answer = trainer.reply(ask(scene, data, topic=TraceOf(step=STEP)))
    assert SignedEnvelope.from_bytes(answer, where="answer")
    return data, ask(scene, data, number=2, topic=OperatorAt(step=STEP, index=1))


def no_replay(monkeypatch):
    def fail(self, kept):
        raise AssertionError("replayed")

    monkeypatch.setattr(ReplayedStep, "_trace", fail)


def test_a_trace_is_not_computed_again_after_a_restart(scene, liar, trainer, monkeypatch):
    data, asked = traced(scene, liar, trainer)
    expected = scene.claims().operator(STEP, 1)
    no_replay(monkeypatch)
    trainer.restart()
    trainer.reply(data)
    message = SignedEnvelope.from_bytes(trainer.reply(asked), where="answer").opened(
        Message, where="answer"
    )
    _, opening = read_reply(message.body, OperatorAt.answer)
    assert opening == expected


@pytest.mark.parametrize(
    "damage", [lambda old: old[:-1], lambda old: old.replace(b"sum", b"sun"), lambda old: None]
)
def test_a_kept_trace_that_is_not_the_signed_one_is_computed_again(
    scene, liar, trainer, monkeypatch, damage
):
    _, asked = traced(scene, liar, trainer)
    (place,) = trainer.state.glob("*/trace")
    old = place.read_bytes()
    place.unlink()
    if (new := damage(old)) is not None:
        place.write_bytes(new)
        assert new != old
    trainer.restart()
    assert trainer.reply(asked)
    assert place.read_bytes() == old
    no_replay(monkeypatch)
    trainer.restart()
    assert trainer.reply(asked)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"signer": Signer.generate()}, "signed by another key"),
        ({"referees": []}, "needs a referee"),
        ({"job": "other"}, "another job"),
    ],
)
def test_a_trainer_that_does_not_fit_does_not_start(scene, trainer, change, problem):
    if "job" in change:
        change = {"job": replace(scene.job, seed=9)}
    with pytest.raises(UsageError, match=problem):
        trainer.restart(**change)


def test_a_state_folder_has_one_owner(scene, trainer):
    with pytest.raises(UsageError, match="by another process"):
        Trainer(scene, trainer.state)


def test_kept_entries_are_read_strictly(tmp_path):
    folder = DisputeArchive(tmp_path).dispute(bytes(32))
    entries = folder.entries()
    entries[1] = JournalEntry(question=b"why", answer=b"because")
    assert folder.entries() == {1: JournalEntry(question=b"why", answer=b"because")}
    with pytest.raises(UsageError, match="exists already"):
        entries[1] = JournalEntry(question=b"why", answer=b"no reason")
    with pytest.raises(UsageError, match="for ever"):
        del entries[1]
    place = tmp_path / ("00" * 32)
    (place / ".tmp-00").write_bytes(b"interrupted")
    (place / "reply-0001").write_bytes((place / "reply-0001").read_bytes()[:-1])
    again: KeptEntries = folder.entries()
    assert not (place / ".tmp-00").exists()
    assert list(again) == [1]
    with pytest.raises(TranscriptError):
        again[1]


class Hall:
    """A referee, with its clock in the test's hand. Nobody forwards its questions."""

    def __init__(self, scene, folder, **changes):
        self.verdicts, self.now = [], 0.0
        words = {
            "signer": scene.referee, "judge": OperatorJudge(scene.job), "folder": folder,
            "header": scene.transcript.header, "deadlines": Deadlines(memory=10, replay=100),
            "forward": lambda dispute: None, "report": pytest.fail, "clock": lambda: self.now,
            "on_verdict": lambda *over: self.verdicts.append(over),
        }  # fmt: skip
        self.referee = RunReferee(**{**words, **changes})

    def question(self, dispute, role, after=None):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            found = self.referee.question(dispute, role)
            if found is not None and found != after:
                return found
            if self.verdicts:
                return None
            time.sleep(0.01)
        raise AssertionError(role)

    def verdict(self):
        end = time.monotonic() + 20
        while time.monotonic() < end and not self.verdicts:
            time.sleep(0.01)
        return self.verdicts[0][1]


def parties(scene, liar, data):
    terms = open_challenge(data, referee=scene.referee.public_key)
    made = [
        (Role.TRAINER, scene.trainer, scene.claims()),
        (Role.CHALLENGER, scene.challenger, liar),
    ]
    return {
        role.value: DisputeParty(
            role=role, signer=signer, terms=terms, claims=claims, journal=Journal({})
        )
        for role, signer, claims in made
    }


def hold(hall, dispute, sides, rounds=100):
    """Carry messages until the verdict, or for some rounds."""
    for _ in range(rounds):
        asked = hall.question(dispute, "trainer")
        if asked is None:
            return
        for role, party in sides.items():
            question = hall.referee.question(dispute, role)
            if question == asked:
                hall.referee.receive(dispute, party.answer(question))
        hall.question(dispute, "trainer", after=asked)


def test_a_referee_goes_on_after_it_was_killed(scene, liar, tmp_path):
    data = challenge(scene, liar)
    hall = Hall(scene, tmp_path / "out")
    sides = parties(scene, liar, data)
    dispute = hall.referee.open(data)
    assert hall.referee.open(data) == dispute
    hold(hall, dispute, sides, rounds=4)
    asked = hall.question(dispute, "trainer")
    assert hall.referee.verdict(dispute) is hall.referee.evidence(dispute) is None
    hall.referee._archive._store.unlock()
    again = Hall(scene, tmp_path / "out")
    assert again.question(dispute, "trainer") == asked
    hold(again, dispute, sides)
    assert again.verdict().loser is Loser.CHALLENGER
    sealed = again.referee.verdict(dispute)
    assert unseal(sealed, scene.referee.public_key) == again.verdict()
    assert (
        again.referee.evidence(dispute).read()
        == (tmp_path / f"out/{dispute.hex()}.bundle").read_bytes()
    )
    assert again.referee.open(data) == dispute  # and it is not decided twice
    assert again.referee.question(dispute, "trainer") is None


def test_how_large_a_message_may_be(scene, liar, tmp_path):
    """As large as an answer to the open question; small where there is none."""
    hall, data, sizes = Hall(scene, tmp_path / "out"), challenge(scene, liar), {}
    sides, dispute = parties(scene, liar, data), hall.referee.open(data)
    while (asked := hall.question(dispute, "trainer")) is not None:
        message = SignedEnvelope.from_bytes(asked, where="").opened(Message, where="")
        sizes[message.body["ask"]] = hall.referee.at_most(dispute)
        for role, party in sides.items():
            if role in message.body["of"]:
                hall.referee.receive(dispute, party.answer(asked))
        hall.question(dispute, "trainer", after=asked)
    sizes["over"] = hall.referee.at_most(dispute)
    small, entry = LIMITS.leaf_bytes, LIMITS.entry_bytes
    details = {"detail": LIMITS.detail_bytes, "over": small}
    assert sizes == {"leaf": small, "trace": entry, "operator": entry, **details}
    with pytest.raises(LookupError):
        hall.referee.at_most(bytes(32))


def test_silence_needs_no_judge(scene, liar, tmp_path):
    hall = Hall(scene, tmp_path / "out", deadlines=Deadlines(memory=0.2), clock=time.monotonic)
    dispute = hall.referee.open(challenge(scene, liar))
    verdict = hall.verdict()
    assert (verdict.loser, verdict.timed_out) == (Loser.TRAINER, True)
    bundle = hall.referee.evidence(dispute).read()
    assert (
        check_bundle(bundle, judge=OperatorJudge(None), referees=[scene.referee.public_key])
        == verdict
    )


class SlowJudge:
    """Takes longer than any deadline."""

    def __init__(self, hall, judge):
        self._hall, self._judge = hall, judge

    def next(self, case, answered):
        self._hall.now += 1000
        return self._judge.next(case, answered)


def test_what_the_referee_computes_is_not_taken_from_the_parties_time(scene, liar, tmp_path):
    hall = Hall(scene, tmp_path / "out", deadlines=Deadlines(memory=10, replay=10))
    hall.referee._judge = SlowJudge(hall, OperatorJudge(scene.job))
    data = challenge(scene, liar)
    dispute = hall.referee.open(data)
    hold(hall, dispute, parties(scene, liar, data))
    verdict = hall.verdict()
    assert (verdict.loser, verdict.timed_out, hall.now > 1000) == (Loser.CHALLENGER, False, True)


class AskingJudge:
    """Wants entries opened twice, then decides; `meanwhile` happens each time."""

    def __init__(self, meanwhile):
        self._meanwhile = meanwhile

    def next(self, case, answered):
        self._meanwhile(len(answered))
        if len(answered) < 2:
            return Ask(
                of=(Role.TRAINER, Role.CHALLENGER), what={"open": "entries", "from": len(answered)}
            )
        return Ruling(loser=Loser.CHALLENGER, reason="it is so")


def asked_for_details(scene, liar, out):
    """A referee that asked for a detail twice, has one of the second two answers, and is killed;
    the other answer."""
    hall = Hall(scene, out, judge=AskingJudge(lambda n: None))
    data = challenge(scene, liar)
    sides, dispute = parties(scene, liar, data), hall.referee.open(data)
    while True:
        asked = hall.question(dispute, "trainer")
        message = SignedEnvelope.from_bytes(asked, where="").opened(Message, where="")
        topic = Question.from_value(message.body).topic
        hall.referee.receive(dispute, sides["trainer"].answer(asked))
        if isinstance(topic, DetailOf) and topic.what["from"] == 1:
            break
        if hall.referee.question(dispute, "challenger") == asked:
            hall.referee.receive(dispute, sides["challenger"].answer(asked))
        hall.question(dispute, "trainer", after=asked)
    while hall.referee.question(dispute, "trainer") is not None:
        time.sleep(0.01)
    hall.referee._archive._store.unlock()
    return dispute, sides["challenger"].answer(asked)


@pytest.mark.parametrize("comes_early", [True, False])
def test_what_a_referee_takes_again_takes_no_time(scene, liar, tmp_path, comes_early):
    """The judge is slow, and the last answer comes while it works, or long after: in time."""
    dispute, last = asked_for_details(scene, liar, tmp_path)
    made = []

    def meanwhile(number):
        while not made:
            time.sleep(0.01)
        if comes_early and number == 0:
            made[0].referee.receive(dispute, last)
        made[0].now += 1000 if number < 2 else 0

    again = Hall(scene, tmp_path, judge=AskingJudge(meanwhile))
    made.append(again)
    if not comes_early:
        again.question(dispute, "challenger")
        again.now += 99
        again.referee.receive(dispute, last)
    assert (again.verdict().loser, again.verdict().reason) == (Loser.CHALLENGER, "it is so")


@pytest.mark.parametrize(("dies_at", "is_decided"), [(".bundle", False), (".verdict.json", True)])
def test_a_referee_that_was_killed_while_it_decided(
    scene, liar, tmp_path, monkeypatch, dies_at, is_decided
):
    """It never says two things: the bundle decides."""
    real, told, data = DisputeArchive.write, [], challenge(scene, liar)

    def dies(self, name, data):
        if name.endswith(dies_at):
            raise UsageError("no space left")
        return real(self, name, data)

    monkeypatch.setattr(DisputeArchive, "write", dies)
    hall = Hall(scene, tmp_path, report=told.append)
    dispute = hall.referee.open(data)
    hall.question(dispute, "trainer")
    hall.now += 11
    hall.referee._running[dispute].receive(ask(scene, data, signer=scene.trainer))
    while not told:
        time.sleep(0.01)
    assert dispute.hex() in told[0]
    assert "no space left" in told[0]
    for look in (hall.referee.verdict, hall.referee.evidence):
        with pytest.raises(StoppedError):
            look(dispute)
    with pytest.raises(StoppedError):
        hall.referee.question(dispute, "trainer")
    with pytest.raises(StoppedError):
        hall.referee.receive(dispute, b"")
    hall.referee._archive._store.unlock()
    monkeypatch.undo()
    for _ in range(2):
        again = Hall(scene, tmp_path)
        if not is_decided:
            hold(again, dispute, parties(scene, liar, data))
            again.verdict()
            is_decided = True
        sealed = again.referee.verdict(dispute)
        bundle = Bundle.from_bytes(again.referee.evidence(dispute).read(), where="bundle")
        assert bundle.verdict == sealed
        assert unseal(sealed, scene.referee.public_key).timed_out == (dies_at != ".bundle")
        assert list(tmp_path.glob("*/")) == []
        again.referee._archive._store.unlock()


def test_an_operator_needs_a_judge(scene, liar, tmp_path):
    data = challenge(scene, liar)
    hall = Hall(scene, tmp_path / "out")
    dispute = hall.referee.open(data)
    hold(hall, dispute, parties(scene, liar, data))
    hall.verdict()
    bundle = hall.referee.evidence(dispute).read()
    with pytest.raises(InconclusiveError, match="not recomputed|needs the job"):
        check_bundle(bundle, judge=OperatorJudge(None), referees=[scene.referee.public_key])


def test_what_a_referee_does_not_take(scene, liar, tmp_path):
    data = challenge(scene, liar)
    hall = Hall(scene, tmp_path / "out", challengers=[scene.challenger.fingerprint])
    stranger = Signer.generate()
    for message in (b"garbage", challenge(scene, liar, signer=stranger), ask(scene, data)):
        with pytest.raises(VeritrainError):
            hall.referee.open(message)
    dispute = hall.referee.open(data)
    for message in (b"garbage", ask(scene, data, signer=stranger)):
        with pytest.raises(VeritrainError):
            hall.referee.receive(dispute, message)
    with pytest.raises(LookupError):
        hall.referee.question(bytes(32), "trainer")
    for n in range(7):
        hall.referee.open(challenge(scene, liar, nonce=bytes(15) + bytes([n + 1])))
    with pytest.raises(UsageError, match="are open"):
        hall.referee.open(challenge(scene, liar, nonce=b"x" * 16))


def test_a_folder_is_of_one_run(scene, tmp_path):
    Hall(scene, tmp_path).referee._archive._store.unlock()
    other = replace(scene.transcript.header, dataset_count=1)
    with pytest.raises(UsageError, match="exists already"):
        Hall(scene, tmp_path, header=other)


def test_the_first_difference_and_the_own_leaf(scene):
    assert first_difference(scene.job, scene.transcript) is None
    cheat = trainers.wrong_rate(scene.job, 1, 2.0)  # counts from each checkpoint
    assert first_difference(cheat, scene.transcript) == 1
    own = challenger_claims(scene.job, scene.transcript, STEP)
    assert own.leaf(STEP).entry == scene.leaves[STEP].to_bytes()
    start = challenger_claims(scene.job, scene.transcript, 0)
    assert start.leaf(0).entry == scene.leaves[0].to_bytes()
    lying = challenger_claims(cheat, scene.transcript, STEP)
    assert lying.leaf(STEP).entry != scene.leaves[STEP].to_bytes()
    with pytest.raises(UsageError, match="steps 0 to 4"):
        challenger_claims(scene.job, scene.transcript, 5)


def test_a_log_that_cannot_be_followed(tmp_path):
    """The challenger's own leaf is then the step as it records it itself."""
    with rounders.rounding_by(rounders.Huge):
        scene = Scene.of(zoo.jobs(2, "logged")["convnet-sgd"], tmp_path / "run")
    assert first_difference(scene.job, scene.transcript) == 1
    own = challenger_claims(scene.job, scene.transcript, 1)
    data = challenge(scene, own)
    hall = Hall(scene, tmp_path / "out")
    hold(hall, hall.referee.open(data), parties(scene, own, data))
    assert hall.verdict().loser is Loser.TRAINER, hall.verdict().reason


def test_two_messages_that_contradict_each_other(scene, liar, tmp_path, capfd):
    data = challenge(scene, liar)
    for name, index in (("first", 1), ("second", 2)):
        (tmp_path / name).write_bytes(ask(scene, data, topic=LeafAt(index=index)))
    words = ["verify-verdict", "--equivocation", str(tmp_path / "first")]
    key = ["--key", scene.referee.public_key.hex()]
    assert main([*words, str(tmp_path / "second"), *key]) == 0
    assert "referee signed two different messages with number 1" in capfd.readouterr().out
    assert main([*words, str(tmp_path / "first"), *key]) == 1
