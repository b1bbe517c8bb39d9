"""One dispute that a referee's process decides: a `Referee` with a thread, a clock and a folder.

Everything happens on the dispute's own thread, in the order in which messages came. Each message
has the time at which it came. A message that counted is on the disk before anybody can see the
question that follows from it. A referee that was killed takes these messages once more, in no
time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from veritrain.errors import UsageError
from veritrain.protocols.dispute.challenge import DisputeTerms, PartyMessage
from veritrain.protocols.dispute.dispute_limits import LIMITS
from veritrain.protocols.dispute.messages import PARTIES, Role
from veritrain.protocols.dispute.referee import Referee
from veritrain.service.dispute_folder import DisputeFolder

_INBOX = 2  # messages of one party that wait
_LOOK_SECONDS = 60.0  # at most between two looks at the clock

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class DisputeView:
    """The part of a running dispute that other threads and the parties see."""

    questions: Mapping[Role, bytes] = field(default_factory=dict[Role, bytes])
    at_most: int = LIMITS.leaf_bytes  # bytes that a message may have now
    verdict: bytes | None = None  # signed


class RunningDispute:
    """One dispute that is not over. Only its thread touches the `Referee`."""

    def __init__(
        self,
        *,
        terms: DisputeTerms,
        referee: Referee,
        folder: DisputeFolder,
        clock: Clock,
        on_over: Callable[[Referee], bytes],
        report: Callable[[str], None],
    ) -> None:
        """Nothing happens yet.

        Args:
            terms: of the challenge.
            referee: has not begun. Its first time is not later than the clock's time now.
            folder: holds the messages that counted before this process began.
            clock: seconds that never go back.
            on_over: keeps the verdict of the referee, and returns it signed.
            report: gets a line for people about an error that stopped the dispute.
        """
        self.terms = terms
        self._referee = referee
        self._folder = folder
        self._clock = clock
        self._began = clock()  # what comes from here on is later
        self._on_over = on_over
        self._report = report
        self._kept = 0  # messages on the disk, without the challenge
        self._changed = threading.Condition()  # of all that follows
        self._inbox: deque[tuple[PartyMessage, float]] = deque()  # with the time at which it came
        self._view = DisputeView()
        self._is_busy = False
        self._is_over = False
        self._is_stopped = False

    def start(self) -> None:
        """Begin, on a thread of its own."""
        threading.Thread(target=self._run, name="running dispute", daemon=True).start()

    @property
    def view(self) -> DisputeView:
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
        opened = self.terms.from_party(message, limit=LIMITS.detail_bytes)
        with self._changed:
            if sum(waiting.role is opened.role for waiting, _ in self._inbox) >= _INBOX:
                raise UsageError(f"messages of the {opened.role.value} wait already")
            self._inbox.append((opened, self._clock()))
            self._changed.notify_all()

    def next_question(self, role: Role, after: bytes | None, seconds: float) -> bytes | None:
        """The question that `role` has to answer now; None if there is none within `seconds`.

        Waits for another question than `after`. The same one comes back if the answer to it had no
        effect.
        """

        def is_another() -> bool:
            return self._is_over or self._view.questions.get(role) not in (None, after)

        with self._changed:
            self._changed.wait_for(is_another, seconds)
            question = self._view.questions.get(role)
            is_heard = self._is_busy or bool(self._inbox)
            return None if question == after and is_heard else question

    def _run(self) -> None:
        verdict = None
        try:
            self._resume()
            while self._referee.verdict is None:
                came = self._next()
                if came is not None:
                    self._referee.take(*came)
                    self._publish()
            verdict = self._on_over(self._referee)
        except (Exception, SystemExit) as error:  # a full disk, for example
            self._report(
                f"dispute {self.terms.dispute.hex()} stopped, and goes on when the referee "
                f"starts again: {type(error).__name__}: {error}"
            )
        with self._changed:
            self._is_stopped = verdict is None
            self._view = DisputeView(verdict=verdict)
            self._is_over = True
            self._changed.notify_all()

    def _resume(self) -> None:
        """Take the messages that counted before, all at one time: no deadline passes however long
        that takes. The open question gets its whole time once more."""
        self._referee.open(self.terms, self._began)
        for message in self._folder.messages():
            self._referee.receive(message, self._began)
        self._publish()

    def _next(self) -> tuple[PartyMessage, float] | None:
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
            return self._inbox.popleft()

    def _publish(self) -> None:
        """Keep the messages that counted, then show the question that follows from them."""
        messages = [event for event in self._referee.events if isinstance(event, bytes)][1:]
        for number, message in enumerate(messages[self._kept :], self._kept + 1):
            self._folder.add_message(number, message)
        self._kept = len(messages)
        self._referee.shown(self._clock())
        questions = {role: self._referee.question(role) for role in PARTIES}
        view = DisputeView(
            questions={role: data for role, data in questions.items() if data is not None},
            at_most=self._referee.answer_bytes or DisputeView.at_most,
        )
        with self._changed:
            self._view = view
            self._is_busy = False
            self._changed.notify_all()
