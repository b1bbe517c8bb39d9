"""What a run's header claims, against one's own job, data and software."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from veritrain.encoding import DIGEST_BYTES, Value, same
from veritrain.errors import InconclusiveError, JobError, TranscriptError, VerificationError
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.loading.installed import found
from veritrain.job.sources import ALWAYS, contents_of, environment
from veritrain.job.step import Program
from veritrain.numerics import resolve
from veritrain.replay.causes import (
    DIFF_LINES,
    Cause,
    dataset_cause,
    sources_cause,
    versions_cause,
)
from veritrain.replay.report import Finding
from veritrain.replay.segments import differ
from veritrain.transcript import Header, Transcript, merkle
from veritrain.transcript.fields import shown

_MOST_SOURCES = 1 << 28  # bytes of one's own files that are read to explain a difference
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


def other_sources(
    job: Job, own: Mapping[str, Value], transcript: Transcript, *, most: int = DIFF_LINES
) -> Cause:
    """How the source files are others than those that the run claims: as far as it can be said,
    since no file of anybody's changes what the digests have decided.

    Args:
        job: one's own.
        own: the digests of its files, as it commits to them.
        transcript: of a run that claims other ones.
        most: lines of each diff.
    """
    sources = transcript.header.job.get("sources")
    claimed = sources if isinstance(sources, dict) else {}
    others = {n: value for n, value in own.items() if n not in claimed or claimed[n] != value}
    try:
        carried = transcript.sources()
        texts = contents_of(job, others, _MOST_SOURCES)
    except JobError as error:
        return Cause(words=f"the source files differ; in what, cannot be said: {error}")
    return sources_cause(own, claimed, texts, carried, most=most)


@dataclass(frozen=True, kw_only=True)
class OtherDataset:
    """How the data set is another than the one that a run committed to."""

    findings: tuple[Finding, ...]
    cause: str

    def __str__(self) -> str:
        return f"{self.cause}; {'; '.join(map(str, self.findings))}"


def other_dataset(batches: Batches, transcript: Transcript) -> OtherDataset | None:
    """How the data set is another than the one that the run committed to; None if it is not."""
    header = transcript.header
    digests = list(batches.record_digests(range(batches.count)))
    findings: list[Finding] = []
    if batches.count != header.dataset_count:
        findings.append(differ(None, "number of records", batches.count, header.dataset_count))
    root = merkle.root(digests)
    if root != header.dataset_root:
        findings.append(differ(None, "data set", root, header.dataset_root))
    if not findings:
        return None

    def form(index: int) -> str:
        return next(batches.described([index]))[1]

    try:
        cause = dataset_cause(digests, transcript.records(), form)
    except (TranscriptError, VerificationError) as error:
        cause = f"the records that the run carries cannot be used: {error}"
    except JobError as error:
        cause = f"which records differ cannot be said: {error}"
    return OtherDataset(findings=tuple(findings), cause=cause)


@dataclass(frozen=True, kw_only=True)
class OtherVersions:
    """How the packages are others than those that a run was recorded with."""

    cause: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.cause}: audit it with these ({self.evidence})"


def other_versions(program: Program, batches: Batches, header: Header) -> OtherVersions | None:
    """How the packages are others than those that the run was recorded with; None if they are
    not."""
    own = environment(program, batches.dataset)
    own |= found(header.environment.keys() - own.keys())  # what the job may come to later
    # What the run names not, its sources import not, or in other steps than were done here.
    own = {name: text for name, text in own.items() if name in header.environment or name in ALWAYS}
    packages = named_differences(own, header.environment)
    if not packages:
        return None
    cause = versions_cause(own, header.environment)
    return OtherVersions(cause=cause, evidence="; ".join(packages))


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
    if not isinstance(value, bytes):
        return shown(value)
    more = f"... of {len(value)} bytes" if len(value) > DIGEST_BYTES else ""
    return f"{value[:DIGEST_BYTES].hex()}{more}"
