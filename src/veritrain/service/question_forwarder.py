"""Forwards a referee's questions to the trainer's service, and the verdict at the end.

The trainer's answers come back the same way.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from veritrain.errors import VeritrainError
from veritrain.net.http_client import PAUSES, HttpClient, UnansweredError, pause
from veritrain.protocols.dispute.messages import Role
from veritrain.service.running_dispute import RunningDispute

_QUESTIONS = "/dispute/questions"
_VERDICTS = "/dispute/verdicts"
_PLACE = re.compile(r"/dispute/answers/[0-9a-f]{64}", re.ASCII)
_SMALL_BYTES = 1 << 16  # of an answer that holds no message
_UNKNOWN = (404, 422)  # the trainer has not heard of the dispute, or started again
# In a row: challenges of strangers may push this one out before the question comes.
_INTRODUCTIONS = 5


def forward(dispute: RunningDispute, trainer: HttpClient, report: Callable[[str], None]) -> None:
    """Begin to forward the questions of a dispute to the trainer, on a thread of its own."""
    forwarder = QuestionForwarder(dispute, trainer, report)
    threading.Thread(target=forwarder.run, name="question forwarder", daemon=True).start()


class QuestionForwarder:
    """Forwards the questions of one dispute.

    A trainer that cannot be reached is asked again until the deadline ends the dispute. It can
    fetch the verdict at the referee later.
    """

    def __init__(
        self, dispute: RunningDispute, trainer: HttpClient, report: Callable[[str], None]
    ) -> None:
        self._dispute = dispute
        self._trainer = trainer
        self._report = report

    def run(self) -> None:
        """Forward questions until the dispute is over, then the verdict."""
        done: bytes | None = None
        while not self._dispute.is_over:
            question = self._dispute.next_question(Role.TRAINER, done, PAUSES[-1])
            if question is not None:
                self._deliver(question)
                done = question
        verdict = self._dispute.view.verdict
        if verdict is not None:
            self._conclude(verdict)

    def _deliver(self, question: bytes) -> None:
        told, attempt = "", 0
        while self._dispute.view.questions.get(Role.TRAINER) == question:
            try:
                self._dispute.receive(self._fetch(question))
            except Exception as error:  # a trainer must not lose by an error of this side
                if str(error) != told:
                    told = str(error)
                    self._report(f"the trainer has not answered: {told}")
            else:
                return
            time.sleep(pause(attempt))
            attempt += 1

    def _conclude(self, verdict: bytes) -> None:
        path, problem = f"{_VERDICTS}/{self._dispute.terms.dispute.hex()}", ""
        for seconds in PAUSES:
            try:
                status = self._trainer.post(path, verdict, _SMALL_BYTES).status
            except VeritrainError as error:
                problem = str(error)
            else:
                if status in (204, 404):  # 404: it was never asked anything
                    return
                problem = f"it answers with status {status}"
            time.sleep(seconds)
        self._report(f"the trainer has not taken the verdict: {problem}")

    def _fetch(self, question: bytes) -> bytes:
        """The answer, as soon as it is there.

        Raises:
            VeritrainError: there is none yet.
        """
        at_most = max(self._dispute.view.at_most, _SMALL_BYTES)
        answer = self._trainer.post(_QUESTIONS, question, at_most)
        for _ in range(_INTRODUCTIONS):
            if answer.status not in _UNKNOWN:
                break
            self._trainer.post(_QUESTIONS, self._dispute.terms.challenge.data, _SMALL_BYTES)
            answer = self._trainer.post(_QUESTIONS, question, at_most)
        if answer.status != 202:
            return answer.expect(200)
        return self._wait(answer.text("answer", _PLACE), at_most)

    def _wait(self, place: str, at_most: int) -> bytes:
        attempt = 0
        while not self._dispute.is_over:
            time.sleep(pause(attempt))
            answer = self._trainer.get(place, at_most)
            if answer.status != 202:
                return answer.expect(200)
            attempt += 1
        raise UnansweredError("the dispute is over")
