"""Leaves: what a leaf claims about a step whose trace, or whose numerics, say otherwise."""

from __future__ import annotations

from veritrain.encoding import Value, encode
from veritrain.numerics import resolve
from veritrain.protocols.dispute.judge import Loser, Ruling
from veritrain.protocols.dispute.judging.judged_case import JudgedCase, against
from veritrain.replay.trace.entry_bodies import OutcomeBody
from veritrain.transcript.fields import differences
from veritrain.transcript.records import Leaf


def rounding_log_is_named(judged: JudgedCase) -> Ruling | None:
    """The numerics say of which steps a leaf names a rounding log; step 0 has none."""
    case = judged.case
    has_log = case.step > 0 and resolve(judged.arithmetic.numerics).has_log
    wrong = "a rounding log where there is none"
    if has_log:
        wrong = "no rounding log, and the numerics have one"

    def problem(leaf: Leaf) -> str | None:
        return wrong if (leaf.rounding is not None) != has_log else None

    return against((case.trainer, case.challenger), problem, f"leaf of step {case.step} names")


def outcome_is_the_leaf(judged: JudgedCase) -> Ruling | None:
    """Where the traces are equal, a leaf is false that is not their outcome."""
    case, outcome = judged.case, judged.bodies[0]
    if case.index is not None:
        return None
    if not isinstance(outcome, OutcomeBody) or outcome.refused:
        return Ruling(loser=Loser.TRAINER, reason="its rounding log does not lead through the step")
    found: dict[str, Value] = {
        "state": outcome.state, "loss": outcome.loss,
        "batch": outcome.batch, "rounding": outcome.rounding,
    }  # fmt: skip

    def problem(leaf: Leaf) -> str | None:
        claimed: dict[str, Value] = {
            "state": leaf.state, "loss": leaf.loss, "batch": leaf.batch, "rounding": leaf.rounding
        }  # fmt: skip
        is_false = encode(claimed) != encode(found)
        return "; ".join(differences(found, claimed)) if is_false else None

    what = f"leaf of step {case.step} is not what its trace comes to"
    return against((case.trainer, case.challenger), problem, what)
