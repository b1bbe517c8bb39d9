"""What long work tells those who wait for it: events, and the lines that describe them.

Work calls `tell`; who wants to know listens within `told_to`. Nothing is computed for them, and
without a listener `tell` costs a look at an empty list. `Lines` says which events are worth a line,
at a pace that never floods a log: the first step, then after 10 s, 20 s, 40 s, and every 5 minutes
    at last.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

FIRST_PAUSE, LONGEST_PAUSE = 10.0, 300.0  # seconds between two lines


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Work of unknown length begins: "building the model"."""

    doing: str


@dataclass(frozen=True, kw_only=True)
class Count:
    """`done` of `total` things are through: "reading the data set", 12,000 of 50,000 "records"."""

    doing: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class Compiling:
    """A kernel is about to be compiled, the `number`-th of this process; None: it is done."""

    kernel: str | None
    number: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """`done` of `total` steps are through. `number` is the step; its loss and rate, if known."""

    doing: str
    number: int
    done: int
    total: int
    loss: float | None = None
    rate: float | None = None  # of the first group of parameters


Event: TypeAlias = "Stage | Count | Compiling | Step"
Listener: TypeAlias = Callable[[Event], None]

_listeners: list[Listener] = []
_lock = threading.RLock()  # kernels are compiled in threads too


def tell(event: Event) -> None:
    """Let the listener of the innermost `told_to` know."""
    if not _listeners:
        return
    with _lock:
        if _listeners:
            _listeners[-1](event)


@contextmanager
def told_to(listener: Listener) -> Generator[None]:
    """Within it, `listener` hears what any thread of this process tells."""
    with _lock:
        _listeners.append(listener)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)


@contextmanager
def shown(wanted: bool = True) -> Generator[None]:
    """Within it, lines on stderr say what is being done: for scripts. Not where someone listens
    already; and where it is not `wanted`, nobody hears anything."""
    if not wanted:
        with told_to(_nobody):
            yield
    elif _listeners:
        yield
    else:
        with told_to(Lines(_to_stderr)):
            yield


def _nobody(event: Event) -> None:
    """Listens to no end."""


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Narrator:
    """Puts events into words, with how long things have taken and what is left.

    Args:
        clock: seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None  # steps done and time at the first step's end
        self._compiled = 0.0  # seconds
        self._compiling_since: float | None = None

    def describe(self, event: Event) -> str:
        """One line, without numbers of steps where they are unknown."""
        match event:
            case Stage():
                return event.doing
            case Count():
                return f"{event.doing}: {event.done:,} of {event.total:,} {event.unit}"
            case Compiling():
                return self._compiling(event)
            case Step():
                return self._step(event)

    def _compiling(self, event: Compiling) -> str:
        now = self._clock()
        if self._compiling_since is not None:
            self._compiled += now - self._compiling_since
        self._compiling_since = now if event.kernel is not None else None
        if event.kernel is None:
            return f"compiled {event.number} kernels in {duration(self._compiled)}"
        spent = f", {duration(self._compiled)} so far" if self._compiled > 0 else ""
        return (
            f"compiling kernels: {event.kernel} ({_ordinal(event.number)}{spent}); once per machine"
        )

    def _step(self, event: Step) -> str:
        now = self._clock()
        # The first step may compile: it says nothing about the next.
        self._first = self._first or (event.done, now)
        place = f"{event.doing} {event.number} of {event.total}"
        if event.done != event.number:
            place = f"{event.doing} {event.number}, {event.done} of {event.total} done"
        words: list[str] = []
        words += [f"loss {event.loss:.4g}"] if event.loss is not None else []
        words += [f"rate {event.rate:.4g}"] if event.rate is not None else []
        steps = event.done - self._first[0]
        if steps > 0:
            pace = (now - self._first[1]) / steps
            words += [
                f"{duration(pace)}/step",
                f"{duration(pace * (event.total - event.done))} left",
            ]
        return f"{place}: {', '.join(words)}" if words else place


class Lines:
    """Writes lines about events: new kinds of work at once, what repeats itself after growing
    pauses.

    Args:
        write: gets each line, without its end.
        clock: seconds that never run backwards.
    """

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._narrator = Narrator(clock)
        self._due: dict[str, tuple[float, float]] = {}  # kind of work -> (next line, pause before)

    def __call__(self, event: Event) -> None:
        """Write about an event, if it is due."""
        text = self._narrator.describe(event)  # it counts along, whether or not a line is due
        if self._is_due(event):
            self._write(text)

    def _is_due(self, event: Event) -> bool:
        if isinstance(event, Stage) and event.doing not in self._due:
            self._due[event.doing] = self._clock() + FIRST_PAUSE, FIRST_PAUSE
            return True
        if isinstance(event, Compiling):
            if event.kernel is None:
                return False
            work = "compiling"
        else:
            work = event.doing
        now = self._clock()
        due, pause = self._due.get(work, (now, 0.0))
        is_first = work not in self._due
        if now < due:
            return False
        pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
        self._due[work] = now + pause, pause
        return not (is_first and isinstance(event, Count))  # most counts end before it matters


def duration(seconds: float) -> str:
    """As people say it: `340 ms`, `1.2 s`, `12 min 4 s`, `3 h 20 min`."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def _ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}th" if number % 100 in (11, 12, 13) else f"{number}{ending}"
