"""The bounds on a client of a trainer's or a referee's service, beside those of HTTP itself."""

from __future__ import annotations

from dataclasses import dataclass

from veritrain.net.http_limits import HttpLimits
from veritrain.protocols.dispute.dispute_limits import LIMITS


@dataclass(frozen=True, kw_only=True)
class ServiceLimits(HttpLimits):
    """Bounds of one service."""

    question_bytes: int = LIMITS.challenge_bytes  # body of `POST /dispute/questions`
    verdict_bytes: int = LIMITS.verdict_bytes  # body of `POST /dispute/verdicts/{id}`
    challenge_bytes: int = LIMITS.challenge_bytes  # body of `POST /disputes`
    message_bytes: int = LIMITS.detail_bytes  # body of `POST /disputes/{id}/messages`
    party_threads: int = 16  # that call a trainer's or referee's methods
    poll_seconds: int = 30  # that a question of the referee is waited for


SERVICE_LIMITS = ServiceLimits()
