"""The trainer of one run behind a service: it takes challenges and questions, and signs answers.

Anybody may bring a challenge that names a trusted referee. The trainer remembers it for a while.
It writes and computes nothing until that referee signed a question in it. Each dispute has a
thread of its own. One replay runs at a time; values at hand are opened meanwhile. An answer and a
computed trace are on the disk before they can be fetched, so a trainer that was killed gives the
same answers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from veritrain.encoding import Digest, digest
from veritrain.errors import UsageError, VerificationError
from veritrain.job.job import Job
from veritrain.job.sources import require_job
from veritrain.parties.envelope import SignedEnvelope
from veritrain.parties.equivocation import EquivocationError
from veritrain.parties.journal import Journal
from veritrain.protocols.dispute.challenge import DisputeTerms, ReadChallenge, read_challenge
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.messages import Message, MessageKind, Role
from veritrain.protocols.dispute.party import DisputeParty, OpenedQuestion, open_question
from veritrain.protocols.dispute.replayed_claims import ReplayedClaims
from veritrain.protocols.dispute.verdict import DisputeVerdict, unseal
from veritrain.runtime.progress import Stage, tell
from veritrain.service.dispute_folder import DisputeArchive, DisputeFolder, verdict_name
from veritrain.transcript import Transcript
from veritrain.transcript.record import check_equal
from veritrain.transcript.signing import Signer, fingerprint, is_trusted

_MESSAGE_ITEMS = 1 << 16  # CBOR values in what somebody sends, before it is known who
_PENDING = 16  # challenges that no referee has asked about
_ACTIVE = 4  # disputes whose replays are held in memory, beside those that are being answered
_WAITING = 16  # questions
_SHOWN_BYTES = (
    2 * LIMITS.detail_bytes
)  # answers that can be fetched; older ones are asked for again
_KEPT = 4096  # disputes on the disk
_FRAME_BYTES = (
    1 << 14
)  # that each of them counts for beside its own, so that there are not too many
_SOON_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A question that waits for its answer."""

    name: Digest
    question: OpenedQuestion


class _Dispute:
    """One dispute of this trainer. Only the thread that answers uses `party`."""

    def __init__(
        self,
        job: Job,
        transcript: Transcript,
        terms: DisputeTerms,
        signer: Signer,
        folder: DisputeFolder,
        replaying: AbstractContextManager[Any, Any],
    ) -> None:
        self.terms = terms
        self.folder = folder
        self.tasks: deque[_Task] = deque()
        self.is_answering = False  # is there a thread?
        self._job = job
        self._transcript = transcript
        self._signer = signer
        self._replaying = replaying

    @cached_property
    def party(self) -> DisputeParty:
        leaves = self._transcript.leaves[: self.terms.head.size]
        entries = self.folder.entries()
        claims = ReplayedClaims(
            self._job,
            self._transcript,
            [leaf.to_bytes() for leaf in leaves],
            traces=self.folder.traces(entries),
            replaying=self._replaying,
        )
        return DisputeParty(
            role=Role.TRAINER,
            signer=self._signer,
            terms=self.terms,
            claims=claims,
            journal=Journal(entries),
        )


