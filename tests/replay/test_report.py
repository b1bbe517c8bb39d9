"""A report cannot be misread: it has no truth value, and only all passes accept."""

from __future__ import annotations

import json
from itertools import product

import pytest

from veritrain import AuditReport, InconclusiveError, Verdict, VerificationError
from veritrain.replay.report import CheckResult, Finding, Outcome, conclude


def checks(*outcomes: Outcome) -> tuple[CheckResult, ...]:
    return tuple(
        CheckResult(number=i, name=f"check {i}", outcome=outcome, detail=f"detail {i}")
        for i, outcome in enumerate(outcomes, 1)
    )


def report(*outcomes: Outcome) -> AuditReport:
    return AuditReport(
        verdict=conclude(checks(*outcomes)),
        checks=checks(*outcomes),
        findings=(Finding(step=3, what="state", expected="ab", got="cd"),),
        location="runs/a",
        root=b"\x01" * 32,
        key="ff",
        steps_replayed=3,
        total_steps=5,
        sample_nonce=b"\x02" * 32,
    )


@pytest.mark.parametrize("outcomes", list(product(Outcome, repeat=3)))
def test_only_all_passes_accept(outcomes: tuple[Outcome, ...]) -> None:
    verdict = conclude(checks(*outcomes))
    assert (verdict is Verdict.ACCEPTED) == all(o is Outcome.PASSED for o in outcomes)
    assert (verdict is Verdict.REJECTED) == (Outcome.FAILED in outcomes)


def test_no_checks_accept_nothing() -> None:
    assert conclude(()) is Verdict.INCONCLUSIVE


def test_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match="no truth value"):
        bool(report(Outcome.PASSED))


def test_require_accepted() -> None:
    report(Outcome.PASSED, Outcome.PASSED).require_accepted()
    with pytest.raises(VerificationError, match="REJECTED: detail 2"):
        report(Outcome.PASSED, Outcome.FAILED).require_accepted()
    with pytest.raises(InconclusiveError, match="INCONCLUSIVE: detail 1"):
        report(Outcome.INCONCLUSIVE, Outcome.NOT_RUN).require_accepted()


def test_exit_codes() -> None:
    assert [verdict.exit_code for verdict in Verdict] == [0, 1, 3]


def test_to_dict_is_plain() -> None:
    value = json.loads(json.dumps(report(Outcome.PASSED, Outcome.FAILED).to_dict()))
    assert value["verdict"] == "rejected"
    assert value["checks"][1] == {
        "number": 2, "name": "check 2", "outcome": "failed", "detail": "detail 2",
    }  # fmt: skip
    assert value["findings"] == [{"step": 3, "what": "state", "expected": "ab", "got": "cd"}]
    assert value["root"] == "01" * 32


def test_finding_reads_as_a_sentence() -> None:
    finding = Finding(step=41, what="state", expected="9f3c", got="77ab")
    assert str(finding) == "step 41: state: expected 9f3c, got 77ab"
