"""Training that is committed to as it happens: the recorder, and the plain loop over it.

The recorder owns the steps and nothing else; the loop, logging and evaluation are the caller's.
What it promises: a leaf says what the step computed from the state of the leaf before. So a change
of the state, of a flag or of a plain attribute between two steps is refused by name, before
anything is recorded on top of it, whichever way it was written. What an audit could not repeat is
refused when it
happens: before the first step by a rehearsal, after each step by a comparison with a program that
was just built.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from torch import nn

from veritrain.encoding import Digest
from veritrain.errors import JobError, NumericsError, UsageError
from veritrain.job.data import Batch, Batches, joined_digest, shard_digests
from veritrain.job.job import Job
from veritrain.job.loading.installed import found
from veritrain.job.shards import ALONE, Reduction
from veritrain.job.state import capture, refuse_nan, require_fit, restore
from veritrain.job.step import Program, find_device, run_step
from veritrain.runtime.progress import Step, shown, tell
from veritrain.runtime.renamed import processes_of
from veritrain.runtime.signals import held
from veritrain.training.attributes import Attributes
from veritrain.training.callbacks import Callback, StepReport
from veritrain.training.carry import begin
from veritrain.training.fresh import Fresh
from veritrain.training.rehearsal import rehearse
from veritrain.transcript import (
    Header,
    Signer,
    TensorEntry,
    Transcript,
    TranscriptWriter,
    state_entries,
    state_root,
)
from veritrain.transcript.signing import default_signer
from veritrain.transcript.tensors import diff

MAX_PROCESSES = 256  # processes
_SHOWN = 3  # parameters that a warning names


class TerminatedError(KeyboardInterrupt):
    """SIGTERM while training. What was recorded is committed, as after Ctrl-C."""


class OutsideOptimizerWarning(UserWarning):
    """Parameters get gradients, and the optimiser does not have them."""


class Companions(Protocol):
    """The other processes of a run that several train; `training.distributed` has them."""

    @property
    def shards(self) -> range:
        """The shards of each step that this process computes."""
        ...

    def reduction(self, program: Program) -> Reduction:
        """What adds the shards of all processes."""
        ...

    def start(self, program: Program, step: int, environment: Mapping[str, str]) -> int:
        """Bring the others into the state of `program`, that after `step`; compare packages."""
        ...

    def agree(
        self, step: int, entries: Sequence[TensorEntry], batches: Sequence[Digest]
    ) -> list[Digest]:
        """Compare the state after a step, of these entries, with that of the others.

        Returns:
            The digests of all shards' batches; `batches` are those of this process.

        Raises:
            UnlikeRanksError: another process has another state.
        """
        ...

    def end_if_asked(self) -> None:
        """Raise KeyboardInterrupt where the user has asked any process to stop."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """One step that is about to be trained; `number` counts from 1."""

    number: int
    recorder: Recorder

    def train(self) -> float:
        """Do the step and record it.

        Returns:
            The step's loss.

        Raises:
            UsageError: it is not the next step (trained already, or the recorder is closed), or
                the state was changed outside of a step.
            NumericsError: the loss is not finite, the state holds a NaN, or an operator has no
                rule.
        """
        return self.recorder.train_step(self.number)


class Recorder:
    """Records a run: `with Recorder(job, "runs/a") as run: for step in run: step.train()`.

    It commits at step 0, every `job.checkpoint_every` steps, at the end, and when the loop is left
    early. Ctrl-C and SIGTERM let the step that is under way finish; a second one does not wait.

    Args:
        job: what to train.
        out: the run's folder or fsspec URL.
        signer: the trainer's key. None: the key at $VERITRAIN_KEY or
            ~/.config/veritrain/trainer.key, made on first use.
        resume: continue the run at `out` after its last commit, or begin it if there is none.
        processes: how many prepare batches; they never change a bit.
        device: where steps are computed, "cpu" or "cuda"; under `exact` numerics it changes no bit.
        rehearse: whether a run begins with a rehearsal, which does the first two steps twice and
            refuses a job that an audit could not repeat (`training.rehearsal`).
        secret: let the run carry neither the job's source files nor the digests of single records,
            which say in a rejection what differs (see `training.carry`).
        companions: the other processes that train the same run; this one records it.
        workers: the old name of `processes`.

    Raises (on entering):
        UsageError: `out` holds another run, the key is not that of the run, or there is no such
            device; said before the data set is read.
        JobError: the job cannot be built, committed to, or repeated.
    """

    def __init__(
        self,
        job: Job,
        out: str | os.PathLike[str],
        *,
        signer: Signer | None = None,
        resume: bool = False,
        processes: int = 0,
        device: str = "cpu",
        rehearse: bool = True,
        secret: bool = False,
        companions: Companions | None = None,
        workers: int | None = None,
    ) -> None:
        processes = processes_of(processes, workers)
        if type(processes) is not int or not 0 <= processes <= MAX_PROCESSES:
            raise UsageError(f"processes: expected 0 to {MAX_PROCESSES}, got {processes!r}")
        find_device(device)
        self.job = job
        self.out = os.fspath(out)
        self._signer = signer
        self._resume = resume
        self._processes = processes
        self._device = device
        self._rehearse = rehearse and job.numerics != "native"  # whose audits accept nothing
        self._secret = secret
        self._companions = companions
        self._run: _Run | None = None
        self._signals = _Signals()
        self._open = False

    def __enter__(self) -> Self:
        self._signals.take()
        try:
            self._run = self._start()
        except BaseException:
            self._signals.give_back()
            raise
        self._open = True
        return self

    def _start(self) -> _Run:
        signer = self._signer if self._signer is not None else default_signer()
        steps = TranscriptWriter.examine(self.out, signer, resume=self._resume)
        rehearsed = rehearse(self.job, self._device) if steps < 1 and self._rehearse else None
        together = self._companions
        batches = Batches(self.job, shards=together.shards if together is not None else None)
        program = Program.build(self.job, device=self._device)
        fresh = Fresh(program, set_by_steps=rehearsed)
        header, carried = begin(program, batches, signer, secret=self._secret)
        if steps >= 0:  # the run has begun: it carries what it carried then
            header, carried = _as_begun(header, Transcript.open(self.out).header), ()
        start = TranscriptWriter.resume if self._resume else TranscriptWriter.create
        writer = start(self.out, header, signer, carried)
        try:
            last = writer.last_step
            if last > 0:
                check = partial(require_fit, program)
                restore(program, Transcript.open(self.out).load_state(last, check=check))
            if together is not None:
                together.start(program, max(last, 0), header.environment)
            ahead = batches.iterate(max(last, 0) + 1, self.job.steps, self._processes)
            run = _Run(program, fresh, writer, ahead, together)
            if last < 0:
                run.record(0, batches=(), loss=None)
                run.commit()
        except BaseException:
            writer.close()
            raise
        return run

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        run = self._current()
        self._open = False
        try:
            with run.writer:
                if (name := run.changed()) is None:
                    run.commit()
                elif error is None:
                    raise _changed_outside(name)
        finally:
            self._signals.give_back()
            run.batches.close()  # after the commit: processes may take their time
            if error is not None and not isinstance(error, JobError | NumericsError):
                error.add_note(self._how_to_go_on(run.writer.last_step))

    def _how_to_go_on(self, step: int) -> str:
        if step == self.job.steps:
            return f"{self.out} has the whole run"
        return f"{self.out} has the run up to step {step}; go on with resume=True"

    def __iter__(self) -> Iterator[TrainingStep]:
        """The remaining steps, in order.

        Raises:
            UsageError: a step was not trained when the next one is asked for.
        """
        for number in range(self.last_step + 1, self.job.steps + 1):
            yield TrainingStep(number=number, recorder=self)
            if self.last_step < number:
                raise UsageError(f"step {number} was not trained; call step.train() in the loop")

    @property
    def model(self) -> nn.Module:
        """The model, to look at and to evaluate between steps; changing it is refused."""
        return self._entered().program.model

    @property
    def last_step(self) -> int:
        """The last recorded step; 0 for the initial state."""
        return self._entered().step

    @property
    def digest(self) -> Digest:
        """Merkle root of the last commitment: the final digest once all steps are done."""
        head = self._entered().writer.last_head
        if head is None:
            raise UsageError("nothing is committed yet")
        return head.root

    def train_step(self, number: int) -> float:
        """See `TrainingStep.train`."""
        run = self._current()
        if number != run.step + 1:
            raise UsageError(f"step {number}: expected step {run.step + 1} to be trained next")
        self.require_untouched()
        return self.advance().loss

    def require_untouched(self) -> None:
        """Check that the program is as the last step left it.

        Raises:
            UsageError: the state, a flag or a plain attribute was changed outside of a step; names
                it.
        """
        run = self._current()
        if (name := run.changed()) is not None:
            raise _changed_outside(name)
        run.put_back()

    def advance(self) -> StepReport:
        """Do the next step and record it. Nobody may have touched the model since the last one."""
        run = self._current()
        rates = tuple(float(group.get("lr", 0.0)) for group in run.program.optimizer.param_groups)
        begin = perf_counter()
        batch = run.next_batch()
        fetched = perf_counter()
        with self._signals.held() if self._companions is None else nullcontext():
            digests = shard_digests(batch, run.shards)  # before the step, which may write into it
            rounding = run.program.recording()
            loss = run_step(
                run.program,
                run.step + 1,
                batch,
                rounding,
                run.reduction,
                after_shard=run.fresh.after_shard,
            )
            log = rounding.finish() if rounding else None
            computed = perf_counter()
            run.record(run.step + 1, batches=digests, loss=loss, log=log)
            if run.step % self.job.checkpoint_every == 0 or run.step == self.job.steps:
                run.commit()
        report = StepReport(
            step=run.step,
            steps=self.job.steps,
            loss=loss,
            rates=rates,
            batch_seconds=fetched - begin,
            step_seconds=computed - fetched,
            record_seconds=perf_counter() - computed,
            model=run.program.model,
        )
        tell(
            Step(
                doing="step",
                number=report.step,
                done=report.step,
                total=report.steps,
                loss=loss,
                rate=rates[0],
            )
        )
        if self._companions is not None:
            self._companions.end_if_asked()
        return report

    def _entered(self) -> _Run:
        if self._run is None:
            raise UsageError("use the recorder in a `with` statement")
        return self._run

    def _current(self) -> _Run:
        run = self._entered()
        if not self._open:
            raise UsageError("the recorder is closed; open the run again with resume=True")
        return run


def train(
    job: Job,
    out: str | os.PathLike[str],
    *,
    signer: Signer | None = None,
    resume: bool = False,
    processes: int = 0,
    device: str = "cpu",
    rehearse: bool = True,
    secret: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    workers: int | None = None,
) -> Digest:
    """Train and record all steps.

    Args:
        callbacks: each is called with a `StepReport` after each step, in this order.
        progress: say on stderr, with a line now and then, what is being done and how far it is.
        job, out, signer, resume, processes, device, rehearse, secret, workers: as those of
            `Recorder`.

    Returns:
        The final digest: Merkle root of all leaves.

    Raises:
        As `Recorder` and `TrainingStep.train`, and what a callback raises.
    """
    recorder = Recorder(
        job,
        out,
        signer=signer,
        resume=resume,
        processes=processes_of(processes, workers),
        device=device,
        rehearse=rehearse,
        secret=secret,
    )
    with shown(progress), recorder as run:
        for _ in run:
            if callbacks:
                run.require_untouched()
            report = run.advance()
            for callback in callbacks:
                callback(report)
    return run.digest


class _Run:
    """A program and its transcript, kept in step. `step` is the last recorded one."""

    def __init__(
        self,
        program: Program,
        fresh: Fresh,
        writer: TranscriptWriter,
        batches: Generator[Batch],
        companions: Companions | None,
    ) -> None:
        self._companions = companions
        mine = range(program.job.shards) if companions is None else companions.shards
        self.shards = len(mine)  # that this process computes
        self.reduction = ALONE if companions is None else companions.reduction(program)
        self.program = program
        self.writer = writer
        self.batches = batches
        self.step = max(writer.last_step, 0)
        self.fresh = fresh
        self._state = capture(program)
        self._entries = state_entries(self._state)
        self._attributes = Attributes.of(program)

    def next_batch(self) -> Batch:
        try:
            return next(self.batches)
        except StopIteration:  # the generator ended when an earlier batch failed
            raise UsageError("the data set failed earlier; resume the run") from None

    def record(
        self,
        number: int,
        *,
        batches: Sequence[Digest],
        loss: float | None,
        log: bytes | None = None,
    ) -> None:
        """Record the program's state as that after step `number`.

        Args:
            batches: digests of the batches of this process's shards; none for step 0.
            loss: the step's; None for step 0.
            log: the step's rounding log.

        Raises:
            UnlikeRanksError: another process has another state.
        """
        state = capture(self.program)
        refuse_nan(state, number)
        attributes = self.fresh.require_kept(number) if number > 0 else self._attributes
        if number == 1 and (names := self.program.outside):
            _warn_of_outside(names)
        entries = state_entries(state)
        if self._companions is not None and number > 0:
            batches = self._companions.agree(number, entries, batches)
        batch = joined_digest(batches) if len(batches) > 1 else next(iter(batches), None)
        self.writer.append(state=state_root(entries), batch=batch, loss=loss, rounding=log)
        self._state, self._entries, self.step = state, entries, number
        self._attributes = attributes

    def commit(self) -> None:
        """Make the steps up to here part of the run; nothing to do where they are already."""
        if self.writer.last_step < self.step or self.writer.last_head is None:
            self.writer.commit(self._state, self._entries)

    def changed(self) -> str | None:
        """Name of a part of the program that is not as the last record left it.

        Every tensor is hashed again: a write through `.data` or NumPy raises no version counter.
        """
        try:
            now = state_entries(capture(self.program))
        except UsageError as error:  # a parameter was replaced, for example
            return f"the model or optimiser ({error})"
        if (first := diff(self._entries, now)) is not None:
            return first.name
        # Training mode is set anew at each step, and so is what steps set: evaluation may change
        # them.
        changes = self._attributes.changes(Attributes.of(self.program), but="training")
        kept = [change for change in changes if not self.fresh.is_set_by_steps(change.name)]
        return str(kept[0]) if kept else None

    def put_back(self) -> None:
        """Give attributes that steps set the values that the last record left them, where they
        differ."""
        changed = Attributes.of(self.program).changed(self._attributes)
        changed.set_in(self.program)


def _warn_of_outside(names: list[str]) -> None:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    warnings.warn(
        "parameters get gradients, and the optimiser does not have them:"
        f" {', '.join(names[:_SHOWN])}{more}. Each step clears these gradients; call"
        " requires_grad_(False) to save the work",
        OutsideOptimizerWarning,
        stacklevel=2,
    )


def _changed_outside(name: str) -> UsageError:
    return UsageError(
        f"{name} was changed outside of a step, in the loop or in a callback; a step may only"
        " follow from the step before. Evaluate with model.eval() and without in-place changes;"
        " change flags by the job's before_step"
    )


def _as_begun(header: Header, stored: Header) -> Header:
    """The header with the packages too that the run named when it began: a rehearsal imports
    more."""
    missing = stored.environment.keys() - header.environment.keys()
    return replace(header, environment={**found(missing), **header.environment})


class _Signals:
    """SIGINT and SIGTERM while a run is recorded: held back during a step, so that nothing is lost.

    SIGTERM raises `TerminatedError` where it would have ended the process. Both are left alone in
    other threads than the main one, and where the program has handlers of its own for SIGTERM.
    """

    def __init__(self) -> None:
        self._taken = False
        self._previous: Any = None  # the handler of SIGTERM

    def take(self) -> None:
        """From here on SIGTERM raises."""
        is_main = threading.current_thread() is threading.main_thread()
        self._taken = is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if self._taken:
            self._previous = signal.signal(signal.SIGTERM, _terminate)

    def give_back(self) -> None:
        """SIGTERM is as it was before `take`."""
        if self._taken:
            signal.signal(signal.SIGTERM, self._previous)
            self._taken = False

    def held(self) -> AbstractContextManager[None]:
        """Hold a first signal back until the end of the block."""
        return held([signal.SIGINT, signal.SIGTERM] if self._taken else [signal.SIGINT])


def _terminate(number: int, frame: FrameType | None) -> None:
    raise TerminatedError("terminated by SIGTERM")
