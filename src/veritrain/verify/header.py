"""What a run's header claims, against one's own job, data and software."""

from __future__ import annotations

from collections.abc import Mapping

from veritrain.data import Batches
from veritrain.encoding import DIGEST_BYTES, Value, same
from veritrain.errors import InconclusiveError, VerificationError
from veritrain.job import Job
from veritrain.numerics import resolve
from veritrain.sources import environment
from veritrain.step import Program
from veritrain.transcript.fields import shown
from veritrain.transcript.records import Header
from veritrain.verify.report import Finding
from veritrain.verify.segments import differ

DATA_HINT = (
    "if both hold the same files, the data set computes its records differently on this machine"
)
_NAMED_DIFFERENCES = 8  # a hostile header can have thousands


def require_numerics(job: Job, header: Header) -> None:
    """Check that a run was computed by the job's numerics.

    Raises:
        VerificationError: it was not.
        InconclusiveError: in a version that this software does not compute.
    """
    profile = resolve(job.numerics)
    if header.numerics != profile.name:
        raise VerificationError(f"numerics: expected {profile.name}, got {shown(header.numerics)}")
    if header.numerics_version != profile.version:
        raise InconclusiveError(
            f"the run uses version {header.numerics_version} of {profile.name} numerics; "
            f"this software computes version {profile.version}"
        )


def dataset_findings(batches: Batches, header: Header) -> tuple[Finding, ...]:
    """Where the data set is another than the one that the run committed to."""
    findings: list[Finding] = []
    if batches.count != header.dataset_count:
        findings.append(differ(None, "number of records", batches.count, header.dataset_count))
    root = batches.commitment()
    if root != header.dataset_root:
        findings.append(differ(None, "data set", root, header.dataset_root))
    return tuple(findings)


def require_environment(program: Program, batches: Batches, header: Header, text: str) -> None:
    """Check that a difference, described by `text`, cannot come from other packages.

    Raises:
        InconclusiveError: it can.
    """
    packages = named_differences(environment(program, batches.dataset), header.environment)
    if packages:
        raise InconclusiveError(
            f"{text}; the run was recorded in another environment ({'; '.join(packages)}): "
            "audit it in the recorded one"
        )


def named_differences(own: Mapping[str, Value], claimed: Mapping[str, Value]) -> list[str]:
    """Entries in which two maps differ, as text: the first of them."""
    names = sorted(
        name
        for name in own.keys() | claimed.keys()
        if name not in own or name not in claimed or not same(own[name], claimed[name])
    )
    texts = [
        f"{shown(name)}: expected {_text(own, name)}, got {_text(claimed, name)}"
        for name in names[:_NAMED_DIFFERENCES]
    ]
    left = len(names) - len(texts)
    return [*texts, f"and {left} more"] if left else texts


def _text(values: Mapping[str, Value], name: str) -> str:
    if name not in values:
        return "nothing"
    value = values[name]
    return value[:DIGEST_BYTES].hex() if isinstance(value, bytes) else shown(value)
