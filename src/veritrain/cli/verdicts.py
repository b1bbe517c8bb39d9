"""How verdicts of disputes are printed, and what they mean as an exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veritrain.cli import output

if TYPE_CHECKING:
    from veritrain.protocols.dispute.verdict import DisputeVerdict

_CODES = {"rejected": 1, "challenge refuted": 0, "inconclusive": 3}
_STYLES = {
    "rejected": "bold red",
    "challenge refuted": "bold green",
    "inconclusive": "bold yellow",
}


def exit_code(verdict: DisputeVerdict) -> int:
    """0 the challenge is refuted, 1 the run is rejected, 3 inconclusive."""
    return _CODES[verdict.conclusion.value]


def data(verdict: DisputeVerdict) -> dict[str, object]:
    """The verdict for programs."""
    return {
        "conclusion": verdict.conclusion.value,
        "loser": verdict.loser.value,
        "reason": verdict.reason,
        "timed_out": verdict.timed_out,
        "run": verdict.run,
        "dispute": verdict.dispute,
        "root": verdict.root,
        "step": verdict.step,
        "index": verdict.index,
        "rounds": verdict.rounds,
        "messages": verdict.messages,
        "bytes": verdict.bytes,
        "evidence": verdict.evidence,
    }


def lines(verdict: DisputeVerdict) -> list[output.Line]:
    """The verdict for people."""
    step = "not reached" if verdict.step is None else f"{verdict.step}"
    entry = "" if verdict.index is None else f", entry {verdict.index} of its trace"
    late = "; that a deadline passed is the referee's word" if verdict.timed_out else ""
    conclusion = verdict.conclusion.value
    return [
        f"dispute    {verdict.dispute.hex()}",
        f"run        {verdict.run.hex()}",
        f"step       {step}{entry}",
        (
            f"game       {verdict.rounds} questions, {verdict.messages} messages, "
            f"{verdict.bytes} bytes"
        ),
        (f"{conclusion.upper()}: {output.one_line(verdict.reason)}{late}", _STYLES[conclusion]),
    ]
