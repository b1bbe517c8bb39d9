"""A run's header beside one's own job: all that differs, where an audit stops at the first
difference.

Nothing is recomputed, and no signature is looked at: this explains, and does not judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from veritrain.encoding import Value, same
from veritrain.errors import InconclusiveError, TranscriptError, VerificationError
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.loading.installed import found
from veritrain.job.sources import commitment
from veritrain.replay.causes import Cause, settings_cause, versions_cause
from veritrain.replay.header import other_dataset, other_sources, require_numerics
from veritrain.transcript import Header, Transcript

_DIFF_LINES = 400  # of each file


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What differs, in words; None where nothing does.

    Attributes:
        settings, sources, numerics: parts of the job.
        versions: of packages that are installed here in another version than the run names. They
            are no part of the job.
        dataset: None also where it was not looked at.
        has_dataset: was it?
    """

    settings: str | None
    sources: Cause | None
    numerics: str | None
    versions: str | None
    dataset: str | None
    has_dataset: bool

    @property
    def is_same(self) -> bool:
        """Is the job the same, as far as it was looked at?"""
        return not any((self.settings, self.sources, self.numerics, self.dataset))


def compare(transcript: Transcript, job: Job, *, data: bool = False) -> Comparison:
    """Compare a run's header with `job`; with its data set too if `data`, which reads every record.

    Raises:
        TranscriptError: what the run carries is malformed or not what its header says.
        JobError: the job, or its data set, cannot be used.
    """
    header = transcript.header
    own = commitment(job)
    config, sources = (_map(header.job.get(name)) for name in ("config", "sources"))
    settings, files = _map(own["config"]), _map(own["sources"])
    other = other_dataset(Batches(job), transcript) if data else None
    return Comparison(
        settings=None if same(settings, config) else settings_cause(settings, config),
        sources=None if same(files, sources) else _sources(transcript, job, files),
        numerics=_numerics(job, header),
        versions=_versions(header.environment),
        dataset=None if other is None else other.cause,
        has_dataset=data,
    )


def _sources(transcript: Transcript, job: Job, own: Mapping[str, Value]) -> Cause:
    try:
        return other_sources(job, own, transcript, most=_DIFF_LINES)
    except VerificationError as error:
        raise TranscriptError("sources", str(error)) from error


def _numerics(job: Job, header: Header) -> str | None:
    try:
        require_numerics(job, header)
    except (VerificationError, InconclusiveError) as error:
        return str(error)
    return None


def _versions(claimed: Mapping[str, str]) -> str | None:
    own = found(claimed)
    return None if own == claimed else versions_cause(own, claimed)


def _map(value: Value) -> dict[str, Value]:
    return value if isinstance(value, dict) else {}
