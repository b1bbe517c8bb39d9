"""The first steps of a job, done with someone looking on: what is refused, where, and what it costs.

Nothing stops the observation but an error that leaves nothing to go on with: each part of the job is
tried by itself, and an operator without a rule is noted and computed by PyTorch's own kernel.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import TypeVar

import torch
from torch import Tensor

from veritrain.data import Batches
from veritrain.encoding import DIGEST_BYTES, Value
from veritrain.errors import NumericsError, VeritrainError
from veritrain.job import Job
from veritrain.numerics.observed import observed
from veritrain.sources import commitment, environment, is_installed
from veritrain.state import capture, require_same_model
from veritrain.step import Program
from veritrain.training.check_report import Cost, Problem, RefusedOperator
from veritrain.training.places import Places, forward_place
from veritrain.training.repeat import State, StepOutcome, attributes, do_step
from veritrain.transcript import Header, state_entries
from veritrain.transcript.records import PUBLIC_KEY_BYTES

_STEPS = 2  # the second one starts from a state that a step has made
_SHOWN_COSTS = 8
_SHOWN_TENSORS = 3
_PACKAGE = Path(__file__).parents[1]
_OBSERVERS = (Path(__file__), _PACKAGE / "numerics")

T = TypeVar("T")


@dataclass(kw_only=True)
class Observation:
    """What was seen; later fields stay empty where something earlier went wrong."""

    problems: list[Problem] = field(default_factory=list)
    refused: tuple[RefusedOperator, ...] = ()
    records_checked: int = 0
    records: int = 0
    record_seconds: float = 0.0
    header: Header | None = (
        None  # of a run of this job; digest of the data and key stand for others
    )
    states: list[State] = field(default_factory=list)  # after the steps 0, 1 and 2
    outcomes: list[StepOutcome] = field(default_factory=list)  # of the steps 1 and 2
    before: dict[str, Tensor] = field(default_factory=dict)  # the state before the last of them
    remembered: dict[str, object] = field(default_factory=dict)  # attributes after it
    peak_bytes: int = 0
    operators: tuple[Cost, ...] = ()  # of the last step
    places: tuple[Cost, ...] = ()
    is_complete: bool = False  # both steps were done

    def attempt(self, part: str, act: Callable[[], T]) -> T | None:
        """What `act` returns; its error becomes a problem of that part of the job."""
        try:
            return act()
        except Exception as error:
            known = isinstance(error, VeritrainError)
            message = str(error) if known else f"{type(error).__name__}: {error}"
            if message not in [problem.message for problem in self.problems]:
                self.problems.append(Problem(part=part, message=message, error=error))
            return None


def observe(job: Job, records: int) -> Observation:
    """Look at a job up to its second step; at most `records` records are tried.

    The program is gone when this returns, so that it does not take memory from the next one.
    """
    return _Observing(job).run(records)


class _Observing:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._places = Places()
        self._traces = [_Trace(self._places)]
        self._profile = observed(job.numerics, self._traces[0])
        self._seen = Observation()

    def run(self, records: int) -> Observation:
        job = self._job
        with self._places.hooked():
            sources = self._attempt("job", lambda: commitment(job))
            batches = self._attempt("data set", lambda: Batches(job, self._profile))
            if batches is not None:
                self._attempt("data set", lambda: self._read(batches, records))
            program = self._attempt("building", self._build)
            if program is not None:
                self._attempt("state", lambda: self._capture(program))
            if batches is not None and program is not None:
                self._attempt("step", lambda: self._do_steps(program, batches))
        if sources is not None and batches is not None and program is not None:
            self._seen.header = _header(sources, replace(program, job=job), batches)
        self._seen.refused = _merged(self._traces)
        return self._seen

    def _attempt(self, part: str, act: Callable[[], T]) -> T | None:
        self._places.enter(part)
        return self._seen.attempt(part, act)

    def _read(self, batches: Batches, records: int) -> None:
        self._seen.records = batches.count
        indices = _spread(batches.count, records)
        list(batches.record_digests(indices[:1]))  # the first one takes longer
        start = perf_counter()
        for _ in batches.record_digests(indices):
            self._seen.records_checked += 1
        self._seen.record_seconds = (perf_counter() - start) / len(indices)

    def _build(self) -> Program:
        job = replace(self._job, loss=self._places.watching(self._job.loss))
        program = Program.build(job, self._profile)
        self._places.follow(program.model, program.optimizer, clips=job.clip_norm is not None)
        return program

    def _capture(self, program: Program) -> None:
        self._seen.states.append(state_entries(capture(program)))

    def _do_steps(self, program: Program, batches: Batches) -> None:
        built = capture(program)
        last = min(_STEPS, self._job.steps)
        peak = 0  # before the copy below
        for step in range(1, last + 1):
            if step == last:
                peak = peak_memory()
                self._seen.before = {name: x.clone() for name, x in capture(program).items()}
            if step > 1:
                self._traces.append(_Trace(self._places))
                self._profile.observer = self._traces[-1]
            self._places.enter("data set")
            outcome = do_step(program, batches, step)
            require_same_model(built, capture(program))
            self._seen.outcomes.append(outcome)
            self._seen.states.append(outcome.state)
        copied = sum(x.numel() * x.element_size() for x in self._seen.before.values())
        self._seen.peak_bytes = max(peak, peak_memory() - copied)
        self._seen.remembered = attributes(program)
        self._seen.operators = self._traces[-1].operators.largest()
        self._seen.places = self._traces[-1].places.largest()
        self._seen.is_complete = True


class _Costs:
    """Calls and seconds by name."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, float]] = {}

    def add(self, name: str, seconds: float) -> None:
        calls, total = self._sums.get(name, (0, 0.0))
        self._sums[name] = (calls + 1, total + seconds)

    def largest(self) -> tuple[Cost, ...]:
        """The longest first."""
        costs = [Cost(name=name, calls=n, seconds=s) for name, (n, s) in self._sums.items()]
        return tuple(sorted(costs, key=lambda cost: -cost.seconds)[:_SHOWN_COSTS])


