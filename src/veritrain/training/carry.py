"""What a run begins with: its header, and what it carries so that a difference can be explained.

A run carries the job's source files, and the digest and the form (kinds, dtypes, shapes) of each
record of the data set, where these are not too large and nobody asks for secrecy. A source file is
then there to be read for everyone who has the run. A digest does not show its record; but a person
who guesses a record (a label, a short text, a number) can tell by its digest whether the guess is
right.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import cast

from veritrain.encoding import Value, digest
from veritrain.errors import JobError
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.sources import commitment, contents, environment
from veritrain.job.step import Program
from veritrain.transcript import Header, Signer, merkle
from veritrain.transcript.carried import Records, Sources
from veritrain.transcript.fields import shown
from veritrain.transcript.limits import LIMITS

Carried = tuple[Sources | Records, ...]
_SOURCES_ROOM = LIMITS.sources_bytes - LIMITS.header_bytes  # the names are in the file too


def begin(
    program: Program, batches: Batches, signer: Signer, *, secret: bool
) -> tuple[Header, Carried]:
    """The header of a run, and what the run carries: nothing if it is `secret`.

    What is too large to be carried is left out with a warning.

    Raises:
        JobError: the job cannot be committed to, or a source file changed meanwhile.
    """
    is_described = not secret and Records.would_fit(batches.count)
    every = range(batches.count)
    described = list(batches.described(every)) if is_described else []
    digests = [found for found, _ in described] or list(batches.record_digests(every))
    header = Header(
        numerics=program.profile.name,
        numerics_version=program.profile.version,
        job=commitment(program.job),
        dataset_root=merkle.root(digests),
        dataset_count=batches.count,
        environment=environment(program, batches.dataset),
        public_key=signer.public_key,
    )
    if secret:
        return header, ()
    sources = _sources(program.job, cast("dict[str, Value]", header.job["sources"]))
    carried = [sources] if sources is not None else []
    if is_described:
        return header, (*carried, Records.signed(header, described, signer))
    _left_out(f"digests of {batches.count} records", LIMITS.records_bytes)
    return header, tuple(carried)


def carried_bytes(job: Job, records: int) -> int:
    """About how much a run of `job` carries that is not secret, with so many records.

    Raises:
        JobError: as `begin`.
    """
    files = contents(job, _SOURCES_ROOM) or {}
    sources = sum(len(name) + len(data) for name, data in files.items())
    return sources + (Records.bytes_of(records) if Records.would_fit(records) else 0)


def _sources(job: Job, claimed: Mapping[str, Value]) -> Sources | None:
    files = contents(job, _SOURCES_ROOM)
    if files is None or any(len(name) > LIMITS.path_chars for name in files):
        _left_out("the source files", _SOURCES_ROOM)
        return None
    found = {name: digest("source", data) for name, data in files.items()}
    changed = [n for n in {**found, **claimed} if found.get(n) != claimed.get(n)]
    if changed:
        raise JobError(f"sources: {shown(changed[0])} changed while the run began; begin it again")
    return Sources(files=files)


def _left_out(what: str, limit: int) -> None:
    warnings.warn(
        f"{what} take more than {limit >> 20} MiB: the run does not carry them, and a rejection"
        " will say less of what differs",
        stacklevel=4,
    )
