"""One entry of a trace: what one operator of a step did. `entry_bodies` says what a body holds.

The body is any map in this room: an entry is chained, opened and compared before anyone reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from veritrain.encoding import Digest, Value
from veritrain.errors import UsageError
from veritrain.transcript import fields as check
from veritrain.transcript.record import Record

MAX_ENTRIES = 4_000_000  # of one trace


@dataclass(frozen=True, kw_only=True)
class TraceEntry(Record):
    """An entry, chained to the one before.

    Two entries are the same when their digests are: `==` takes 1, 1.0 and True for equal.
    """

    type_name: ClassVar[str] = "trace entry"
    max_bytes: ClassVar[int] = 1 << 20

    index: int  # from 0
    previous: Digest  # of the entry before; of entry 0: of the leaf before the step, or the header
    final: bool  # the last one of the trace
    body: dict[str, Value]

    def __post_init__(self) -> None:
        check.check_integer("index", self.index, 0, MAX_ENTRIES - 1)
        check.check_digest("previous", self.previous)
        if type(self.final) is not bool:
            raise check.wrong("final", "true or false", self.final)
        if type(self.body) is not dict:
            raise check.wrong("body", "a map", self.body)
        try:
            self.to_bytes()
        except (TypeError, ValueError) as error:
            raise UsageError(f"field body: {error}") from error
