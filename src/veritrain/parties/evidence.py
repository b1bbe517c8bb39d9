"""Evidence: the events from which anyone comes to the same conclusion offline.

A protocol's state machine that is given these events in this order ends as it did for the party
that kept them. Each protocol has its own record of evidence, which adds what its machine needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from veritrain.encoding import Value
from veritrain.transcript import fields as check
from veritrain.transcript.record import Record

Event: TypeAlias = bytes | int  # a signed envelope that counted; a slot whose deadline passed


@dataclass(frozen=True, kw_only=True)
class Evidence(Record):
    """Everything that an outcome follows from.

    Attributes:
        events: in the order in which they were taken.
    """

    max_events: ClassVar[int]
    max_slot: ClassVar[int]  # number of the last slot that can time out

    events: tuple[Event, ...]

    def __post_init__(self) -> None:
        if len(self.events) > self.max_events:
            raise check.wrong("events", f"at most {self.max_events}", self.events)
        for event in self.events:
            if type(event) is not bytes:
                check.check_integer("timeout", event, 1, self.max_slot)

    def to_value(self) -> dict[str, Value]:
        """The record as a map of its fields and its type."""
        events: list[Value] = [
            {"message": event} if isinstance(event, bytes) else {"timeout": event}
            for event in self.events
        ]
        return {**super().to_value(), "events": events}

    @classmethod
    def _take(cls, value: Value, *extra: str) -> dict[str, Any]:
        taken = super()._take(value, *extra)
        if not isinstance(taken["events"], list):
            raise check.wrong("events", "an array", taken["events"])
        return {**taken, "events": tuple(map(_event, taken["events"]))}


def _event(value: Value) -> Event:
    if isinstance(value, dict) and len(value) == 1:
        message, timeout = value.get("message"), value.get("timeout")
        if type(message) is bytes:
            return message
        if type(timeout) is int:
            return timeout
    raise check.wrong("events", "a message or a timeout", value)
