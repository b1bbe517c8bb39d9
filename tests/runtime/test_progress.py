"""What people hear of long work: the words, the pace of the lines, and who hears what."""

from __future__ import annotations

from itertools import pairwise

import pytest

from veritrain.runtime import progress
from veritrain.runtime.progress import Compiling, Count, Event, Lines, Narrator, Stage, Step


class Clock:
    """Runs when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def step(number: int, total: int = 600, **more: float) -> Step:
    return Step(doing="step", number=number, done=number, total=total, **more)


def test_words_of_steps_have_pace_and_time_left():
    clock = Clock()
    describe = Narrator(clock).describe
    clock.now += 30  # compiling, reading: no part of a step's time
    assert describe(step(1, loss=0.69314, rate=0.001)) == "step 1 of 600: loss 0.6931, rate 0.001"
    clock.now += 39 * 1.2
    assert (
        describe(step(40, loss=0.41, rate=0.001))
        == "step 40 of 600: loss 0.41, rate 0.001, 1.2 s/step, 11 min 12 s left"
    )


def test_words_of_a_resumed_run_and_of_a_part():
    clock = Clock()
    describe = Narrator(clock).describe
    describe(step(501))
    clock.now += 10
    assert describe(step(511)) == "step 511 of 600: 1 s/step, 1 min 29 s left"
    part = Step(doing="recomputed step", number=120, done=21, total=50)
    assert Narrator(clock).describe(part) == "recomputed step 120, 21 of 50 done"


def test_words_of_compiling_count_the_time_so_far():
    clock = Clock()
    describe = Narrator(clock).describe
    first = describe(Compiling(kernel="norms.rows", number=1))
    assert first == "compiling kernels: norms.rows (1st); once per machine"
    clock.now += 7
    assert describe(Compiling(kernel=None, number=1)) == "compiled 1 kernels in 7 s"
    clock.now += 100  # not compiling
    describe(Compiling(kernel="sums.total", number=2))
    clock.now += 5
    describe(Compiling(kernel=None, number=2))
    third = describe(Compiling(kernel="softmax.softmax", number=3))
    assert third == "compiling kernels: softmax.softmax (3rd, 12 s so far); once per machine"


def test_words_of_stages_and_counts():
    describe = Narrator(Clock()).describe
    assert describe(Stage(doing="building the model")) == "building the model"
    count = Count(doing="reading the data set", done=12000, total=50000, unit="records")
    assert describe(count) == "reading the data set: 12,000 of 50,000 records"


def lines_of(events: list[tuple[float, Event]]) -> list[str]:
    """The lines about events, each so many seconds after the one before."""
    clock, written = Clock(), []
    lines = Lines(written.append, clock)
    for pause, event in events:
        clock.now += pause
        lines(event)
    return written


def test_lines_of_steps_come_at_once_and_then_ever_more_rarely():
    written = lines_of([(1.0, step(number, 3600)) for number in range(1, 3601)])
    numbers = [int(line.split()[1]) for line in written]
    assert numbers[:6] == [1, 11, 31, 71, 151, 311]
    assert {after - before for before, after in pairwise(numbers[5:])} == {300}


def test_quick_work_has_few_lines():
    reading = [
        (0.01, Count(doing="reading the data set", done=n, total=99, unit="records"))
        for n in range(1, 100)
    ]
    compiling: list[tuple[float, Event]] = []
    for number in range(1, 5):
        compiling += [
            (0.1, Compiling(kernel="sums.total", number=number)),
            (1.0, Compiling(kernel=None, number=number)),
        ]
    assert lines_of(reading) == []
    assert len(lines_of(compiling)) == 1
    assert lines_of([(0, Stage(doing="building the model"))] * 2) == ["building the model"]


def test_slow_reading_has_lines():
    reading = [
        (4.0, Count(doing="reading the data set", done=n, total=9, unit="records"))
        for n in range(1, 10)
    ]
    assert lines_of(reading) == [
        "reading the data set: 4 of 9 records",
        "reading the data set: 9 of 9 records",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (1.234, "1.23 s"),
        (59.9, "59.9 s"),
        (724, "12 min 4 s"),
        (12000, "3 h 20 min"),
    ],
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_the_innermost_listener_hears():
    outer: list[Event] = []
    inner: list[Event] = []
    stage = Stage(doing="x")
    progress.tell(stage)  # nobody listens
    with progress.told_to(outer.append):
        with progress.told_to(inner.append):
            progress.tell(stage)
        assert (outer, inner) == ([], [stage])
        progress.tell(stage)
    progress.tell(stage)
    assert (outer, inner) == ([stage], [stage])


def test_scripts_see_lines_on_stderr_unless_someone_listens_or_they_decline(capsys):
    with progress.shown():
        progress.tell(Stage(doing="one"))
        with progress.shown(False):
            progress.tell(Stage(doing="two"))
    heard: list[Event] = []
    with progress.told_to(heard.append), progress.shown():
        progress.tell(Stage(doing="three"))
    assert capsys.readouterr().err == "one\n"
    assert heard == [Stage(doing="three")]
