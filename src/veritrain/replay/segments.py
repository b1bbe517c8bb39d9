"""Recomputing steps and comparing them with the leaves, in this process or in several.

A segment goes from one checkpoint that the job prescribes to the next. For each the auditor loads
the job anew, opens its data set, builds a program, puts the stored state of the first checkpoint
into it and hashes that again; at step 0 it is the state as built. So what a job remembers outside
of its state ends with the segment, and a verdict does not depend on which segments are recomputed,
where, or where the trainer stopped: the states that a stop left are compared like any other, and
cut nothing. Each step is then recomputed with the batch that the seed prescribes, and batch, loss
and state are compared with the leaf. A segment ends at its first difference.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from veritrain.encoding import Digest, digest_value
from veritrain.errors import (
    InconclusiveError,
    NumericsError,
    TranscriptError,
    UnsupportedOperatorError,
    UsageError,
    VerificationError,
    VeritrainError,
)
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.load import load_job, reload
from veritrain.job.sources import commitment
from veritrain.job.state import capture, refuse_nan, require_fit
from veritrain.job.step import Program, run_step
from veritrain.numerics.logged.tally import Tally, combined
from veritrain.replay.redone import redo_step, restore_stored, start_of
from veritrain.replay.report import Finding
from veritrain.runtime.started import as_started
from veritrain.transcript import Leaf, TensorEntry, Transcript, state_entries, state_root
from veritrain.transcript.fields import shown
from veritrain.transcript.tensors import diff


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Steps start + 1 to stop, recomputed from the state after `start`.

    `leaves` are those of the steps start to stop: what the transcript claims.
    """

    start: int
    stop: int
    leaves: tuple[Leaf, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class SegmentResult:
    """What recomputing a segment gave. Without findings and obstacle, all its steps are equal."""

    steps: int  # recomputed and found equal
    findings: tuple[Finding, ...] = ()  # what differs in the first step that does
    obstacle: str | None = None  # why a step could not be recomputed
    gap: str | None = None  # size of the difference, where it was measured
    malformed: tuple[str, str] | None = None  # place and problem, for a TranscriptError
    roundings: Mapping[str, Tally] = field(default_factory=dict[str, Tally])  # of logged numerics


def plan(transcript: Transcript, every: int, first: int, last: int) -> list[Segment]:
    """Segments that cover the steps first to last, from the checkpoint at or before `first` - 1.

    Args:
        every: the job's steps from one checkpoint to the next.
    """
    start = start_of(first, every)
    edges = [*range(start, last, every), last]
    return [
        Segment(start=low, stop=high, leaves=transcript.leaves[low : high + 1])
        for low, high in pairwise(edges)
    ]


def require_prescribed(job: Job, transcript: Transcript) -> None:
    """Check that a run has stored states where the job says, for replays begin there.

    Raises:
        VerificationError: names the first step that has none.
    """
    prescribed = range(0, len(transcript.leaves), job.checkpoint_every)
    if missing := set(prescribed).difference(transcript.checkpoint_steps):
        raise VerificationError(
            f"step {min(missing)}: no state is stored; the job prescribes one every "
            f"{job.checkpoint_every} steps"
        )


class Replayer:
    """Recomputes segments of one run."""

    def __init__(
        self, job: Job, transcript: Transcript, *, measure_gap: bool, device: str = "cpu"
    ) -> None:
        self._job = job
        self._device = device
        self._transcript = transcript
        self._measure_gap = measure_gap
        self._roundings: dict[str, Tally] = {}  # of the segment at hand
        self._batches: Batches  # of the segment at hand

    def replay(
        self, segment: Segment, on_step: Callable[[int], None] | None = None
    ) -> SegmentResult:
        """Recompute a segment up to its first difference.

        Raises:
            JobError: the job cannot be built.
            TranscriptError, VerificationError: the checkpoint that it starts from is not sound.
        """
        self._roundings = {}
        result = self._replay(segment, on_step)
        return replace(result, roundings=self._roundings)

    def _replay(self, segment: Segment, on_step: Callable[[int], None] | None) -> SegmentResult:
        job = reload(self._job)
        self._batches = Batches(job)
        program = Program.build(job, device=self._device)
        try:
            restore_stored(program, self._transcript, segment.start)
            findings = self._compare_state(program, segment.leaves[0])
        except VeritrainError:
            raise
        except Exception as error:  # stored values that the job's optimiser cannot live with
            why = f"step {segment.start} could not be restored: {type(error).__name__}: {error}"
            return SegmentResult(steps=0, obstacle=why)
        if findings:
            return SegmentResult(steps=0, findings=findings)
        for count, leaf in enumerate(segment.leaves[1:]):
            try:
                findings = self._advance(program, leaf)
            except (UnsupportedOperatorError, UsageError, InconclusiveError) as error:
                return SegmentResult(steps=count, obstacle=f"step {leaf.step}: {error}")
            except NumericsError as error:
                findings = (differ(leaf.step, "outcome", f"an error ({error})", "a new state"),)
            except Exception as error:  # the job's code, or a full memory: no claim is shown false
                why = f"step {leaf.step} could not be recomputed: {type(error).__name__}: {error}"
                return SegmentResult(steps=count, obstacle=why)
            if findings:
                gap = self._gap(program, leaf.step) if self._measure_gap else None
                return SegmentResult(steps=count, findings=findings, gap=gap)
            if on_step is not None:
                on_step(leaf.step)
        return SegmentResult(steps=segment.stop - segment.start)

    def _advance(self, program: Program, leaf: Leaf) -> tuple[Finding, ...]:
        """Recompute the leaf's step; what differs, in the order of cause and effect."""
        log = self._transcript.rounding_log(leaf.step)
        try:
            rounding = program.following(log)
            redone = redo_step(program, self._batches, leaf.step, rounding)
            if rounding is not None:
                rounding.finish()
                self._roundings = combined(self._roundings, rounding.tally)
        except (TranscriptError, VerificationError) as error:
            finding = differ(leaf.step, "rounding log", "what arithmetic decides", str(error))
            return (finding,)
        refuse_nan(capture(program), leaf.step)
        findings: list[Finding] = []
        if redone.batch != leaf.batch:
            findings.append(differ(leaf.step, "batch", redone.batch, leaf.batch))
        if repr(redone.loss) != repr(leaf.loss):  # tells -0.0 from 0.0, as the leaf's digest does
            findings.append(differ(leaf.step, "loss", redone.loss, leaf.loss))
        return (*findings, *self._compare_state(program, leaf))

    def _compare_state(self, program: Program, leaf: Leaf) -> tuple[Finding, ...]:
        return compare_state(self._transcript, leaf, state_entries(capture(program)))

    def _load_state(self, program: Program, step: int) -> dict[str, Tensor]:
        return self._transcript.load_state(step, check=partial(require_fit, program))

    def _gap(self, program: Program, step: int) -> str | None:
        """Largest relative difference of a tensor at the next checkpoint, as text."""
        following = [other for other in self._transcript.checkpoint_steps if other >= step]
        if not following:
            return None
        try:
            for later in range(step + 1, following[0] + 1):
                run_step(program, later, self._batches[later])
            return _largest_gap(
                following[0],
                capture(program),
                self._load_state(program, following[0]),
            )
        except Exception as error:  # the measurement informs; the verdict does not rest on it
            return f"not measured ({type(error).__name__}: {error})"


def compare_state(
    transcript: Transcript, leaf: Leaf, entries: Sequence[TensorEntry]
) -> tuple[Finding, ...]:
    """How a recomputed state differs from a leaf's: not at all, by its digest, and, where the
    transcript stores the state, in which tensor first."""
    root = state_root(entries)
    if root == leaf.state:
        return ()
    finding = differ(leaf.step, "state", root, leaf.state)
    if leaf.step not in transcript.checkpoint_steps:
        return (finding,)
    first = diff(entries, transcript.checkpoint(leaf.step).tensors)
    if first is None:
        return (finding,)
    what = f"tensor {shown(first.name)}"
    return finding, differ(leaf.step, what, _entry_text(first.expected), _entry_text(first.got))


def differ(step: int | None, what: str, expected: object, got: object) -> Finding:
    """A finding; digests are written in hexadecimal."""
    return Finding(step=step, what=what, expected=_text(expected), got=_text(got))


def require_shareable(job: Job, url: str) -> Path:
    """The job's file, which other processes can load, with a run that they can read.

    Raises:
        UsageError: the job was made in a script, the run is in this process's memory, or other
            processes cannot start from the script that runs here.
    """
    if job.origin is None:
        raise UsageError(
            "processes: expected a job from load_job(), got one made in a script; "
            "other processes can only load a job file"
        )
    if any(part.startswith("memory://") for part in url.split("::")):
        raise UsageError(
            f"processes: other processes cannot read {url}, which is in the memory of this one; "
            "use one worker"
        )
    script = getattr(sys.modules["__main__"], "__file__", None)
    if isinstance(script, str) and Path(script).name == "<stdin>":
        raise UsageError(
            "processes: other processes cannot start from a script that is read from standard "
            "input; save it to a file, or use one worker"
        )
    return job.origin


def replay_in_processes(
    job: Job,
    transcript: Transcript,
    segments: Sequence[Segment],
    processes: int,
    *,
    measure_gap: bool,
    device: str,
) -> Generator[SegmentResult]:
    """Results in the order of the segments, computed by `processes` processes.

    Raises:
        UsageError: as `require_shareable`.
    """
    shared = share(job, transcript, processes, measure_gap=measure_gap, device=device)
    # Spawned, not forked: a fork would inherit locks of this process's kernel threads.
    with as_started():  # they start here, and the process that keeps track of what they share
        pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
        results = pool.map(replay_shared, [shared] * len(segments), segments)
    try:
        yield from results
    except BrokenProcessPool as error:
        raise InconclusiveError(
            "a replay process ended unexpectedly: killed, out of memory (use fewer processes), or "
            "started by a script that lacks `if __name__ == '__main__':`"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every replay process needs to know."""

    job_file: Path
    job_digest: Digest
    url: str
    measure_gap: bool
    device: str
    threads: int


def share(
    job: Job, transcript: Transcript, processes: int, *, measure_gap: bool, device: str
) -> Shared:
    """What `processes` on this machine need to know of a job and a run.

    Raises:
        UsageError: as `require_shareable`.
    """
    return Shared(
        job_file=require_shareable(job, transcript.location),
        job_digest=digest_value("job", commitment(job)),
        url=transcript.location,
        measure_gap=measure_gap,
        device=device,
        threads=max(1, torch.get_num_threads() // processes),
    )


_replayers: dict[Shared, Replayer] = {}  # of this replay process; one at most


def replay_shared(shared: Shared, segment: Segment) -> SegmentResult:
    """Runs in a replay process. Errors come back as values: a foreign traceback helps nobody."""
    try:
        if shared not in _replayers:
            _replayers[shared] = _replayer(shared)
        return _replayers[shared].replay(segment)
    except TranscriptError as error:
        return SegmentResult(steps=0, malformed=(error.where, error.problem))
    except (Exception, SystemExit) as error:
        text = (
            str(error) if isinstance(error, VeritrainError) else f"{type(error).__name__}: {error}"
        )
        what = f"steps {segment.start + 1} to {segment.stop} could not be recomputed"
        return SegmentResult(steps=0, obstacle=f"{what}: {text} (process {os.getpid()})")


def _replayer(shared: Shared) -> Replayer:
    torch.set_num_threads(shared.threads)
    job = load_job(shared.job_file)
    if digest_value("job", commitment(job)) != shared.job_digest:
        raise UsageError(f"{shared.job_file} changed during the audit")
    transcript = Transcript.open(shared.url)
    return Replayer(job, transcript, measure_gap=shared.measure_gap, device=shared.device)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str) else repr(value)


def _entry_text(entry: TensorEntry | None) -> str:
    if entry is None:
        return "none"
    return f"{entry.dtype} {list(entry.shape)} {entry.digest.hex()}"


def _largest_gap(step: int, own: Mapping[str, Tensor], claimed: Mapping[str, Tensor]) -> str:
    worst, where = 0.0, ""
    for name, mine in own.items():
        theirs = claimed.get(name)
        if theirs is None or theirs.shape != mine.shape:
            return f"step {step}: {name} is missing or of another shape"
        if not mine.is_floating_point() or mine.numel() == 0:
            continue
        mine = mine.cpu()
        distance = float((mine.double() - theirs.double()).abs().max())
        scale = float(theirs.double().abs().max()) or 1.0
        if not distance / scale <= worst:  # NaN is the largest gap of all
            worst, where = distance / scale, name
    return f"largest relative gap {worst:.3g} at step {step}, in {where or 'no tensor'}"