class _Trace:
    """An observer that keeps, by operator and place, what was refused and what took time."""

    def __init__(self, places: Places) -> None:
        self.operators = _Costs()
        self.places = _Costs()
        self.refusals: dict[tuple[str, str, str], RefusedOperator] = {}
        self._where = places

    def computed(self, operator: str, seconds: float) -> None:
        self.operators.add(operator, seconds)
        self.places.add(forward_place(self._where.name), seconds)

    def refused(self, operator: str, values: Sequence[object], error: NumericsError) -> None:
        where = self._where.name
        key = (operator, where, str(error))
        known = self.refusals.get(key)
        if known is not None:
            self.refusals[key] = replace(known, times=known.times + 1)
            return
        # Its traceback would keep every tensor of the step.
        error = type(error)(str(error))
        self.refusals[key] = RefusedOperator(
            operator=operator,
            where=where,
            line=_users_line(),
            arguments=_described(values),
            times=1,
            error=error,
        )


def _merged(traces: list[_Trace]) -> tuple[RefusedOperator, ...]:
    """What was refused in any step, each with its count in the first step that it was met in."""
    found: dict[tuple[str, str, str], RefusedOperator] = {}
    for trace in traces:
        for key, refusal in trace.refusals.items():
            found.setdefault(key, refusal)
    return tuple(found.values())


def _users_line() -> str | None:
    """`FILE:LINE` of the job's own code that runs now; None where Veritrain itself runs PyTorch."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and _is_within(frame, _OBSERVERS):
        frame = frame.f_back
    while frame is not None and not _is_within(frame, (_PACKAGE,)):
        if not is_installed(Path(frame.f_code.co_filename)):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def _is_within(frame: FrameType, places: tuple[Path, ...]) -> bool:
    file = Path(frame.f_code.co_filename)
    return any(file.is_relative_to(place) for place in places)


def _described(values: Sequence[object]) -> str:
    """dtype, shape and unusual layout of the first few tensors among the arguments."""
    flat = [x for value in values for x in (value if isinstance(value, list | tuple) else [value])]
    tensors = [x for x in flat if isinstance(x, Tensor)]
    return ", ".join(
        f"{'' if x.layout is torch.strided else f'{x.layout} '}{x.dtype}{list(x.shape)}"
        for x in tensors[:_SHOWN_TENSORS]
    ).replace("torch.", "")


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` records, evenly spread, the first and the last among them."""
    if wanted >= count:
        return list(range(count))
    return sorted({i * (count - 1) // max(1, wanted - 1) for i in range(wanted)})


def _header(sources: dict[str, Value], program: Program, batches: Batches) -> Header:
    return Header(
        numerics=program.profile.name,
        numerics_version=program.profile.version,
        job=sources,
        dataset_root=bytes(DIGEST_BYTES),
        dataset_count=batches.count,
        environment=environment(program, batches.dataset),
        public_key=bytes(PUBLIC_KEY_BYTES),
    )


def peak_memory() -> int:
    """Most bytes of memory that this process ever held at a time.

    Not `ru_maxrss` where there is better: on Linux it begins at that of the program which started
    this one.
    """
    try:
        held = re.search(
            r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE
        )
    except OSError:
        held = None
    if held is not None:
        return int(held[1]) * 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
