"""Carries a referee's questions to the trainer's service, its answers back, and at last the verdict."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable

from veritrain.errors import TranscriptError, VeritrainError
from veritrain.protocols.dispute.messages import Role
from veritrain.service.court import Sitting, answer_bytes
from veritrain.service.peer import Answer, Peer, UnansweredError

_QUESTIONS = "/dispute/questions"
_VERDICTS = "/dispute/verdicts"
_PLACE = re.compile(r"/dispute/answers/[0-9a-f]{64}", re.ASCII)
_SMALL_BYTES = 1 << 16  # of an answer that holds no message
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds; the last one again and again
_UNKNOWN = (404, 422)  # the trainer has not heard of the dispute, or started again
_INTRODUCTIONS = (
    5  # in a row: challenges of strangers may push this one out before the question comes
)


def attend(sitting: Sitting, trainer: Peer, report: Callable[[str], None]) -> None:
    """Begin to carry the questions of a sitting to the trainer, on a thread of its own."""
    courier = _Courier(sitting, trainer, report)
    threading.Thread(target=courier.run, name="courier", daemon=True).start()


class _Courier:
    def __init__(self, sitting: Sitting, trainer: Peer, report: Callable[[str], None]) -> None:
        self._sitting = sitting
        self._trainer = trainer
        self._report = report

    def run(self) -> None:
        """Go on until the dispute is over. Whatever fails is tried again: the deadline ends it. A trainer
        that cannot be reached at the end finds the verdict with the referee."""
        done: bytes | None = None
        while not self._sitting.is_over:
            question = self._sitting.next_question(Role.TRAINER, done, _PAUSES[-1])
            if question is not None:
                self._deliver(question)
                done = question
        verdict = self._sitting.view.verdict
        if verdict is not None:
            self._conclude(verdict)

    def _deliver(self, question: bytes) -> None:
        told, attempt = "", 0
        while self._sitting.view.questions.get(Role.TRAINER) == question:
            try:
                self._sitting.receive(self._fetch(question))
            except Exception as error:  # a trainer must not lose by an error of this side
                if str(error) != told:
                    told = str(error)
                    self._report(f"the trainer has not answered: {told}")
            else:
                return
            time.sleep(_pause(attempt))
            attempt += 1

    def _conclude(self, verdict: bytes) -> None:
        path, problem = f"{_VERDICTS}/{self._sitting.contest.dispute.hex()}", ""
        for pause in _PAUSES:
            try:
                status = self._trainer.post(path, verdict, _SMALL_BYTES).status
            except VeritrainError as error:
                problem = str(error)
            else:
                if status in (204, 404):  # 404: it was never asked anything
                    return
                problem = f"it answers with status {status}"
            time.sleep(pause)
        self._report(f"the trainer has not taken the verdict: {problem}")

    def _fetch(self, question: bytes) -> bytes:
        """The answer, as soon as it is there.

        Raises:
            VeritrainError: there is none yet.
        """
        at_most = max(answer_bytes(question), _SMALL_BYTES)
        answer = self._trainer.post(_QUESTIONS, question, at_most)
        for _ in range(_INTRODUCTIONS):
            if answer.status not in _UNKNOWN:
                break
            self._trainer.post(_QUESTIONS, self._sitting.challenge, _SMALL_BYTES)
            answer = self._trainer.post(_QUESTIONS, question, at_most)
        if answer.status != 202:
            return _body(answer)
        return self._wait(_place(answer.body), at_most)

    def _wait(self, place: str, at_most: int) -> bytes:
        attempt = 0
        while not self._sitting.is_over:
            time.sleep(_pause(attempt))
            answer = self._trainer.get(place, at_most)
            if answer.status != 202:
                return _body(answer)
            attempt += 1
        raise UnansweredError("the dispute is over")


def _body(answer: Answer) -> bytes:
    if answer.status != 200:
        raise UnansweredError(f"it answers with status {answer.status}")
    return answer.body


def _place(body: bytes) -> str:
    """Where an answer will be, as the trainer says: one form, below the trainer's own address."""
    try:
        place = json.loads(body)["answer"]
    except (ValueError, TypeError, KeyError, RecursionError):
        place = None
    if not isinstance(place, str) or not _PLACE.fullmatch(place):
        raise TranscriptError(_QUESTIONS, "the trainer does not say where the answer will be")
    return place


def _pause(attempt: int) -> float:
    return _PAUSES[min(attempt, len(_PAUSES) - 1)]
