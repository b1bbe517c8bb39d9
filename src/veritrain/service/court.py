"""A referee behind a service: hears disputes about one run, and carries its questions to the trainer.

Each dispute has a thread of its own, on which everything happens in the order in which it came, and is stamped with
the time at which it came. What counted is on the disk before the question that follows is shown; a referee that was
killed takes it once more, in no time. The bundle decides a dispute: once it is on the disk there is no other verdict.
Of a dispute that is over, the bundle and the verdict stay: `ID.bundle`, `ID.verdict.json`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from veritrain.encoding import Digest
from veritrain.errors import UsageError, VerificationError
from veritrain.protocols.dispute.challenge import Contest, open_challenge
from veritrain.protocols.dispute.evidence import Bundle
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Judge, Ruling
from veritrain.protocols.dispute.limits import LIMITS
from veritrain.protocols.dispute.messages import PARTIES, Question, Role, SignedMessage
from veritrain.protocols.dispute.referee import Deadlines, Referee
from veritrain.protocols.dispute.verdict import Verdict
from veritrain.runtime.progress import Stage, tell
from veritrain.service.kept import Docket, Shelf
from veritrain.service.problems import StoppedError
from veritrain.transcript.records import Header
from veritrain.transcript.signing import Signer, fingerprint, is_trusted

_OPEN = 8  # disputes at one time
_KEPT = 4096  # disputes on the disk
_INBOX = 2  # messages of one party that wait
_LOOK_SECONDS = 60.0  # at most between two looks at the clock
_HEADER = "header"

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class View:
    """What can be seen of a dispute from outside."""

    questions: Mapping[Role, bytes] = field(default_factory=dict[Role, bytes])
    at_most: int = LIMITS.leaf_bytes  # bytes that a message may have now
    verdict: bytes | None = None  # signed


class Sitting:
    """One dispute that is not over. Its thread alone touches the referee."""

    def __init__(
        self,
        *,
        contest: Contest,
        referee: Referee,
        docket: Docket,
        clock: Clock,
        on_over: Callable[[Referee], bytes],
        report: Callable[[str], None],
    ) -> None:
        """The docket holds the challenge, and what counted before. `on_over` returns the signed verdict. The
        referee's time is the clock's, and not later than now."""
        self.contest = contest
        self.challenge = docket.challenge
        self._referee = referee
        self._docket = docket
        self._clock = clock
        self._began = clock()  # what comes from here on is later
        self._on_over = on_over
        self._report = report
        self._kept = 0  # messages on the disk, without the challenge
        self._changed = threading.Condition()  # of all that follows
        self._inbox: deque[tuple[Role, bytes, float]] = deque()
        self._view = View()
        self._is_busy = False
        self._is_over = False
        self._is_stopped = False

    def start(self) -> None:
        """Begin, on a thread of its own."""
        threading.Thread(target=self._sit, name="sitting", daemon=True).start()

    @property
    def view(self) -> View:
        """What can be seen now."""
        return self._view

    @property
    def is_over(self) -> bool:
        """Is there nothing more to come?"""
        return self._is_over

    @property
    def is_stopped(self) -> bool:
        """Did an error end it without a verdict? It goes on when the referee starts again."""
        return self._is_stopped

    def receive(self, message: bytes) -> None:
        """Take a message that came now.

        Raises:
            TranscriptError: malformed bytes.
            VerificationError: not signed by a party.
            UsageError: too many messages of its sender wait.
        """
        signed = SignedMessage.read(message, limit=LIMITS.detail_bytes, where="message")
        role = self._sender(signed)
        with self._changed:
            if sum(sender is role for sender, _, _ in self._inbox) >= _INBOX:
                raise UsageError(f"messages of the {role.value} wait already")
            self._inbox.append((role, message, self._clock()))
            self._changed.notify_all()

    def next_question(self, role: Role, after: bytes | None, seconds: float) -> bytes | None:
        """What `role` has to answer now. Waits for another question than `after`, `seconds` at most;
        the same one comes back if what was answered to it had no effect."""

        def is_another() -> bool:
            return self._is_over or self._view.questions.get(role) not in (None, after)

        with self._changed:
            self._changed.wait_for(is_another, seconds)
            question = self._view.questions.get(role)
            is_heard = self._is_busy or bool(self._inbox)
            return None if question == after and is_heard else question

    def _sender(self, signed: SignedMessage) -> Role:
        for role in PARTIES:
            try:
                signed.verify(self.contest.keys[role])
            except VerificationError:
                continue
            return role
        raise VerificationError("the message is not signed by a party of the dispute")

    def _sit(self) -> None:
        verdict = None
        try:
            self._resume()
            while self._referee.verdict is None:
                came = self._next()
                if came is not None:
                    self._referee.receive(*came)
                    self._publish()
            verdict = self._on_over(self._referee)
        except (Exception, SystemExit) as error:  # a full disk
            self._report(
                f"dispute {self.contest.dispute.hex()} stopped, and goes on when the referee starts again: "
                f"{type(error).__name__}: {error}"
            )
        with self._changed:
            self._is_stopped = verdict is None
            self._view = View(verdict=verdict)
            self._is_over = True
            self._changed.notify_all()

    def _resume(self) -> None:
        """Take what counted before, at one time, however long that takes: no deadline passes meanwhile. The open
        question gets its whole time once more."""
        self._referee.receive(self.challenge, self._began)
        for message in self._docket.messages():
            self._referee.receive(message, self._began)
        self._publish()

    def _next(self) -> tuple[bytes, float] | None:
        """The message that came first, with its time; None where time passed instead."""
        with self._changed:
            if not self._inbox:
                now = self._clock()  # what comes from here on is later
                self._referee.tick(now)
                deadline = self._referee.deadline
                if deadline is not None:
                    self._changed.wait(min(_LOOK_SECONDS, deadline - now))
                return None
            self._is_busy = True
            _, message, when = self._inbox.popleft()
            return message, when

    def _publish(self) -> None:
        """Keep what counted, then show what follows from it."""
        messages = [event for event in self._referee.events if isinstance(event, bytes)][1:]
        for number, message in enumerate(messages[self._kept :], self._kept + 1):
            self._docket.add_message(number, message)
        self._kept = len(messages)
        self._referee.shown(self._clock())
        view = _view(self._referee)
        with self._changed:
            self._view = view
            self._is_busy = False
            self._changed.notify_all()


class RefereeCourt:
    """`Court` of one referee about one run."""

    def __init__(
        self,
        *,
        signer: Signer,
        judge: Judge,
        header: Header,
        deadlines: Deadlines,
        folder: Path,
        challengers: Collection[bytes | str] = (),
        attend: Callable[[Sitting], None],
        on_verdict: Callable[[Digest, Verdict], None],
        report: Callable[[str], None],
        clock: Clock = time.monotonic,
    ) -> None:
        """Goes on with the disputes that are open in `folder`.

        Args:
            signer: the referee's key.
            judge: who recomputes; is called by one thread at a time.
            header: of the run.
            deadlines: of answers.
            folder: where disputes are kept; of this run alone.
            challengers: public keys and fingerprints of those who may challenge; none for everyone.
            attend: is called with each sitting, to carry questions to the trainer.
            on_verdict: is called with each dispute that is over, once its verdict is on the disk.
            report: is told what went wrong, for people.
            clock: seconds, never going back.

        Raises:
            UsageError: the folder cannot be used, or is of another run.
        """
        self._signer = signer
        self._judge = _OneAtATime(judge)
        self._run = header.digest
        self._deadlines = deadlines
        self._challengers = tuple(challengers)
        self._attend = attend
        self._on_verdict = on_verdict
        self._report = report
        self._clock = clock
        self._shelf = Shelf(folder)
        self._shelf.write(_HEADER, header.to_bytes())
        self._lock = threading.Lock()  # of all that follows
        self._sittings: dict[Digest, Sitting] = {}
        self._collected: set[Digest] = set()
        with self._lock:
            for dispute in self._shelf.disputes():
                docket = self._shelf.docket(dispute)
                if self._shelf.is_decided(dispute):
                    self._clean(dispute, docket)
                elif not docket.is_empty:
                    self._hold(self._opened(docket.challenge), docket)

    def about(self) -> tuple[bytes, bytes]:
        """See `Court.about`."""
        return self._signer.public_key, self._run

    def open(self, challenge: bytes) -> bytes:
        """See `Court.open`.

        Raises:
            TranscriptError, VerificationError: see `open_challenge`; or not a challenger who may.
            UsageError: there are too many disputes.
        """
        contest = self._opened(challenge)
        challenger = contest.keys[Role.CHALLENGER]
        if self._challengers and not is_trusted(challenger, self._challengers):
            raise VerificationError(f"challenger {fingerprint(challenger)} is not one who may")
        with self._lock:
            dispute = contest.dispute
            if dispute not in self._sittings and not self._shelf.is_decided(dispute):
                self._require_room()
                docket = self._shelf.docket(dispute)
                docket.begin(challenge)
                self._hold(contest, docket)
                by = fingerprint(challenger)
                tell(Stage(doing=f"dispute {dispute.hex()} is opened, by challenger {by}"))
        return dispute

    def question(self, dispute: bytes, role: str) -> bytes | None:
        """See `Court.question`."""
        sitting = self._sitting(dispute)
        return None if sitting is None else sitting.view.questions.get(Role(role))

    def at_most(self, dispute: bytes) -> int:
        """See `Court.at_most`."""
        sitting = self._sitting(dispute)
        return (View() if sitting is None else sitting.view).at_most

    def receive(self, dispute: bytes, message: bytes) -> None:
        """See `Court.receive`."""
        sitting = self._sitting(dispute)
        if sitting is not None:
            sitting.receive(message)

    def verdict(self, dispute: bytes) -> bytes | None:
        """See `Court.verdict`."""
        if self._sitting(dispute) is not None:
            return None
        return self._shelf.read(_verdict(dispute), LIMITS.verdict_bytes)

    def evidence(self, dispute: bytes) -> BinaryIO | None:
        """See `Court.evidence`."""
        return None if self._sitting(dispute) is not None else self._shelf.open(_bundle(dispute))

    def collected(self, dispute: bytes) -> None:
        """See `Court.collected`."""
        self._collected.add(dispute)

    def is_collected(self, dispute: bytes) -> bool:
        """Has somebody fetched the evidence?"""
        return dispute in self._collected

    def _opened(self, challenge: bytes) -> Contest:
        return open_challenge(challenge, referee=self._signer.public_key, run=self._run)

    def _require_room(self) -> None:
        if sum(not sitting.is_over for sitting in self._sittings.values()) >= _OPEN:
            raise UsageError(f"{_OPEN} disputes are open")
        if len(list(self._shelf.folder.glob("*.bundle"))) >= _KEPT:
            raise UsageError(f"{self._shelf.folder} holds {_KEPT} disputes; use another folder")

    def _hold(self, contest: Contest, docket: Docket) -> None:
        def on_over(referee: Referee) -> bytes:
            return self._keep(contest.dispute, docket, referee)

        sitting = Sitting(
            contest=contest,
            referee=Referee(
                signer=self._signer,
                judge=self._judge,
                deadlines=self._deadlines,
                now=self._clock(),
                run=self._run,
            ),
            docket=docket,
            clock=self._clock,
            on_over=on_over,
            report=self._report,
        )
        self._sittings[contest.dispute] = sitting
        sitting.start()
        self._attend(sitting)

    def _keep(self, dispute: Digest, docket: Docket, referee: Referee) -> bytes:
        """Write what is left of a dispute, the bundle first: with it the dispute is over. The signed verdict."""
        verdict = referee.verdict
        if verdict is None:
            raise UsageError("the dispute is not over")
        sealed = verdict.seal(self._signer)
        self._shelf.write(_bundle(dispute), referee.bundle())
        self._shelf.write(_verdict(dispute), sealed)
        with suppress(UsageError):
            docket.clear()
        with self._lock:
            del self._sittings[dispute]
        self._on_verdict(dispute, verdict)
        return sealed

    def _clean(self, dispute: Digest, docket: Docket) -> None:
        """Do what a referee that was killed when it had decided has not done any more."""
        if self._shelf.read(_verdict(dispute), LIMITS.verdict_bytes) is None:
            data = self._shelf.read(_bundle(dispute), Bundle.max_bytes) or b""
            bundle = Bundle.from_bytes(data, where=_bundle(dispute))
            self._shelf.write(_verdict(dispute), bundle.verdict)
        with suppress(UsageError):
            docket.clear()

    def _sitting(self, dispute: Digest) -> Sitting | None:
        """None: it is over.

        Raises:
            LookupError: there is no such dispute.
            StoppedError: an error ended it.
        """
        with self._lock:
            sitting = self._sittings.get(dispute)
        if sitting is None and not self._shelf.is_decided(dispute):
            raise LookupError(dispute)
        if sitting is not None and sitting.is_stopped:
            raise StoppedError(dispute)
        return sitting


def answer_bytes(question: bytes) -> int:
    """The most bytes that an answer to the referee's own question can have."""
    message = SignedMessage.from_bytes(question, where="question").opened(where="question")
    return Question.from_value(message.body).topic.answer_bytes


def _view(referee: Referee) -> View:
    asked = {role: referee.question(role) for role in PARTIES}
    questions = {role: question for role, question in asked.items() if question is not None}
    at_most = max(map(answer_bytes, questions.values()), default=View.at_most)
    return View(questions=questions, at_most=at_most)


def _bundle(dispute: Digest) -> str:
    return f"{dispute.hex()}.bundle"


def _verdict(dispute: Digest) -> str:
    return f"{dispute.hex()}.verdict.json"


class _OneAtATime:
    """A judge that is called by one thread at a time: a job's program has the process for itself."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._lock = threading.Lock()

    def next(self, case: Case, answered: Sequence[Answered]) -> Ruling | Ask:
        with self._lock:
            return self._judge.next(case, answered)
