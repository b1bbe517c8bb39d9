"""Training that is committed to as it happens: the recorder, and the plain loop over it.

The recorder owns the steps and nothing else; the loop, logging and evaluation are the caller's.
What it promises: a leaf says what the step computed from the state of the leaf before. So a change
of the state between two steps is refused by name, before anything is recorded on top of it. It is
seen through the tensors' version counters; a write through `tensor.data` escapes them, and then
the audit finds it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType, TracebackType
from typing import Self

from torch import Tensor, nn

from veritrain.data import Batch, Batches, batch_digest
from veritrain.encoding import Digest
from veritrain.errors import JobError, UsageError
from veritrain.job import Job
from veritrain.sources import commitment, environment
from veritrain.state import (
    HYPER,
    SCHEDULER,
    capture,
    refuse_nan,
    require_fit,
    require_same_model,
    restore,
)
from veritrain.step import Program, run_step
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

MAX_WORKERS = 256  # processes


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
    early. Ctrl-C lets the step that is under way finish; a second one does not wait.

    Args:
        job: what to train.
        out: the run's folder or fsspec URL.
        signer: the trainer's key. None: the key at $VERITRAIN_KEY or
            ~/.config/veritrain/trainer.key, made on first use.
        resume: continue the run at `out` after its last commit, or begin it if there is none.
        workers: processes that prepare batches; they never change a bit.
        device: where steps are computed, "cpu" or "cuda"; under `exact` numerics it changes no bit.

    Raises (on entering):
        UsageError: `out` holds another run, or the key is not that of the run.
        JobError: the job cannot be built or committed to.
    """

    def __init__(
        self,
        job: Job,
        out: str | os.PathLike[str],
        *,
        signer: Signer | None = None,
        resume: bool = False,
        workers: int = 0,
        device: str = "cpu",
    ) -> None:
        if type(workers) is not int or not 0 <= workers <= MAX_WORKERS:
            raise UsageError(f"workers: expected 0 to {MAX_WORKERS} processes, got {workers!r}")
        self.job = job
        self.out = os.fspath(out)
        self._signer = signer
        self._resume = resume
        self._workers = workers
        self._device = device
        self._run: _Run | None = None
        self._open = False

    def __enter__(self) -> Self:
        signer = self._signer if self._signer is not None else default_signer()
        program = Program.build(self.job, device=self._device)
        batches = Batches(self.job)
        header = _header(program, batches, signer)
        start = TranscriptWriter.resume if self._resume else TranscriptWriter.create
        writer = start(self.out, header, signer)
        last = writer.last_step
        if last > 0:
            check = partial(require_fit, program)
            restore(program, Transcript.open(self.out).load_state(last, check=check))
        ahead = batches.iterate(max(last, 0) + 1, self.job.steps, self._workers)
        self._run = _Run(program, writer, ahead)
        self._open = True
        if last < 0:
            self._run.record(batch=None, loss=None)
            self._run.commit()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        run = self._current()
        self._open = False
        with run.writer:
            run.batches.close()
            if (name := run.changed()) is None:
                run.commit()
            elif error is None:
                raise _changed_outside(name)

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
        if (name := run.changed()) is not None:
            raise _changed_outside(name)
        batch = run.next_batch()
        with _interrupt_after():
            loss = run.advance(batch)
            if number % self.job.checkpoint_every == 0 or number == self.job.steps:
                run.commit()
        return loss

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
    workers: int = 0,
    device: str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> Digest:
    """Train and record all steps; `on_step(number, loss)` is called after each.

    Returns:
        The final digest: Merkle root of all leaves.

    Raises:
        As `Recorder` and `TrainingStep.train`.
    """
    with Recorder(job, out, signer=signer, resume=resume, workers=workers, device=device) as run:
        for step in run:
            loss = step.train()
            if on_step is not None:
                on_step(step.number, loss)
    return run.digest


class _Run:
    """A program and its transcript, kept in step. `step` is the last recorded one."""

    def __init__(
        self, program: Program, writer: TranscriptWriter, batches: Generator[Batch]
    ) -> None:
        self.program = program
        self.writer = writer
        self.batches = batches
        self.step = max(writer.last_step, 0)
        self._state = capture(program)
        self._marks = _marks(self._state)
        self._entries: tuple[TensorEntry, ...] = ()

    def next_batch(self) -> Batch:
        try:
            return next(self.batches)
        except StopIteration:  # the generator ended when an earlier batch failed
            raise UsageError("the data set failed earlier; resume the run") from None

    def advance(self, batch: Batch) -> float:
        """Do the next step and record it."""
        digest = batch_digest(batch)  # before the step, which may write into its batch
        rounding = self.program.recording()
        loss = run_step(self.program, self.step + 1, batch, rounding)
        self.step += 1
        self.record(batch=digest, loss=loss, log=rounding.finish() if rounding else None)
        return loss

    def record(self, *, batch: Digest | None, loss: float | None, log: bytes | None = None) -> None:
        state = capture(self.program)
        if batch is not None:
            require_same_model(self._state, state)
        refuse_nan(state, self.step)
        self._entries = state_entries(state)
        root = state_root(self._entries)
        self.writer.append(state=root, batch=batch, loss=loss, rounding=log)
        self._state, self._marks = state, _marks(state)

    def commit(self) -> None:
        """Make the steps up to here part of the run; nothing to do where they are already."""
        if self.writer.last_step < self.step or self.writer.last_head is None:
            self.writer.commit(self._state, self._entries)

    def changed(self) -> str | None:
        """Name of a part of the state that is not as the last record left it."""
        try:
            now = capture(self.program)
        except JobError as error:  # a parameter was replaced, for example
            return f"the model or optimiser ({error})"
        marks = _marks(now)
        for name in sorted(now.keys() | self._state.keys()):
            if marks.get(name) != self._marks.get(name):
                return name
        return None


def _marks(state: Mapping[str, Tensor]) -> dict[str, object]:
    """What changes with each write to a tensor: its place in memory and its version counter. The
    caller keeps the tensors, so that no place is used twice."""
    return {
        name: bytes(tensor.numpy().data)
        if name in (HYPER, SCHEDULER)
        else (tensor.data_ptr(), tensor._version)
        for name, tensor in state.items()
    }


def _changed_outside(name: str) -> UsageError:
    return UsageError(
        f"{name} was changed outside of step.train(); a step may only follow from the step before. "
        "Evaluate with model.eval() and without in-place changes"
    )


def _header(program: Program, batches: Batches, signer: Signer) -> Header:
    root = batches.commitment()
    return Header(
        numerics=program.profile.name,
        numerics_version=program.profile.version,
        job=commitment(program.job),
        dataset_root=root,
        dataset_count=batches.count,
        environment=environment(program, batches.dataset),
        public_key=signer.public_key,
    )


@contextmanager
def _interrupt_after() -> Generator[None]:
    """Hold a first Ctrl-C back until the step is recorded, so that nothing is lost."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            previous(number, frame)
        held.append(number)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if held:
        previous(signal.SIGINT, None)
