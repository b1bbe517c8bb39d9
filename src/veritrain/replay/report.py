"""What an audit found: a verdict, the numbered checks, and the evidence.

A report has no truth value on purpose: three verdicts do not fit into a boolean. ACCEPTED means
that every check ran and passed; a check that did not run is never a pass.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

from veritrain.encoding import Digest, Value
from veritrain.errors import InconclusiveError, VerificationError
from veritrain.runtime.text import one_line

_DIGEST = re.compile(r"\b([0-9a-f]{16})[0-9a-f]{48}\b", re.ASCII)
_STEP = re.compile(r"step (\d+): (.*)", re.ASCII | re.DOTALL)


class Verdict(Enum):
    """What follows from an audit."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_code(self) -> int:
        """What the command line returns: 0, 1 or 3."""
        return _EXIT_CODES[self]


_EXIT_CODES = {
    Verdict.ACCEPTED: 0,
    Verdict.REJECTED: VerificationError.exit_code,
    Verdict.INCONCLUSIVE: InconclusiveError.exit_code,
}


class Outcome(Enum):
    """How one check ended."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    NOT_RUN = "not run"


_MARKS = {
    Outcome.PASSED: "ok",
    Outcome.FAILED: "FAILED",
    Outcome.INCONCLUSIVE: "??",
    Outcome.NOT_RUN: "--",
}


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One numbered check."""

    number: int
    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A difference between what the transcript claims and what the auditor computed.

    `expected` is the auditor's value, `got` the transcript's; both as text, digests in hexadecimal.
    """

    step: int | None
    what: str
    expected: str
    got: str

    def __str__(self) -> str:
        place = "" if self.step is None else f"step {self.step}: "
        return f"{place}{self.what}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The result of `veritrain.audit`.

    Attributes:
        verdict: the conclusion. It follows from `checks` alone.
        checks: every check in order, those that did not run too.
        findings: differences, the first one first; empty where a check failed for another reason.
        cause: in words, what makes the job, the data set or the packages others than the run's;
            None where nothing is known of it, or everything is equal.
        diff: lines of unified diffs of source files that differ, escaped and cut short; `-` the
            run's, `+` one's own.
        location: the run's folder or URL.
        root: Merkle root of the last signed head: what the verdict is about.
        key: fingerprint of the trainer's key.
        steps_replayed: steps that were recomputed and found equal.
        total_steps: steps that the transcript holds.
        sample_nonce: the random bytes that a sample was drawn by; None without a sample.
    """

    verdict: Verdict
    checks: tuple[CheckResult, ...]
    findings: tuple[Finding, ...]
    location: str
    root: Digest | None
    key: str
    steps_replayed: int
    total_steps: int
    sample_nonce: bytes | None
    cause: str | None = None
    diff: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As `veritrain audit` prints it."""
        return "\n".join([*map(check_line, self.checks), "", *self.facts(), self.verdict_line()])

    def __bool__(self) -> NoReturn:
        raise TypeError("a report has no truth value; use .verdict or .require_accepted()")

    @property
    def reason(self) -> str:
        """One line: the detail of the check that decided, or what was accepted."""
        for check in self.checks:
            if check.outcome in (Outcome.FAILED, Outcome.INCONCLUSIVE):
                return check.detail
        return f"{self.steps_replayed} of {self.total_steps} steps recomputed to the same bits"

    def facts(self) -> list[str]:
        """Lines for people: diffs, and what the verdict is about."""
        root = "none" if self.root is None else self.root.hex()
        lines = [*self.diff, ""] if self.diff else []
        lines += [f"key     {self.key}", f"digest  {root}"]
        return (
            lines if self.sample_nonce is None else [*lines, f"nonce   {self.sample_nonce.hex()}"]
        )

    def verdict_line(self) -> str:
        """The conclusion in one line, with digests cut short: `REJECTED at step 41: ...`."""
        parts = [str(self.findings[0])] if self.findings else [] if self.cause else [self.reason]
        if self.cause is not None:
            parts = (
                [*parts, self.cause]
                if parts and self.findings[0].step is not None
                else [self.cause]
            )
        reason = _shorten(one_line("; ".join(parts)))
        at_step = _STEP.fullmatch(reason)
        if self.verdict is Verdict.ACCEPTED or at_step is None:
            return f"{self.verdict.name}: {reason}"
        return f"{self.verdict.name} at step {at_step[1]}: {at_step[2]}"

    def require_accepted(self) -> None:
        """Return only if the verdict is ACCEPTED.

        Raises:
            VerificationError: REJECTED.
            InconclusiveError: INCONCLUSIVE.
        """
        if self.verdict is Verdict.REJECTED:
            raise VerificationError(f"REJECTED: {self.reason}")
        if self.verdict is not Verdict.ACCEPTED:
            raise InconclusiveError(f"INCONCLUSIVE: {self.reason}")

    def to_dict(self) -> dict[str, Value]:
        """The report for programs: text, numbers, lists and maps only."""
        return {
            "verdict": self.verdict.value,
            "reason": self.reason,
            "cause": self.cause,
            "diff": [*self.diff],
            "location": self.location,
            "root": None if self.root is None else self.root.hex(),
            "key": self.key,
            "steps_replayed": self.steps_replayed,
            "total_steps": self.total_steps,
            "sample_nonce": None if self.sample_nonce is None else self.sample_nonce.hex(),
            "checks": [
                {
                    "number": check.number,
                    "name": check.name,
                    "outcome": check.outcome.value,
                    "detail": check.detail,
                }
                for check in self.checks
            ],
            "findings": [
                {
                    "step": finding.step,
                    "what": finding.what,
                    "expected": finding.expected,
                    "got": finding.got,
                }
                for finding in self.findings
            ],
        }


def check_line(check: CheckResult) -> str:
    """One numbered check for people."""
    detail = one_line(check.detail)
    detail = _shorten(detail) if check.outcome is Outcome.PASSED else detail
    return f"{check.number}  {check.name:<14} {_MARKS[check.outcome]:<7} {detail}"


def _shorten(text: str) -> str:
    return _DIGEST.sub(r"\1…", text)


def conclude(checks: tuple[CheckResult, ...]) -> Verdict:
    """The verdict that follows from the checks: one failure rejects, and only all passes accept."""
    outcomes = {check.outcome for check in checks}
    if Outcome.FAILED in outcomes:
        return Verdict.REJECTED
    if outcomes == {Outcome.PASSED}:
        return Verdict.ACCEPTED
    return Verdict.INCONCLUSIVE
