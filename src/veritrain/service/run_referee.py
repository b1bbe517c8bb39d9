"""The referee of one run behind a service: it decides many disputes, each as a `RunningDispute`.

The bundle decides a dispute: once it is on the disk there is no other verdict. Of a dispute that is
over, the bundle and the verdict stay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from veritrain.encoding import Digest
from veritrain.errors import UsageError, VerificationError
from veritrain.protocols.dispute.challenge import DisputeTerms, open_challenge
from veritrain.protocols.dispute.dispute_evidence import Bundle
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Judge, Ruling
from veritrain.protocols.dispute.messages import Role
from veritrain.protocols.dispute.referee import Deadlines, Referee
from veritrain.protocols.dispute.verdict import DisputeVerdict
from veritrain.runtime.progress import Stage, tell
from veritrain.service.backends import StoppedError
from veritrain.service.dispute_folder import (
    DisputeArchive,
    DisputeFolder,
    bundle_name,
    verdict_name,
)
from veritrain.service.running_dispute import Clock, DisputeView, RunningDispute
from veritrain.transcript.records import Header
from veritrain.transcript.signing import Signer, fingerprint, is_trusted

_OPEN = 8  # disputes at one time
_KEPT = 4096  # disputes on the disk
_HEADER = "header"


class RunReferee:
    """The `RefereeBackend` of one referee about one run."""

    def __init__(
        self,
        *,
        signer: Signer,
        judge: Judge,
        header: Header,
        deadlines: Deadlines,
        folder: Path,
        challengers: Collection[bytes | str] = (),
        forward: Callable[[RunningDispute], None],
        on_verdict: Callable[[Digest, DisputeVerdict], None],
        report: Callable[[str], None],
        clock: Clock = time.monotonic,
    ) -> None:
        """Goes on with the disputes that are open in `folder`.

        Args:
            signer: the referee's key.
            judge: recomputes; one thread at a time calls it.
            header: of the run.
            deadlines: of answers.
            folder: where disputes are kept; of this run alone.
            challengers: public keys and fingerprints of those who may challenge; none for
                everybody.
            forward: is called with each running dispute, to forward its questions to the trainer.
            on_verdict: is called with each dispute that is over, once its verdict is on the disk.
            report: gets a line for people where something went wrong.
            clock: seconds that never go back.

        Raises:
            UsageError: the folder cannot be used, or is of another run.
        """
        self._signer = signer
        self._judge = _OneAtATime(judge)
        self._run = header.digest
        self._deadlines = deadlines
        self._challengers = tuple(challengers)
        self._forward = forward
        self._on_verdict = on_verdict
        self._report = report
        self._clock = clock
        self._archive = DisputeArchive(folder)
        self._archive.write(_HEADER, header.to_bytes())
        self._lock = threading.Lock()  # of all that follows
        self._running: dict[Digest, RunningDispute] = {}
        self._collected: set[Digest] = set()
        with self._lock:
            for dispute in self._archive.contexts():
                kept = self._archive.dispute(dispute)
                if self._archive.is_decided(dispute):
                    self._clean(dispute, kept)
                elif not kept.is_empty:
                    self._hold(self._opened(kept.challenge), kept)

    def about(self) -> tuple[bytes, bytes]:
        """See `RefereeBackend.about`."""
        return self._signer.public_key, self._run

    def open(self, challenge: bytes) -> bytes:
        """See `RefereeBackend.open`.

        Raises:
            TranscriptError, VerificationError: see `open_challenge`; or not a challenger who may.
            UsageError: there are too many disputes.
        """
        terms = self._opened(challenge)
        challenger = terms.key(Role.CHALLENGER)
        if self._challengers and not is_trusted(challenger, self._challengers):
            raise VerificationError(f"challenger {fingerprint(challenger)} is not one who may")
        with self._lock:
            dispute = terms.dispute
            if dispute not in self._running and not self._archive.is_decided(dispute):
                self._require_room()
                folder = self._archive.dispute(dispute)
                folder.begin(challenge)
                self._hold(terms, folder)
                by = fingerprint(challenger)
                tell(Stage(doing=f"dispute {dispute.hex()} is opened, by challenger {by}"))
        return dispute

    def question(self, dispute: bytes, role: str) -> bytes | None:
        """See `RefereeBackend.question`."""
        running = self._find(dispute)
        return None if running is None else running.view.questions.get(Role(role))

    def at_most(self, dispute: bytes) -> int:
        """See `RefereeBackend.at_most`."""
        running = self._find(dispute)
        return DisputeView.at_most if running is None else running.view.at_most

    def receive(self, dispute: bytes, message: bytes) -> None:
        """See `RefereeBackend.receive`."""
        running = self._find(dispute)
        if running is not None:
            running.receive(message)

    def verdict(self, dispute: bytes) -> bytes | None:
        """See `RefereeBackend.verdict`."""
        if self._find(dispute) is not None:
            return None
        return self._archive.read(verdict_name(dispute), LIMITS.verdict_bytes)

    def evidence(self, dispute: bytes) -> BinaryIO | None:
        """See `RefereeBackend.evidence`."""
        return None if self._find(dispute) is not None else self._archive.open(bundle_name(dispute))

    def collected(self, dispute: bytes) -> None:
        """See `RefereeBackend.collected`."""
        self._collected.add(dispute)

    def is_collected(self, dispute: bytes) -> bool:
        """Has somebody fetched the evidence?"""
        return dispute in self._collected

    def _opened(self, challenge: bytes) -> DisputeTerms:
        return open_challenge(challenge, referee=self._signer.public_key, run=self._run)

    def _require_room(self) -> None:
        if sum(not running.is_over for running in self._running.values()) >= _OPEN:
            raise UsageError(f"{_OPEN} disputes are open")
        if len(list(self._archive.folder.glob("*.bundle"))) >= _KEPT:
            raise UsageError(f"{self._archive.folder} holds {_KEPT} disputes; use another folder")

    def _hold(self, terms: DisputeTerms, folder: DisputeFolder) -> None:
        def on_over(referee: Referee) -> bytes:
            return self._keep(terms.dispute, folder, referee)

        running = RunningDispute(
            terms=terms,
            referee=Referee(
                signer=self._signer,
                judge=self._judge,
                deadlines=self._deadlines,
                now=self._clock(),
                run=self._run,
            ),
            folder=folder,
            clock=self._clock,
            on_over=on_over,
            report=self._report,
        )
        self._running[terms.dispute] = running
        running.start()
        self._forward(running)

    def _keep(self, dispute: Digest, folder: DisputeFolder, referee: Referee) -> bytes:
        """Write the files of a dispute that is over, the bundle first; return the sealed
        verdict."""
        verdict = referee.verdict
        if verdict is None:
            raise UsageError("the dispute is not over")
        sealed = verdict.seal(self._signer)
        self._archive.write(bundle_name(dispute), referee.bundle())
        self._archive.write(verdict_name(dispute), sealed)
        with suppress(UsageError):
            folder.clear()
        with self._lock:
            del self._running[dispute]
        self._on_verdict(dispute, verdict)
        return sealed

    def _clean(self, dispute: Digest, folder: DisputeFolder) -> None:
        """Finish `_keep`: an earlier process was killed after it had written the bundle."""
        if self._archive.read(verdict_name(dispute), LIMITS.verdict_bytes) is None:
            data = self._archive.read(bundle_name(dispute), Bundle.max_bytes) or b""
            bundle = Bundle.from_bytes(data, where=bundle_name(dispute))
            self._archive.write(verdict_name(dispute), bundle.verdict)
        with suppress(UsageError):
            folder.clear()

    def _find(self, dispute: Digest) -> RunningDispute | None:
        """The dispute; None where it is over.

        Raises:
            LookupError: there is no such dispute.
            StoppedError: an error ended it.
        """
        with self._lock:
            running = self._running.get(dispute)
        if running is None and not self._archive.is_decided(dispute):
            raise LookupError(dispute)
        if running is not None and running.is_stopped:
            raise StoppedError(dispute)
        return running


class _OneAtATime:
    """A judge that one thread at a time calls: a job's program has the process for itself."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._lock = threading.Lock()

    def next(self, case: Case, answered: Sequence[Answered]) -> Ruling | Ask:
        with self._lock:
            return self._judge.next(case, answered)
