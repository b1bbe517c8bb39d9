"""The names of a run's files, and what a set of names amounts to.

header
sources                      optional: the job's source files
records                      optional: digests and forms of the data set's records
leaves/S                     S: 12-digit number of the last step that a commit covers
rounding/T                   T: 12-digit number of one step, where the numerics have a rounding log
checkpoints/S.manifest
checkpoints/S.safetensors
signatures/S                 written last: the commit exists when this file does
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from veritrain.errors import TranscriptError
from veritrain.transcript.store import TEMPORARY_PREFIX

HEADER = "header"
SOURCES = "sources"
RECORDS = "records"
CARRIED = (SOURCES, RECORDS)  # optional; of the run as a whole, written before its first commit
_LOGS = "rounding/"

_TEMPORARY = re.compile(
    rf"((leaves|checkpoints|rounding|signatures)/)?{re.escape(TEMPORARY_PREFIX)}[0-9a-f]+", re.ASCII
)
_NAMED = re.compile(
    r"(?:leaves/|rounding/|signatures/|checkpoints/)(?P<step>[0-9]{12})(?:\.manifest|\.safetensors)?",
    re.ASCII,
)


def segment_path(step: int) -> str:
    """The leaves since the commit before."""
    return f"leaves/{step:012d}"


def manifest_path(step: int) -> str:
    """The checkpoint record."""
    return f"checkpoints/{step:012d}.manifest"


def pack_path(step: int) -> str:
    """The tensors that no earlier pack holds."""
    return f"checkpoints/{step:012d}.safetensors"


def signature_path(step: int) -> str:
    """The signed head."""
    return f"signatures/{step:012d}"


def log_path(step: int) -> str:
    """The rounding log of one step."""
    return f"{_LOGS}{step:012d}"


def commit_paths(step: int) -> tuple[str, str, str, str]:
    """All files of one commit in the order in which they are written."""
    return pack_path(step), manifest_path(step), segment_path(step), signature_path(step)


def step_of(path: str) -> int | None:
    """The step in the path of a file, if it is the path of a file of a run; None for the header.

    What a run carries is there from step 0 on.

    Raises:
        TranscriptError: no file of a run has this path.
    """
    if path == HEADER:
        return None
    if path in CARRIED:
        return 0
    match = _NAMED.fullmatch(path)
    step = int(match["step"]) if match is not None else 0
    if path not in (*commit_paths(step), log_path(step)):
        raise TranscriptError(ascii(path), "unexpected file in a run folder")
    return step


def is_temporary(path: str) -> bool:
    """Is it a file that was being written when its writer died?"""
    return _TEMPORARY.fullmatch(path) is not None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the files of a run amount to."""

    head_steps: tuple[int, ...]  # rising
    log_steps: tuple[int, ...]  # rising; of the rounding logs up to the last head
    carried: tuple[str, ...]  # of the optional files, those that are there
    leftovers: tuple[str, ...]  # of a commit that was interrupted; no part of the run


def survey(paths: Sequence[str]) -> Survey:
    """Sort out the file names of a run folder.

    Raises:
        TranscriptError: a file that does not belong there, or one that is missing.
    """
    if HEADER not in paths and not all(map(is_temporary, paths)):
        raise TranscriptError(HEADER, "missing")
    steps = {path: _step(path) for path in paths if path not in (HEADER, *CARRIED)}
    heads = sorted(
        step for path, step in steps.items() if path.startswith("signatures/") and step >= 0
    )
    last = heads[-1] if heads else -1
    logs = sorted(s for path, s in steps.items() if path.startswith(_LOGS) and 0 <= s <= last)
    committed = {path for step in heads for path in commit_paths(step)}
    committed.update(map(log_path, logs))
    for path, step in steps.items():
        if 0 <= step <= last and path not in committed:
            raise TranscriptError(path, "no signed head covers this file")
    missing = committed - steps.keys()
    if missing:
        raise TranscriptError(min(missing), "missing")
    leftovers = (path for path in steps if path not in committed)
    return Survey(
        head_steps=tuple(heads),
        log_steps=tuple(logs),
        carried=tuple(path for path in CARRIED if path in paths),
        leftovers=tuple(sorted(leftovers)),
    )


def has_step(paths: Sequence[str]) -> bool:
    """Do the files of a run hold a signed step? The initial state, step 0, is none.

    Raises:
        TranscriptError: as `survey`.
    """
    return any(step > 0 for step in survey(paths).head_steps)


def _step(path: str) -> int:
    """The step that a file belongs to, -1 for a temporary file."""
    step = None if is_temporary(path) else step_of(path)
    return -1 if step is None else step