class RunTrainer:
    """The `TrainerBackend` of one run."""

    def __init__(
        self,
        *,
        job: Job,
        run: Path,
        signer: Signer,
        referees: Collection[bytes | str],
        state: Path,
        on_verdict: Callable[[DisputeVerdict], None],
        report: Callable[[str], None],
    ) -> None:
        """Nothing is computed yet.

        Args:
            job: of the run.
            run: its folder.
            signer: with the key that signed the run.
            referees: public keys and fingerprints of those whose questions are answered.
            state: the folder where everything that was signed is kept.
            on_verdict: is called with each verdict that a referee brings, once it is on the disk.
            report: gets a line for people where a question could not be answered.

        Raises:
            UsageError: key, job or folders that do not fit, or nobody to answer.
            TranscriptError: not a well-formed run.
        """
        if not referees:
            raise UsageError("a trainer needs a referee whose questions it answers")
        self._job = job
        self._run = run
        self._signer = signer
        self._referees = tuple(referees)
        self._on_verdict = on_verdict
        self._report = report
        self._transcript = Transcript.open(run)
        if signer.public_key != self._transcript.header.public_key:
            raise UsageError(f"{run} was signed by another key than {signer.fingerprint}")
        require_job(job, self._transcript.header.job, str(run))
        self._archive = DisputeArchive(state)
        self._replaying = threading.RLock()  # a job's program has the process for itself
        self._lock = threading.Condition()  # of all that follows
        self._pending: OrderedDict[Digest, DisputeTerms] = OrderedDict()
        self._active: OrderedDict[Digest, _Dispute] = OrderedDict()
        self._waiting: set[Digest] = set()
        self._shown = _Shown(_SHOWN_BYTES)

    def submit(self, question: bytes) -> bytes:
        """See `TrainerBackend.submit`; a challenge is taken too, and its answer is empty.

        Raises:
            TranscriptError: malformed bytes.
            VerificationError: not of a dispute of this run before a trusted referee, or not signed.
            UsageError: there is too much to do.
        """
        signed = SignedEnvelope.read(question, limit=LIMITS.challenge_bytes, where="message")
        message = signed.opened(Message, where="message", max_items=_MESSAGE_ITEMS)
        name = digest("submitted message", question)
        with self._lock:
            if message.kind is MessageKind.CHALLENGE:
                self._take_challenge(ReadChallenge.of(signed, message))
                self._shown.add(name, b"")
            elif self._shown.get(name) is None and name not in self._waiting:
                self._take_question(name, signed, message)
        return name

    def get(self, digest: bytes) -> bytes | None:
        """See `TrainerBackend.get`; waits a little for an answer that comes soon."""
        with self._lock:
            self._lock.wait_for(lambda: digest not in self._waiting, _SOON_SECONDS)
            found = self._shown.get(digest)
            if found is None and digest not in self._waiting:
                raise LookupError(digest)
            return found

    def conclude(self, dispute: bytes, verdict: bytes) -> None:
        """See `TrainerBackend.conclude`. What was signed in the dispute stays on the disk.

        Raises:
            LookupError: no question of that dispute was taken.
            TranscriptError, VerificationError: not its verdict, signed by its referee.
            UsageError: it had another one before, or it cannot be kept.
        """
        with self._lock:
            if self._archive.dispute(dispute).is_empty:
                raise LookupError(dispute)
            opened = unseal(verdict, self._known(dispute).key(Role.REFEREE))
            check_equal("dispute of the verdict", dispute, opened.dispute)
            is_new = self._archive.write(verdict_name(dispute), verdict)
            self._forget(dispute)
        if is_new:
            self._on_verdict(opened)

    def _take_challenge(self, read: ReadChallenge) -> None:
        dispute = read.message.dispute
        if dispute in self._pending or dispute in self._active:
            return
        self._pending[dispute] = self._opened(read)
        while len(self._pending) > _PENDING:
            self._pending.popitem(last=False)
        tell(Stage(doing=f"dispute {dispute.hex()} is opened about this run"))

    def _opened(self, read: ReadChallenge) -> DisputeTerms:
        """The terms of a challenge.

        Raises:
            TranscriptError, VerificationError: see `ReadChallenge.open`; or the referee is not
                trusted, or the head not one of this run.
        """
        referee = read.challenge.referee
        if not is_trusted(referee, self._referees):
            raise VerificationError(f"referee {fingerprint(referee)} is not trusted")
        terms = read.open(referee=referee, run=self._transcript.header.digest)
        if terms.head.size > len(self._transcript.leaves):  # the run went on
            self._transcript = Transcript.open(self._run)
        if all(signed.head.digest != terms.head.digest for signed in self._transcript.heads):
            raise VerificationError("the head that is challenged is not in the run's folder")
        return terms

    def _take_question(self, name: Digest, signed: SignedEnvelope, message: Message) -> None:
        dispute = self._active.get(message.dispute)
        terms = self._known(message.dispute) if dispute is None else dispute.terms
        asked = open_question(signed, message, terms)
        if len(self._waiting) >= _WAITING:
            raise UsageError("too many questions wait for their answers")
        if dispute is None:
            dispute = self._activated(terms)
        self._active.move_to_end(message.dispute)
        self._waiting.add(name)
        dispute.tasks.append(_Task(name=name, question=asked))
        if not dispute.is_answering:
            dispute.is_answering = True
            threading.Thread(target=self._work, args=[dispute], name="answers", daemon=True).start()
        self._make_room()

    def _known(self, dispute: Digest) -> DisputeTerms:
        """The terms of a challenge that was brought lately, or was kept.

        Raises:
            VerificationError: there is none.
        """
        if dispute in self._pending:
            return self._pending[dispute]
        folder = self._archive.dispute(dispute)
        if folder.is_empty:
            raise VerificationError("a question in a dispute that is not known here")
        read = read_challenge(folder.challenge)
        check_equal("kept dispute", dispute, read.message.dispute)
        return self._opened(read)

    def _activated(self, terms: DisputeTerms) -> _Dispute:
        folder = self._archive.dispute(terms.dispute)
        if folder.is_empty and len(self._archive.contexts()) >= _KEPT:
            raise UsageError(f"{self._archive.folder} holds {_KEPT} disputes; use another folder")
        folder.begin(terms.challenge.data)
        self._pending.pop(terms.dispute, None)
        made = _Dispute(self._job, self._transcript, terms, self._signer, folder, self._replaying)
        self._active[terms.dispute] = made
        return made

    def _make_room(self) -> None:
        """Drop idle disputes from memory, those first that were asked about longest ago."""
        idle = [name for name, dispute in self._active.items() if not dispute.is_answering]
        for name in idle[: max(0, len(self._active) - _ACTIVE)]:
            del self._active[name]

    def _forget(self, dispute: Digest) -> None:
        """Drop what was computed for a dispute that is over."""
        active = self._active.get(dispute)
        if active is None or not active.is_answering:
            self._active.pop(dispute, None)
            with suppress(UsageError):
                self._archive.dispute(dispute).forget_trace()

    def _work(self, dispute: _Dispute) -> None:
        """Answer what waits in a dispute, then end."""
        while (task := self._next(dispute)) is not None:
            answer = self._answered(dispute, task.question)
            with self._lock:
                self._waiting.discard(task.name)
                if answer is not None:
                    self._shown.add(task.name, answer)
                self._lock.notify_all()

    def _next(self, dispute: _Dispute) -> _Task | None:
        with self._lock:
            if dispute.tasks:
                return dispute.tasks.popleft()
            dispute.is_answering = False
            self._make_room()
            return None

    def _answered(self, dispute: _Dispute, question: OpenedQuestion) -> bytes | None:
        try:
            return dispute.party.answer_opened(question)
        except (Exception, SystemExit) as error:  # a job's code too; it stays unanswered
            self._report(f"a question is not answered: {type(error).__name__}: {error}")
            if isinstance(error, EquivocationError):
                self._keep_proof(dispute, error.pair)
            return None

    def _keep_proof(self, dispute: _Dispute, pair: tuple[bytes, bytes]) -> None:
        try:
            place = dispute.folder.keep_equivocation(pair)
        except UsageError as error:
            self._report(f"proof against the referee is lost: {error}")
        else:
            self._report(f"the referee signed two questions with one number: proof in {place}")


class _Shown:
    """Answers that can be fetched: the latest ones, of a bounded size together."""

    def __init__(self, limit: int) -> None:
        self._left = limit  # bytes
        self._answers: OrderedDict[Digest, bytes] = OrderedDict()

    def get(self, name: Digest) -> bytes | None:
        """The answer, if it is here."""
        return self._answers.get(name)

    def add(self, name: Digest, answer: bytes) -> None:
        """Show one more; each takes some room beside its bytes."""
        if name in self._answers:
            return
        self._answers[name] = answer
        self._left -= len(answer) + _FRAME_BYTES
        while self._left < 0 and len(self._answers) > 1:
            self._left += len(self._answers.popitem(last=False)[1]) + _FRAME_BYTES
