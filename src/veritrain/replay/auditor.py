"""The audit: check a transcript against the job, recompute its steps, and give a verdict.

The auditor trusts nothing but its own job file, data and software. Bytes that are not a well-formed
run raise `TranscriptError`; a well-formed run gets a report. The checks run in this order, and the
first that does not pass ends the audit:

  1. format        the folder is a well-formed run of a format version that this software reads
  2. signatures    the header's key (and the key that the auditor trusts) signed every head
  3. chain         header, leaves and heads form one chain, under the signed Merkle roots; sources
                   and records that the run carries are the header's (where only a part of a far run
                   is read: its sources)
  4. job           settings, source files and numerics are those of the auditor's job
  5. data set      the auditor's records and labels are those that the run committed to
  6. initial state model, optimiser and scheduler start from what the seed prescribes
  7. checkpoints   every stored state is whole and is that of its leaf; so is every rounding log
                   (`stored="needed"`: those at the ends of what is recomputed, and the logs of
                   that)
  8. replay        recomputed batches, losses and states equal the leaves, one by one
  9. completeness  the run has all steps of the job, and its folder holds nothing else

What the caller must still do: look at `steps_replayed` where only a part was asked for, and know
whose key signed (pass `trusted_key`).

Where `native` numerics, or `exact` numerics under other package versions, give another result, that
is INCONCLUSIVE: honest machines differ there. It is never accepted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from veritrain.encoding import Value, digest_value, same
from veritrain.errors import (
    InconclusiveError,
    JobError,
    TranscriptError,
    UsageError,
    VerificationError,
    VeritrainError,
)
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.sources import commitment
from veritrain.job.state import capture, require_fit
from veritrain.job.step import Program, find_device
from veritrain.numerics.cpu import philox
from veritrain.numerics.logged.tally import Tally, combined
from veritrain.replay.causes import Cause, settings_cause
from veritrain.replay.cluster import replay_on_cluster, require_ray
from veritrain.replay.header import (
    named_differences,
    other_dataset,
    other_sources,
    other_versions,
    require_numerics,
)
from veritrain.replay.report import AuditReport, CheckResult, Finding, Outcome, conclude
from veritrain.replay.segments import (
    Replayer,
    Segment,
    SegmentResult,
    compare_state,
    plan,
    replay_in_processes,
    require_prescribed,
    require_shareable,
)
from veritrain.runtime.renamed import processes_of
from veritrain.transcript import TensorEntry, Transcript, state_entries, state_root
from veritrain.transcript.fields import shown
from veritrain.transcript.records import PUBLIC_KEY_BYTES
from veritrain.transcript.signing import fingerprint

NONCE_BYTES = 32


def audit(
    url: str | os.PathLike[str],
    job: Job,
    *,
    steps: tuple[int, int] | None = None,
    sample: int | None = None,
    processes: int = 1,
    engine: Literal["local", "ray"] = "local",
    device: str = "cpu",
    trusted_key: bytes | str | None = None,
    stored: Literal["all", "needed"] | None = None,
    on_step: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> AuditReport:
    """Check the run at `url` against `job`.

    Args:
        url: local path, HTTP address or fsspec URL of the run.
        job: the auditor's own job.
        steps: recompute only these steps, first and last included.
        sample: recompute only this many intervals between checkpoints, drawn with fresh
            randomness after the run was read (all of them, where it has no more).
        processes: how many recompute; more than one needs a job from `load_job`.
        engine: where these processes are: on this machine ("local"), or on a Ray cluster ("ray",
            see `cluster`), where `processes` are its tasks at a time.
        device: where to compute, "cpu" or "cuda"; under `exact` numerics it changes no bit.
        trusted_key: the trainer's Ed25519 public key, 32 bytes, or its fingerprint, 32 hexadecimal
            digits; None accepts any key, which the report names.
        stored: which stored states check 7 reads: "all" of them, or those "needed" for the steps
            that are recomputed, and of the others the records alone; None is "needed" at an HTTP
            address and "all" elsewhere. The report says how many were read.
        on_step: called with the number of each step that was found equal.
        workers: the old name of `processes`.

    Raises:
        TranscriptError: the bytes are not a well-formed run.
        UsageError: arguments that do not fit together or to the run, or a job that cannot be used.
    """
    trusted = trusted_key.lower() if isinstance(trusted_key, str) else trusted_key
    options = _Options(
        steps=steps,
        sample=sample,
        processes=processes_of(processes, workers),
        engine=engine,
        device=device,
        trusted=trusted,
        stored=stored,
    )
    _require_options(options, job, os.fspath(url))
    return _Audit(Transcript.open(url), job, options, on_step).run()


@dataclass(frozen=True, kw_only=True)
class _Options:
    steps: tuple[int, int] | None
    sample: int | None
    processes: int
    engine: str  # "local" or "ray"
    device: str
    trusted: bytes | str | None  # the trainer's key, or its fingerprint
    stored: str | None  # "all", "needed", or None

    @property
    def in_other_processes(self) -> bool:
        """Whether this process recomputes nothing itself."""
        return self.processes > 1 or self.engine != "local"


class _Audit:
    """One audit. Each check returns what it saw, or raises `VerificationError` (false) or
    `InconclusiveError` (cannot be said)."""

    def __init__(
        self,
        transcript: Transcript,
        job: Job,
        options: _Options,
        on_step: Callable[[int], None] | None,
    ) -> None:
        self._transcript = transcript
        self._job = job
        self._options = options
        self._on_step = on_step if on_step is not None else _ignore
        # Drawn when the run's heads are read and fixed: the trainer could not know it.
        self._nonce = os.urandom(NONCE_BYTES) if options.sample is not None else None
        self._findings: tuple[Finding, ...] = ()
        self._cause: Cause | None = None
        self._replayed = 0
        self._roundings: dict[str, Tally] = {}

    def run(self) -> AuditReport:
        """Run the checks in order."""
        checks: list[tuple[str, Callable[[], str]]] = [
            ("format", self._format),  # 1
            ("signatures", self._signatures),  # 2
            ("chain", self._chain),  # 3
            ("job", self._same_job),  # 4
            ("data set", self._same_dataset),  # 5
            ("initial state", self._initial_state),  # 6
            ("checkpoints", self._checkpoints),  # 7
            ("replay", self._replay),  # 8
            ("completeness", self._complete),  # 9
        ]
        results: list[CheckResult] = []
        for number, (name, check) in enumerate(checks, 1):
            outcome, detail = Outcome.NOT_RUN, "an earlier check did not pass"
            if all(result.outcome is Outcome.PASSED for result in results):
                outcome, detail = _outcome(check)
            results.append(CheckResult(number=number, name=name, outcome=outcome, detail=detail))
        return self._report(tuple(results))

    def _report(self, checks: tuple[CheckResult, ...]) -> AuditReport:
        heads = self._transcript.heads
        return AuditReport(
            verdict=conclude(checks),
            checks=checks,
            findings=self._findings,
            cause=None if self._cause is None else self._cause.words,
            diff=() if self._cause is None else self._cause.diff,
            location=self._transcript.location,
            root=heads[-1].head.root if heads else None,
            key=fingerprint(self._transcript.header.public_key),
            steps_replayed=self._replayed,
            total_steps=self._last_step,
            sample_nonce=self._nonce,
        )

    @property
    def _last_step(self) -> int:
        return max(0, len(self._transcript.leaves) - 1)

    def _format(self) -> str:
        return f"{len(self._transcript.heads)} commitments, {self._last_step} steps"

    def _signatures(self) -> str:
        if not self._transcript.heads:
            raise InconclusiveError("nothing of the run is signed yet: there is nothing to check")
        self._transcript.verify_signatures()
        key, trusted = self._transcript.header.public_key, self._options.trusted
        if trusted not in (None, key, fingerprint(key)):
            expected = trusted if isinstance(trusted, str) else fingerprint(trusted)
            raise VerificationError(
                f"the run is signed by another key: expected {expected}, got {fingerprint(key)}"
            )
        by = "the trusted key" if trusted is not None else "key"
        return f"{len(self._transcript.heads)} commitments signed by {by} {fingerprint(key)}"

    def _chain(self) -> str:
        transcript = self._transcript
        transcript.verify_chain()
        if self._reads_all:
            transcript.verify_carried()
        else:
            transcript.sources()
        return f"root {transcript.heads[-1].head.root.hex()}"

    def _same_job(self) -> str:
        own, claimed = commitment(self._job), self._transcript.header.job
        if claimed.keys() != own.keys():
            raise VerificationError("the header's job has other parts than config and sources")
        _compare_maps("setting", own["config"], claimed["config"], self._explain_settings)
        _compare_maps("source file", own["sources"], claimed["sources"], self._explain_sources)
        require_numerics(self._job, self._transcript.header)
        return f"digest {digest_value('job', own).hex()}"

    def _same_dataset(self) -> str:
        header = self._transcript.header
        other = other_dataset(self._batches, self._transcript)
        if other is not None:
            self._judge(other.findings, native=False, cause=other.cause)
        return f"{header.dataset_count} records, root {header.dataset_root.hex()}"

    def _initial_state(self) -> str:
        entries = state_entries(capture(self._program))
        findings = compare_state(self._transcript, self._transcript.leaves[0], entries)
        self._judge(findings, native=self._is_native, cause=_order_of_sets())
        return f"{len(entries)} tensors, state {state_root(entries).hex()}"

    def _checkpoints(self) -> str:
        """Where only a part is read, the records of all other checkpoints are checked all the same.

        A small file can hold gigabytes of zeros: no content is hashed of a state that the job
        cannot have, or of a step that it does not have, which check 9 rejects.
        """
        transcript, segments = self._transcript, self._segments

        def require_possible(entries: tuple[TensorEntry, ...]) -> None:
            try:
                require_fit(self._program, entries)
            except TranscriptError as error:
                raise VerificationError(
                    f"step {step}: the stored state is not one that the job can have: {error}"
                ) from None

        ends = {step for segment in segments for step in (segment.start, segment.stop) if step}
        replayed = {leaf.step for segment in segments for leaf in segment.leaves[1:]}
        every = transcript.checkpoint_steps
        require_prescribed(self._job, transcript)
        last = self._job.steps
        stored = {step for step in every if step <= last and (self._reads_all or step in ends)}
        for step in every:
            transcript.verify_checkpoint(step, packs=step in stored, check=require_possible)
        logs = sum(
            transcript.rounding_log(leaf.step) is not None
            for leaf in transcript.leaves[: last + 1]
            if self._reads_all or leaf.step in replayed
        )
        count = f"{len(stored)}" if len(stored) == len(every) else f"{len(stored)} of {len(every)}"
        also = f", {logs} rounding logs too" if logs else ""
        return f"{count} stored states are whole{also}"

    def _replay(self) -> str:
        segments = self._segments
        if not segments:
            raise InconclusiveError("the run has no step to recompute")
        for result, segment in self._results(segments):
            self._replayed += result.steps
            self._roundings = combined(self._roundings, result.roundings)
            if result.malformed is not None:
                raise TranscriptError(*result.malformed)
            if result.obstacle is not None:
                raise InconclusiveError(result.obstacle)
            self._judge(result.findings, native=self._is_native, gap=result.gap)
            if self._options.in_other_processes:
                for step in range(segment.start + 1, segment.stop + 1):
                    self._on_step(step)
        self._require_same_code()
        steps = f"{self._replayed} of {self._last_step} steps recomputed to the same bits"
        return steps + self._decisions() if self._roundings else steps

    def _require_same_code(self) -> None:
        """A job made in a script may have imported modules for the first time in its steps.

        Raises:
            JobError: what they executed is not what the job's commitment covers.
        """
        if self._job.loaded is None and not same(
            commitment(self._job), self._transcript.header.job
        ):
            raise JobError("sources: a file of the job has changed during the audit; start it anew")

    def _decisions(self) -> str:
        """What came of following the rounding logs, as text.

        Raises:
            InconclusiveError: decisions that the arithmetic of honest machines does not explain.
        """
        for name, tally in self._roundings.items():
            if tally.is_steered:
                raise InconclusiveError(
                    f"{tally.corrected} of {tally.logged} logged decisions of class {name} are not"
                    " this machine's: the trainer steered its rounding, or the thresholds are too"
                    " small"
                )
        whole = sum(self._roundings.values(), Tally())
        return (
            f"; of {whole.values} rounded values {whole.logged} decisions were logged, "
            f"{whole.corrected} of them not this machine's"
        )

    def _complete(self) -> str:
        if self._last_step < self._job.steps:
            raise InconclusiveError(
                f"the run is unfinished: expected {self._job.steps} steps, got {self._last_step}"
            )
        if self._last_step > self._job.steps:
            raise VerificationError(
                f"the run goes on after the job: expected {self._job.steps} steps, "
                f"got {self._last_step}"
            )
        if self._transcript.leftovers:
            raise VerificationError(
                f"{shown(self._transcript.leftovers[0])} is not part of the finished run"
            )
        return f"all {self._job.steps} steps of the job"

    @property
    def _reads_all(self) -> bool:
        """Does check 7 read all stored states and rounding logs?"""
        if self._options.steps is None and self._options.sample is None:
            return True
        stored = self._options.stored
        return stored == "all" or (stored is None and not self._transcript.is_far)

    @cached_property
    def _segments(self) -> list[Segment]:
        if self._last_step == 0:
            return []
        if self._options.steps is not None:
            first, last = self._options.steps
            if last > self._last_step:
                raise UsageError(f"steps: the run has {self._last_step} steps, got {first}:{last}")
            return plan(self._transcript, self._job.checkpoint_every, first, last)
        every = plan(self._transcript, self._job.checkpoint_every, 1, self._last_step)
        if self._nonce is None or self._options.sample is None:
            return every
        seed = int.from_bytes(self._nonce, "big")
        order = philox.permutation(seed, "audit sample", 0, len(every))
        return [every[int(index)] for index in sorted(order[: self._options.sample])]

    def _results(self, segments: list[Segment]) -> Iterator[tuple[SegmentResult, Segment]]:
        if self._options.in_other_processes:
            is_local = self._options.engine == "local"
            act = replay_in_processes if is_local else replay_on_cluster
            results = act(
                self._job,
                self._transcript,
                segments,
                self._options.processes,
                measure_gap=self._is_native,
                device=self._options.device,
            )
            with closing(results):
                yield from zip(results, segments, strict=True)
            return
        replayer = Replayer(
            self._job,
            self._transcript,
            measure_gap=self._is_native,
            device=self._options.device,
        )
        for segment in segments:
            yield replayer.replay(segment, self._on_step), segment

    @cached_property
    def _program(self) -> Program:
        return Program.build(self._job)

    @cached_property
    def _batches(self) -> Batches:
        return Batches(self._job)

    @property
    def _is_native(self) -> bool:
        return self._job.numerics == "native"

    def _explain_settings(self, own: dict[str, Value], claimed: dict[str, Value]) -> str:
        self._cause = Cause(words=settings_cause(own, claimed))
        return self._cause.words

    def _explain_sources(self, own: dict[str, Value], claimed: dict[str, Value]) -> str:
        try:
            self._cause = other_sources(self._job, own, self._transcript)
        except VeritrainError as error:  # it was whole when the chain was checked
            unread = f"what the run carries cannot be read ({error})"
            words = f"the source files differ; in what, cannot be said: {unread}"
            self._cause = Cause(words=words)
        return self._cause.words

    def _judge(
        self,
        findings: tuple[Finding, ...],
        *,
        native: bool,
        gap: str | None = None,
        cause: str | None = None,
    ) -> None:
        """Say what follows from a difference; `cause` says why it may be there."""
        if not findings:
            return
        self._findings = findings
        text = "; ".join(str(finding) for finding in findings)
        if native:
            raise InconclusiveError(
                f"{text}; native numerics promises equal bits on one machine only"
                + (f"; {gap}" if gap else "")
            )
        if versions := other_versions(self._program, self._batches, self._transcript.header):
            self._cause = Cause(words=f"{versions.cause}: audit it with these")
            raise InconclusiveError(f"{text}; {versions}")
        if cause is not None:
            self._cause = Cause(words=cause)
        raise VerificationError(f"{text}; {cause}" if cause else text)


def _outcome(check: Callable[[], str]) -> tuple[Outcome, str]:
    try:
        return Outcome.PASSED, check()
    except VerificationError as error:
        return Outcome.FAILED, str(error)
    except InconclusiveError as error:
        return Outcome.INCONCLUSIVE, str(error)


def _compare_maps(
    kind: str,
    own: Value,
    claimed: Value,
    explain: Callable[[dict[str, Value], dict[str, Value]], str],
) -> None:
    """Check that two maps of a job are equal.

    Raises:
        VerificationError: says by `explain` why, and names the entries that differ.
    """
    if not isinstance(own, dict) or not isinstance(claimed, dict):
        raise VerificationError(f"{kind}s: expected a map, got {shown(claimed)}")
    if not same(own, claimed):
        evidence = f"; {kind} ".join(named_differences(own, claimed))
        raise VerificationError(f"{explain(own, claimed)}; {kind} {evidence}")


def _order_of_sets() -> str | None:
    """What to suspect where sets of text have another order in each process."""
    if os.environ.get("PYTHONHASHSEED") == "0":
        return None
    return (
        "this process orders sets of text at random: if the model depends on such an order, start "
        "Python with PYTHONHASHSEED=0, as veritrain's commands do"
    )


def _ignore(step: int) -> None:
    """The `on_step` of a caller who gave none."""


def _require_options(options: _Options, job: Job, url: str) -> None:
    if options.steps is not None and options.sample is not None:
        raise UsageError("steps and sample: give one of them")
    if options.steps is not None:
        first, last = options.steps
        if not 1 <= first <= last:
            raise UsageError(f"steps: expected 1 <= first <= last, got {first}:{last}")
    if options.sample is not None and options.sample < 1:
        raise UsageError(f"sample: expected 1 or more intervals, got {options.sample}")
    if options.stored not in (None, "all", "needed"):
        raise UsageError(f"stored: expected all or needed, got {options.stored!r}")
    if options.processes < 1:
        raise UsageError(f"processes: expected 1 or more, got {options.processes}")
    find_device(options.device)
    if options.engine not in ("local", "ray"):
        raise UsageError(f"engine: expected local or ray, got {options.engine!r}")
    if options.engine == "ray":
        require_ray()
    if options.in_other_processes:
        require_shareable(job, url)
    _require_key(options.trusted)


def _require_key(trusted: bytes | str | None) -> None:
    if isinstance(trusted, bytes) and len(trusted) != PUBLIC_KEY_BYTES:
        raise UsageError(f"trusted_key: expected {PUBLIC_KEY_BYTES} bytes, got {len(trusted)}")
    if isinstance(trusted, str) and not re.fullmatch("[0-9a-f]{32}", trusted, re.ASCII):
        raise UsageError(
            "trusted_key: expected a fingerprint of 32 hexadecimal digits, "
            f"got {len(trusted)} characters"
        )
