"""Form: an entry that nobody can have computed, whatever its step came to."""

from __future__ import annotations

from veritrain.encoding import digest
from veritrain.errors import FieldError
from veritrain.job.step import Program
from veritrain.protocols.dispute.judge import Ruling
from veritrain.protocols.dispute.judging.judged_case import JudgedCase, against
from veritrain.replay.trace.entry import TraceEntry
from veritrain.replay.trace.entry_bodies import read_body
from veritrain.replay.trace.tracer import initial_trace


def malformed(judged: JudgedCase) -> Ruling | None:
    """An entry is of the one form, and in a place where its kind may be."""

    def problem(entry: TraceEntry) -> str | None:
        try:
            read_body(entry)
        except FieldError as error:
            return str(error)
        return None

    return against(judged.case.entries, problem, "is malformed")


def initial_state(judged: JudgedCase) -> Ruling | None:
    """Step 0 is built from the job and its seed: the referee does so itself."""
    case = judged.case
    if case.step > 0:
        return None
    index = case.entries[0].index
    built = initial_trace(Program.build(judged.job), case.header.digest)
    expected = digest(TraceEntry.type_name, built[index]) if index < len(built) else None

    def problem(entry: TraceEntry) -> str | None:
        is_false = entry.digest != expected
        return "the job's initial state has another one" if is_false else None

    return against(case.entries, problem, f"entry {index} of step 0")
