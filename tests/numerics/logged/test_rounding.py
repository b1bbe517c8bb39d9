"""A trainer records, an auditor on another machine follows; one who lies about a decision or a
result.

Every trainer here, honest or not, has the auditor's operands: the lie is in the log, as it would be
in a step that starts from a state on which both agree.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.numerics.logged.test_grid import boundary, checksum_of, near_boundaries, weight
from veritrain.errors import InconclusiveError, TranscriptError, UsageError, VerificationError
from veritrain.numerics.logged import rounding as module
from veritrain.numerics.logged.grid import BLOCK, Rounded, follow, round_to
from veritrain.numerics.logged.log import LogWriter
from veritrain.numerics.logged.rounding import Following, Recording, Rounding, Target, Tensors
from veritrain.numerics.logged.thresholds import CLASSES, REACH, Thresholds

TARGETS = [
    Target(bits=24, unit=2.0**-53, depth=24),
    Target(bits=8, unit=2.0**-24, depth=14),
]
HALF = TARGETS[1]  # bfloat16 of float32
LOGGED, GROWTH = 10, 10.0
POSSIBLE = LOGGED + REACH * GROWTH  # units
THRESHOLDS = Thresholds({"product": LOGGED})
seeds = st.integers(0, 2**32 - 1)


def tensors(values: np.ndarray, scale: float | None = 1.0, kind: str = "product") -> Tensors:
    return Tensors(
        operator="aten.mm.default", result="result 0", kind=kind, scale=scale, growth=GROWTH,
        values=values, out=np.full(values.size, -7.5, np.float32),
    )  # fmt: skip


def recorded(target: Target, given: list[np.ndarray], **options) -> tuple[bytes, list[np.ndarray]]:
    """The log and the results of an honest trainer."""
    recording = Recording(target, options.pop("thresholds", THRESHOLDS))
    outs = [rounded_by(recording, values, **options) for values in given]
    return recording.finish(), outs


def rounded_by(rounding: Rounding, values: np.ndarray, **options) -> np.ndarray:
    of = tensors(values, **options)
    rounding.round(of)
    return of.out


def replayed(target: Target, log: bytes, given: list[np.ndarray], **options) -> list[np.ndarray]:
    """The results of an auditor who follows `log`."""
    following = Following(target, options.pop("thresholds", THRESHOLDS), log)
    outs = [rounded_by(following, values, **options) for values in given]
    assert following.finish() == log
    return outs


# Honest machines


@given(st.sampled_from(TARGETS), st.sampled_from([0.003, 1.0, 1e5]), st.booleans(), seeds)
@settings(max_examples=120, deadline=None)
def test_the_auditor_gets_the_trainers_bits(target, scale, is_single, seed):
    rng, kinds = np.random.default_rng(seed), ["product", "sum", "norm"]
    recording = Recording(target, Thresholds({"sum": 3}))
    machines, outs = [], []
    for kind in kinds:
        of = tensors(np.empty(0), scale, kind)
        grid = recording.logged_grid(of)
        mine = np.concatenate([near_boundaries(grid, rng, 200), rng.uniform(-scale, scale, 50)])
        theirs = mine + rng.choice([-1, -0.7, 0, 0.7, 1], mine.size) * grid.delta
        theirs = np.where(abs(theirs - mine) <= grid.delta, theirs, mine)
        if is_single and target.bits < 24:
            mine, theirs = mine.astype(np.float32), theirs.astype(np.float32)
            theirs = np.where(abs(theirs - mine.astype(np.float64)) <= grid.delta, theirs, mine)
            theirs = theirs.astype(np.float32)
        machines.append((kind, theirs))
        outs.append(rounded_by(recording, mine, scale=scale, kind=kind))
    log = recording.finish()
    following = Following(target, Thresholds({"sum": 3}), log)
    for (kind, theirs), out in zip(machines, outs, strict=True):
        assert rounded_by(following, theirs, scale=scale, kind=kind).tobytes() == out.tobytes()
    assert following.finish() == log
    for kind in kinds:
        mine, theirs = recording.tally[kind], following.tally[kind]
        assert (theirs.values, theirs.logged) == (mine.values, mine.logged)
        assert (mine.values, mine.corrected, mine.widest) == (250, 0, 0.0)
        assert theirs.corrected <= theirs.logged
        assert theirs.widest <= 1.0 + 1e-6 and (theirs.corrected or not theirs.widest)


@pytest.mark.parametrize("scale", [0.0, math.inf, math.nan, None])
def test_values_without_a_scale_are_rounded_alike(scale):
    values = np.array([0.0, -0.0, math.inf, -math.inf, math.nan, 0.1, 3e38, 1e-45, 1e-310])
    for target in TARGETS:
        log, outs = recorded(target, [values], scale=scale)
        assert replayed(target, log, [values], scale=scale)[0].tobytes() == outs[0].tobytes()


def test_without_a_scale_the_threshold_is_of_each_value():
    target, share = HALF, 9 * 2.0**-24
    middles = np.array([float(boundary(n, e)) for n in (128, 255) for e in (-30, 0, 30)])
    log, outs = recorded(target, [middles * (1 + share)], scale=None)
    following = Following(target, THRESHOLDS, log)
    theirs = rounded_by(following, middles * (1 - share), scale=None)
    assert theirs.tobytes() == outs[0].tobytes()
    assert following.tally["product"].corrected == 6
    assert 0.3 < following.tally["product"].widest < 1.0


def test_a_target_says_the_finest_step_under_the_scale():
    for scale, finest in ((1.0, -13), (0.99, -14), (2.0**20, 7), (1e-45, -149), (2.0**-130, -143)):
        grid = HALF.grid(scale, 10.0)
        assert (grid.bits, grid.finest, grid.relative) == (8, finest, 10.0 * 2.0**-16)
        assert grid.delta == 10.0 * 2.0**-24 * scale
    assert HALF.grid(None, 10.0).relative == 10.0 * 2.0**-16
    for scale in (0.0, math.inf, math.nan):
        grid = HALF.grid(scale, 10.0)
        assert (grid.finest, grid.delta, grid.relative) == (-149, 0.0, 0.0)


# Lies, in a tensor of 40 values of which number 7 is 5 units above a boundary; no other is near one

STEP = 2.0**-13  # of `HALF` at the scale 1
UNIT = HALF.unit * (1.0 + 2.0**HALF.bits * STEP)  # there: of the scale, and of the step itself
NEAR = 7
MIDDLE = float(boundary(107, -13))


def plain(offset: float = 5 * UNIT, size: int = 40) -> np.ndarray:
    values = (np.arange(size) % 100 + 0.1) * STEP
    values[NEAR] = MIDDLE + offset
    return values


def lie(values: np.ndarray, change: Callable[[Rounded, np.ndarray], Rounded]) -> bytes:
    """A log that `change` makes of the honest record and results; its checksum is of these
    results."""
    out = np.empty(values.size, np.float32)
    honest = round_to(HALF.grid(1.0, LOGGED), values, out)
    false = change(honest, out)
    log = LogWriter()
    log.append(values.size, replace(false, checksum=checksum_of(out)))
    return log.to_bytes()


def sketch_of(out: np.ndarray) -> np.ndarray:
    return round_to(HALF.grid(1.0, 0.0), out, np.empty_like(out)).sketch


def false_result(place: int, steps: float, is_logged: bool = False) -> Callable[..., Rounded]:
    """Entry `place` is off by some steps; checksum and sketch are of that, and it is logged or
    not."""

    def change(honest: Rounded, out: np.ndarray) -> Rounded:
        out[place] += steps * STEP
        entries = dict(zip(honest.places.tolist(), honest.up.tolist(), strict=True))
        if is_logged:
            entries[place] = steps > 0
        places = sorted(entries)
        up = [entries[p] for p in places]
        return replace(with_entries(places, up)(honest, out), sketch=sketch_of(out))

    return change


def with_entries(places: list[int], up: list[bool]) -> Callable[..., Rounded]:
    """Other entries in the log; the results are the honest ones."""
    return lambda honest, out: replace(
        honest, places=np.array(places, np.int64), up=np.array(up, np.bool_)
    )


def reject(values: np.ndarray, log: bytes, error: type[Exception], match: str, **options) -> None:
    with pytest.raises(error, match=match):
        replayed(HALF, log, [values], **options)


def test_the_tensor_of_these_tests_has_one_ambiguous_entry():
    log, outs = recorded(HALF, [plain()])
    assert log == lie(plain(), lambda honest, out: honest)
    out = np.empty(40, np.float32)
    possible = HALF.grid(1.0, POSSIBLE)
    assert round_to(possible, plain(), out).places.tolist() == [NEAR]
    following = Following(HALF, THRESHOLDS, log)
    assert rounded_by(following, plain()).tobytes() == outs[0].tobytes()
    tally = following.tally["product"]
    assert (tally.values, tally.logged, tally.corrected, tally.widest) == (40, 1, 0, 0.0)


@pytest.mark.parametrize("offset", [-9, -5, 5, 9])
def test_another_decision_that_is_possible_is_accepted_and_counted(offset):
    values = plain(offset * UNIT)

    def change(honest: Rounded, out: np.ndarray) -> Rounded:
        out[NEAR] = 107 * STEP if offset > 0 else 108 * STEP
        return replace(honest, up=~honest.up, sketch=sketch_of(out))

    following = Following(HALF, THRESHOLDS, lie(values, change))
    out = rounded_by(following, values)
    following.finish()
    assert out[NEAR] == (107 if offset > 0 else 108) * STEP
    tally = following.tally["product"]
    assert (tally.values, tally.logged, tally.corrected) == (40, 1, 1)
    assert tally.widest == pytest.approx(abs(offset) / 10, rel=1e-2)


DENIED = "entry 7 is logged as rounded one way and recorded as rounded the other"


def test_another_decision_with_the_old_checksum_is_rejected():
    log = bytearray(recorded(HALF, [plain()])[0])
    log[11] ^= 0x80  # the direction of the only entry
    reject(plain(), bytes(log), VerificationError, DENIED)


@pytest.mark.parametrize("offset", [-5, 5])
def test_a_result_other_than_the_logged_decision_is_rejected(offset):
    """A logged entry is not free, near its boundary as it is."""
    values = plain(offset * UNIT)

    def change(honest: Rounded, out: np.ndarray) -> Rounded:
        out[NEAR] += -STEP if offset > 0 else STEP
        return replace(honest, sketch=sketch_of(out))

    reject(values, lie(values, change), VerificationError, DENIED)


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("place", [0, 3, 39])
def test_a_decision_far_from_any_boundary_is_forged(place, up):
    """Also where it says what is so anyway."""
    entries = sorted([(place, up), (NEAR, True)])
    log = lie(plain(), with_entries([p for p, _ in entries], [u for _, u in entries]))
    reject(plain(), log, VerificationError, f"forged decision.*entry {place} logged")


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("v", [math.nan, math.inf, -math.inf])
def test_a_decision_about_what_is_not_finite_is_forged(v, up):
    values = plain()
    values[3] = v
    log = lie(values, with_entries([3, NEAR], [up, True]))
    reject(values, log, VerificationError, "forged decision.*entry 3")


def test_decisions_are_possible_up_to_the_reach_and_no_further():
    for units, possible in ((POSSIBLE - 0.5, True), (POSSIBLE + 0.5, False)):
        values = plain(-units * UNIT)
        log = lie(values, false_result(NEAR, 1, is_logged=True))
        if possible:
            assert replayed(HALF, log, [values])[0][NEAR] == 108 * STEP
        else:
            reject(values, log, VerificationError, "forged decision")


@pytest.mark.parametrize("up", [True, False])
def test_a_value_on_the_grid_has_no_decision(up):
    """Even where more than a step is possible: decisions reach less than half of one."""
    target, step = replace(HALF, depth=20), 2.0**-19  # possible are 90 of its 32 units
    values = np.arange(40) * step
    log = LogWriter()
    steered = (np.arange(40) + (1 if up else -1)).astype(np.float32) * np.float32(step)
    all_of_them = with_entries(list(range(40)), [up] * 40)
    honest = round_to(target.grid(1.0, LOGGED), values, np.empty(40, np.float32))
    log.append(40, replace(all_of_them(honest, steered), checksum=checksum_of(steered)))
    with pytest.raises((VerificationError, InconclusiveError), match="entry 0 logged as rounded"):
        replayed(target, log.to_bytes(), [values])


def test_a_dropped_entry_is_accepted_where_the_machines_agree():
    values = plain()
    log = lie(values, with_entries([], []))
    assert (
        replayed(HALF, log, [plain(4 * UNIT)])[0].tobytes()
        == recorded(HALF, [values])[1][0].tobytes()
    )


NAMED = "rounded the other way and not logged: entry "


def test_a_dropped_entry_is_inconclusive_where_the_machines_differ():
    log = lie(plain(5 * UNIT), with_entries([], []))
    reject(plain(-4 * UNIT), log, InconclusiveError, NAMED + "7, 0.4 times the threshold")


def both(units: dict[int, tuple[float, float]], size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Values of the trainer and of the auditor: some entries that far from a boundary on each."""
    mine, theirs = plain(size=size), plain(size=size)
    for place, (first, second) in units.items():
        mine[place], theirs[place] = MIDDLE + first * UNIT, MIDDLE + second * UNIT
    return mine, theirs


@pytest.mark.parametrize("turned", [2, 9, 30])
def test_of_several_free_entries_the_one_that_turned_is_named(turned):
    """Not the nearest: 3 units away here, of those that are as the trainer has them."""
    units = dict.fromkeys((2, 9, 30), (3.0, 3.0)) | {turned: (6.0, -6.0)}
    mine, theirs = both(units)
    log = lie(mine, with_entries([], []))
    reject(theirs, log, InconclusiveError, NAMED + f"{turned}, 0.6 times the threshold")


@pytest.mark.parametrize("first", [(6.0, -6.0), (-6.0, 6.0)])
@pytest.mark.parametrize("second", [(30.0, -30.0), (-30.0, 30.0)])
@pytest.mark.parametrize("places", [(2, 9), (30, 9), (39, 0), (8, 10)])
def test_two_entries_that_turned_are_named(places, first, second):
    others = dict.fromkeys((5, 14, 15), (20.0, 20.0))
    mine, theirs = both({places[0]: first, places[1]: second, **others})
    log, _ = recorded(HALF, [mine], thresholds=Thresholds({"product": 0}))
    ratios = dict(zip(places, (0.6, 3), strict=True))
    low, high = sorted(places)
    reject(
        theirs, log, InconclusiveError,
        NAMED + f"{low}, {ratios[low]} times the threshold from its boundary here and "
        f"entry {high}, {ratios[high]} times",
    )  # fmt: skip


def test_entries_that_turned_are_found_beside_logged_ones():
    """The trainer's decisions are followed before what is left gets explained."""
    mine, theirs = both({3: (4.0, -4.0), 20: (15.0, -15.0), 21: (9.0, -30.0)})
    log, _ = recorded(HALF, [mine])
    following = Following(HALF, THRESHOLDS, log)
    with pytest.raises(
        InconclusiveError, match=NAMED + "20, 1.5 times the threshold from its bound"
    ):
        rounded_by(following, theirs)


@pytest.mark.parametrize("count", [3, 4, 20])
def test_any_number_of_entries_that_turned_is_inconclusive(count):
    mine, theirs = both(dict.fromkeys(range(count), (6.0, -6.0)))
    log, _ = recorded(HALF, [mine], thresholds=Thresholds({"product": 0}))
    told = "entry 0, .* and entry 1, .* and entry 2, " + (
        f".* and {count - 3} more" if count > 3 else ""
    )
    reject(theirs, log, InconclusiveError, told, thresholds=Thresholds({"product": 0}))


def test_what_is_out_of_reach_is_not_free():
    """An entry that turned farther away than is possible."""
    for units, error in ((POSSIBLE - 1, InconclusiveError), (POSSIBLE + 1, VerificationError)):
        mine, theirs = both({20: (units, -units)})
        log, _ = recorded(HALF, [mine])
        reject(theirs, log, error, "differ|not logged|any machine")


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.data())
@settings(max_examples=200, deadline=None)
def test_an_explanation_is_some_gains_that_add_up(gains, data):
    """Against trying all of them."""
    gains += data.draw(st.lists(st.sampled_from(gains), max_size=3)) if gains else []
    some = data.draw(st.lists(st.sampled_from(range(len(gains))), unique=True)) if gains else []
    total = sum(gains[i] for i in some)
    wanted = data.draw(st.sampled_from([*gains, total, 2 * sum(gains[:1]), 7])) % 2**64
    found = module._explanation(np.array(gains, np.uint64), wanted)
    if found is None:
        choices = range(1, 2 ** len(gains)) if len(gains) < 11 else []
        sums = (sum(gain for i, gain in enumerate(gains) if chosen >> i & 1) for chosen in choices)
        assert not some or total % 2**64 != wanted
        assert wanted not in [total % 2**64 for total in sums]
        return
    assert len(set(found.tolist())) == found.size
    assert sum(gains[i] for i in found.tolist()) % 2**64 == wanted
    assert found.size == 1 or wanted not in gains


@pytest.mark.parametrize("place", [0, 8, 39])
@pytest.mark.parametrize("steps", [-1000, -1, 1, 2, 50])
def test_a_false_result_is_rejected(steps, place):
    values = plain()
    reject(
        values,
        lie(values, false_result(place, steps)),
        VerificationError,
        "recorded results are not what its operands give on any machine",
    )
    logged = lie(values, false_result(place, steps, is_logged=True))
    reject(values, logged, VerificationError, "forged decision")


def test_a_false_result_beside_a_free_entry_is_rejected():
    """Its turn is not the difference, by however many steps the result is off."""
    for steps in (1, -1, 2, -2, 1000):
        values = plain(20 * UNIT)  # not logged, and possible
        reject(values, lie(values, false_result(3, steps)), VerificationError, "any machine")


def test_a_false_result_beside_one_that_turned_is_rejected():
    """Two entries, of which one is not free."""
    for steps in (1, -1, 1000):
        log = lie(plain(20 * UNIT), false_result(3, steps))
        reject(plain(-20 * UNIT), log, VerificationError, "any machine")


def test_a_false_result_with_an_honest_sketch_is_rejected():
    values = plain(20 * UNIT)

    def change(honest: Rounded, out: np.ndarray) -> Rounded:
        out[3] += 1000 * STEP
        return honest

    reject(values, lie(values, change), VerificationError, "any machine")


# More free entries than can be tried: every other entry is 20 units above a boundary, and not
# logged

CROWD = 2 * 4097


def crowd(count: int = 4097) -> np.ndarray:
    values = plain(20 * UNIT, CROWD)
    values[1 : 2 * count : 2] = MIDDLE + 20 * UNIT
    return values


def turned(values: np.ndarray, places: list[int]) -> np.ndarray:
    """Other values: some entries on the other side of their boundary."""
    values = values.copy()
    values[places] -= 40 * UNIT
    return values


MANY = np.arange(1, CROWD, 20).tolist()


def test_free_entries_are_tried_up_to_a_number():
    for count, error in (
        (module._TRIED, VerificationError),
        (module._TRIED + 1, InconclusiveError),
    ):
        values = crowd(count)
        log = lie(values, moved_by(20, 1))
        reject(values, log, error, f"any machine|perhaps in some of {count} entries")


@pytest.mark.parametrize("places", [[3], [3, 5], MANY, np.arange(1, CROWD, 2).tolist()])
def test_beside_a_crowd_of_free_entries_honest_machines_are_inconclusive(places):
    values = crowd()
    told = "4097 entries that may round either way and were not"
    log, _ = recorded(HALF, [turned(values, places)])
    reject(values, log, InconclusiveError, told)
    log, _ = recorded(HALF, [values])
    reject(turned(values, places), log, InconclusiveError, told)


def test_beside_a_crowd_results_that_moved_farther_than_it_can_are_rejected():
    values = crowd()
    for steps, error in (
        (100, InconclusiveError), (4097, InconclusiveError),
        (4098, VerificationError), (-4098, VerificationError), (20000, VerificationError),
    ):  # fmt: skip
        log = lie(values, moved_by(20, steps))
        reject(values, log, error, "any machine|perhaps in some of 4097 entries")


def moved_by(place: int, ranks: int) -> Callable[..., Rounded]:
    """The sketch says that entry `place` moved by so many results, and the checksum that it
    moved."""

    def change(honest: Rounded, out: np.ndarray) -> Rounded:
        out[place] += STEP
        signed = ranks if weight(place) >> 31 else -ranks
        return replace(honest, sketch=honest.sketch + np.uint16(signed % 2**16))

    return change


def test_beside_a_crowd_a_block_moves_by_its_own_free_entries():
    """What is free in the first block does not explain the second."""
    values = np.concatenate([np.tile(crowd(), BLOCK // CROWD + 1)[:BLOCK], plain(0.3 * STEP, 50)])
    for place, error in ((2, InconclusiveError), (BLOCK, VerificationError)):
        log = lie(values, moved_by_one(place))
        reject(values, log, error, "any machine|perhaps in some of")


def moved_by_one(place: int) -> Callable[..., Rounded]:
    def change(honest: Rounded, out: np.ndarray) -> Rounded:
        out[place] += STEP
        return replace(honest, sketch=sketch_of(out))

    return change


def test_beside_a_crowd_the_sketch_is_a_claim_that_nothing_binds_to_the_results():
    """By design: it says whom to suspect; that results are false, the committed state says."""
    values = crowd()

    def change(honest: Rounded, out: np.ndarray) -> Rounded:
        out[3] += 1000 * STEP
        return honest

    reject(values, lie(values, change), InconclusiveError, "perhaps in some of 4097 entries")


def test_false_results_whose_checksum_is_the_honest_one_pass_the_log():
    """By design: the checksum is linear, with weights that all know, and finds where machines part.

    What binds results is the committed state that comes of them. Weights of entries i, i + 2, i +
    16 and i + 18 cancel wherever none wraps round.
    """
    values, honest = plain(), recorded(HALF, [plain()])[1][0]
    false = honest.copy()
    i = next(
        i for i in range(8, 20) if weight(i) + weight(i + 18) == weight(i + 2) + weight(i + 16)
    )
    patterns = false.view(np.int32)
    patterns[[i, i + 18]] += 1 << 20
    patterns[[i + 2, i + 16]] -= 1 << 20
    assert checksum_of(false) == checksum_of(honest)

    def change(record: Rounded, out: np.ndarray) -> Rounded:
        out[:] = false
        return replace(record, sketch=sketch_of(out))

    own = replayed(HALF, lie(values, change), [values])[0]
    assert own.tobytes() == honest.tobytes()
    assert own.tobytes() != false.tobytes()


def test_false_results_that_add_up_to_turns_of_free_entries_are_not_rejected():
    """By design: nobody who steers so gains a verdict other than inconclusive."""
    values = plain(20 * UNIT)
    i = next(
        i for i in range(20, 39) if weight(i) == weight(i - 2) + weight(NEAR) - weight(NEAR - 2)
    )

    def change(honest: Rounded, out: np.ndarray) -> Rounded:
        # as if entry `NEAR` had gone down: its weight is w(i) - w(i - 2) + w(NEAR - 2)
        patterns = out.view(np.int32)
        for place, steps in ((i, -1), (i - 2, 1), (NEAR - 2, -1)):
            patterns[place] += steps * 2**17  # between results of 64 to 127 steps
        return replace(honest, sketch=sketch_of(out))

    reject(values, lie(values, change), InconclusiveError, NAMED + "7, 2 times the threshold")


def test_a_false_checksum_is_rejected():
    for bit in range(64):
        log = bytearray(recorded(HALF, [plain()])[0])
        log[bit // 8] ^= 1 << bit % 8
        reject(plain(), bytes(log), VerificationError, "any machine")


def test_records_in_another_order_are_rejected():
    first, second = plain(), plain()[::-1].copy()
    one, other = recorded(HALF, [first])[0], recorded(HALF, [second])[0]
    assert recorded(HALF, [first, second])[0] == one + other
    with pytest.raises(VerificationError):
        replayed(HALF, other + one, [first, second])


def test_a_record_of_another_tensor_is_refused():
    log, _ = recorded(HALF, [plain(size=40)])
    for size in (8, 39, 41, 400, 3 * BLOCK):
        with pytest.raises((TranscriptError, VerificationError)):
            replayed(HALF, log, [plain(size=size)])


def test_the_log_covers_every_tensor_and_no_more():
    one, two = (recorded(HALF, [plain()] * n)[0] for n in (1, 2))
    with pytest.raises(TranscriptError, match="ends early"):
        replayed(HALF, one, [plain()] * 2)
    with pytest.raises(TranscriptError, match="goes on"):
        replayed(HALF, two, [plain()])
    with pytest.raises(TranscriptError, match="goes on"):
        replayed(HALF, two + b"\x00", [plain()] * 2)


def test_what_differs_first_is_named():
    log, _ = recorded(HALF, [plain(), plain(), plain()])
    following = Following(HALF, THRESHOLDS, log)
    rounded_by(following, plain())
    false = plain()
    false[2] += STEP
    of = replace(tensors(false), operator="aten.sum.default", result="result 2")
    with pytest.raises(VerificationError, match="^result 2 of aten.sum.default: the recorded"):
        following.round(of)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_a_log_with_any_bit_flipped_is_no_other_kind_of_error(seed):
    rng = np.random.default_rng(seed)
    values = near_boundaries(HALF.grid(1.0, 10.0), rng, 60)
    log = bytearray(recorded(HALF, [values])[0])
    bit = int(rng.integers(8 * len(log)))
    log[bit // 8] ^= 1 << bit % 8
    try:
        outs = replayed(HALF, bytes(log), [values])
    except (TranscriptError, VerificationError, InconclusiveError):
        return
    assert outs[0].tobytes() == recorded(HALF, [values])[1][0].tobytes()


# Thresholds that are too small


def test_machines_that_differ_by_more_than_the_threshold_are_inconclusive():
    thresholds = Thresholds({"product": 0})
    log, _ = recorded(HALF, [plain(5 * UNIT)], thresholds=thresholds)
    reject(plain(-5 * UNIT), log, InconclusiveError, "calibrate", thresholds=thresholds)


@given(st.sampled_from(TARGETS), seeds, st.sampled_from([1, 2]))
@settings(max_examples=60, deadline=None)
def test_honest_machines_that_differ_in_one_or_two_entries_are_never_rejected(
    target, seed, differing
):
    """Whichever way these moved, on whatever binades."""
    rng, width = np.random.default_rng(seed), REACH * GROWTH
    thresholds = Thresholds({"product": 0})
    finest = math.frexp(1.0)[1] - target.depth
    values = (rng.integers(0, 2 ** (target.bits - 1), 200) + 0.1) * 2.0**finest
    others = values.copy()
    for place in rng.choice(200, differing, replace=False).tolist():
        middle = float(boundary(int(rng.integers(2 ** (target.bits - 1))), finest))
        off = float(rng.choice([-1, 1]) * rng.uniform(0.2, 0.9)) * width * target.unit
        values[place], others[place] = middle + off, middle - off
    log, _ = recorded(target, [values], thresholds=thresholds)
    with pytest.raises(InconclusiveError, match="rounded the other way and not logged: entry") as e:
        replayed(target, log, [others], thresholds=thresholds)
    assert str(e.value).count("entry") == differing
    assert "-" not in str(e.value).split("entry", 1)[1]  # no negative distance


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize(
    ("target", "wider"), [*((target, wider) for target in TARGETS for wider in (0, 1)), (HALF, 5)]
)
def test_honest_machines_that_differ_at_the_end_of_a_binade_are_not_rejected(
    target, wider, negative
):
    finest, thresholds = math.frexp(1.0)[1] - target.depth, Thresholds({"product": 0})
    n = -(2**target.bits) if negative else 2**target.bits - 1
    middle, off = float(boundary(n, finest + wider)), 30 * target.unit
    for sign in (-1, 1):
        mine, theirs = (np.array([middle + sign * d, 0.0]) for d in (-off, off))
        log, _ = recorded(target, [mine], thresholds=thresholds)
        with pytest.raises(InconclusiveError, match=NAMED + "0, "):
            replayed(target, log, [theirs], thresholds=thresholds)


@pytest.mark.parametrize("sign", [-1, 1])
def test_honest_machines_that_differ_beside_an_overflow_are_not_rejected(sign):
    thresholds, off = Thresholds({"product": 0}), sign * 5 * UNIT * 1e39
    middle = float(boundary(3, math.frexp(1e39)[1] - HALF.depth))
    mine, theirs = (np.array([middle + d, 7.77e38, math.nan]) for d in (-off, off))
    log, _ = recorded(HALF, [mine], thresholds=thresholds, scale=1e39)
    reject(
        theirs, log, InconclusiveError, NAMED + "0, ", thresholds=thresholds, scale=1e39,
    )  # fmt: skip


@pytest.mark.parametrize("sign", [-1, 1])
def test_honest_machines_that_differ_in_an_overflow_are_not_rejected(sign):
    """The largest result and infinity are neighbours."""
    thresholds, off = Thresholds({"product": 0}), sign * 30 * UNIT * 2.0**128
    middle = float(boundary(255, 120))
    mine, theirs = (np.array([middle + d]) for d in (-off, off))
    options = {"thresholds": thresholds, "scale": 2.0**128}
    log, outs = recorded(HALF, [mine], **options)
    assert math.isinf(outs[0][0]) == (sign < 0)
    reject(theirs, log, InconclusiveError, NAMED + "0, ", **options)


WIDE = replace(HALF, depth=24)  # steps of two units, less than the threshold


@pytest.mark.parametrize("shares", [(0.2, 0.8), (0.8, 0.2), (0.1, 0.9)])
def test_honest_machines_are_not_rejected_where_the_threshold_is_wider_than_the_grid(shares):
    """What was not logged, although within the threshold, is free."""
    mine, theirs = (np.array([(50 + share) * 2 * HALF.unit]) for share in shares)
    assert abs(mine - theirs)[0] < WIDE.grid(1.0, LOGGED).delta
    log, _ = recorded(WIDE, [mine])
    with pytest.raises(InconclusiveError, match=NAMED + r"0, 0\.0\d+ times") as e:
        replayed(WIDE, log, [theirs])
    times = float(str(e.value).split("entry 0, ")[1].split()[0])
    assert times == pytest.approx(abs(shares[1] - 0.5) * 2 / LOGGED, rel=0.01)


@pytest.mark.parametrize("shares", [(0.3, 0.96), (0.7, 0.96)])
def test_honest_decisions_are_not_forged_where_the_threshold_is_wider_than_the_grid(shares):
    """Nearer than the threshold to each other, but the auditor's value is not within the reach."""
    mine, theirs = (np.array([(50 + share) * 2 * HALF.unit]) for share in shares)
    assert abs(mine - theirs)[0] < WIDE.grid(1.0, LOGGED).delta
    log, _ = recorded(WIDE, [mine])
    with contextlib.suppress(InconclusiveError):
        replayed(WIDE, log, [theirs])


@pytest.mark.parametrize("theirs", [51.0, 50.999, 50.0, 50.002, -50.0])
@pytest.mark.parametrize("scale", [1.0, 2.0**-30, 2.0**40])
def test_out_of_reach_is_no_forgery_where_the_threshold_is_wider_than_the_grid(theirs, scale):
    """But one on a grid whose steps are wider."""
    step, which = 2 * HALF.unit * scale, "entry 0 logged as rounded up"
    mine = 50.7 if theirs > 0 else -50.3
    log, _ = recorded(WIDE, [np.array([mine * step])], scale=scale)
    for target, wide, error, match in (
        (WIDE, step, InconclusiveError, f"{which}.* thresholds are wider than the grid: calibrate"),
        (HALF, STEP * scale, VerificationError,
            f"forged decision: .*{which}.* out of reach of any"),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            replayed(target, log, [np.array([theirs * wide])], scale=scale)


@pytest.mark.parametrize("v", [math.inf, -math.inf, math.nan])
def test_a_decision_about_what_is_not_finite_is_forged_however_wide_the_threshold(v):
    log, _ = recorded(WIDE, [np.array([50.3 * 2 * HALF.unit])])
    with pytest.raises(VerificationError, match="forged decision"):
        replayed(WIDE, log, [np.array([v])])


@pytest.mark.parametrize(
    ("depth", "error"), [(14, VerificationError), (16, VerificationError), (17, InconclusiveError)]
)
def test_what_is_possible_says_whether_out_of_reach_is_forged(depth, error):
    """Not what is logged: 10 units, less than a quarter of a step of 2048, 512 or 256."""
    target, step = replace(HALF, depth=depth), 2.0 ** (1 - depth)
    assert step / 4 > LOGGED * UNIT
    assert (step / 4 < POSSIBLE * HALF.unit) == (error is InconclusiveError)
    log, _ = recorded(target, [np.array([50.5 * step + 5 * HALF.unit])])
    with pytest.raises(error, match="entry 0 logged as rounded"):
        replayed(target, log, [np.array([51.0 * step])])


@pytest.mark.parametrize("theirs", [0.0, -0.0])
def test_a_zero_out_of_reach_is_no_forgery_where_the_threshold_is_wider_than_the_grid(theirs):
    log, _ = recorded(WIDE, [np.array([0.3 * 2 * HALF.unit])])
    with pytest.raises(InconclusiveError, match="wider than the grid"):
        replayed(WIDE, log, [np.array([theirs])])


@pytest.mark.parametrize("sign", [-1, 1])
def test_honest_decisions_are_not_forged_where_the_auditor_is_in_the_next_binade(sign):
    """Nearer than the threshold to each other; what is possible is 0.4 of the trainer's step."""
    thresholds = Thresholds({"product": 0.4 * STEP / UNIT - REACH * GROWTH})
    mine, theirs = (np.array([sign * (255.5 + d) * STEP]) for d in (0.245, 0.60))
    grid = HALF.grid(1.0, thresholds.logged("product", GROWTH))
    assert abs(mine - theirs)[0] < grid.delta + grid.relative * STEP
    log, _ = recorded(HALF, [mine], thresholds=thresholds)
    with contextlib.suppress(InconclusiveError):
        replayed(HALF, log, [theirs], thresholds=thresholds)


def test_an_entry_beyond_the_reach_is_named_with_its_distance():
    log, _ = recorded(WIDE, [np.array([50.2 * 2 * HALF.unit])])
    with pytest.raises(InconclusiveError, match=NAMED + "0, ") as e:
        replayed(WIDE, log, [np.array([50.97 * 2 * HALF.unit])])
    assert "-1 times" not in str(e.value)


# Recording: what it decides and writes may be another's


def test_a_recording_writes_and_counts_what_it_decides():
    written: list[tuple[int, Rounded]] = []

    class Steering(Recording):
        def decide(self, tensors: Tensors) -> Rounded:
            honest = super().decide(tensors)
            up = ~honest.up
            grid = self.logged_grid(tensors)
            follow(
                grid, tensors.values, tensors.out, honest.places, up, self.possible_grid(tensors)
            )
            return replace(
                honest, up=up, checksum=checksum_of(tensors.out), sketch=sketch_of(tensors.out)
            )

        def write(self, size: int, rounded: Rounded) -> None:
            written.append((size, rounded))
            super().write(size, rounded)

    steering = Steering(HALF, THRESHOLDS)
    outs = [rounded_by(steering, plain()) for _ in range(3)]
    assert [out[NEAR] for out in outs] == [107 * STEP] * 3
    assert [(size, rounded.up.tolist()) for size, rounded in written] == [(40, [False])] * 3
    tally = steering.tally["product"]
    assert (tally.values, tally.logged, tally.corrected) == (120, 3, 0)
    following = Following(HALF, THRESHOLDS, steering.finish())
    for out in outs:
        assert rounded_by(following, plain()).tobytes() == out.tobytes()
    assert following.tally["product"].corrected == 3


def test_a_recording_that_writes_nothing_has_an_empty_log():
    class Silent(Recording):
        def write(self, size: int, rounded: Rounded) -> None:
            pass

    silent = Silent(HALF, THRESHOLDS)
    assert rounded_by(silent, plain()).tobytes() == recorded(HALF, [plain()])[1][0].tobytes()
    assert silent.finish() == b""
    assert silent.tally["product"].logged == 1


# Thresholds


def test_thresholds_are_calibrated_or_a_priori():
    calibrated = {"sum": 3, "norm": 0.5, "attention": 0}
    thresholds = Thresholds(calibrated)
    for growth, logged in ((1, 4), (127.9, 4), (128, 4), (200, 6.25), (4096.0, 128)):
        for name in CLASSES:
            expected = calibrated.get(name, logged)
            assert thresholds.logged(name, growth) == expected
            most = max(REACH, growth if name == "norm" else 0) * growth
            assert thresholds.possible(name, growth) == expected + most


def test_grids_of_a_result_are_as_wide_as_its_thresholds():
    rounding = Recording(HALF, Thresholds({"sum": 3}))
    for kind, growth, logged in (("product", 200.0, 6.25), ("product", 1.0, 4), ("sum", 200.0, 3)):
        of = replace(tensors(np.empty(0), 2.0, kind), growth=growth)
        near, far = rounding.logged_grid(of), rounding.possible_grid(of)
        assert near.delta == logged * HALF.unit * 2.0
        assert far.delta == (logged + REACH * growth) * HALF.unit * 2.0
        assert near.most < 0.25
        assert near.relative == logged * HALF.unit * 2**HALF.bits
        assert far.relative == (logged + REACH * growth) * HALF.unit * 2**HALF.bits
        assert (near.bits, near.finest) == (far.bits, far.finest)
        assert far.most == 0.498


def test_thresholds_do_not_change_with_what_they_were_made_of():
    calibrated = {"sum": 3.0}
    thresholds = Thresholds(calibrated)
    calibrated["sum"] = 100.0
    assert thresholds.logged("sum", 4) == 3.0


@pytest.mark.parametrize("name", ["", "Sum", "products", "sum ", 0, None])
def test_a_threshold_of_no_class_is_refused(name):
    with pytest.raises(UsageError, match="is no class; choose of"):
        Thresholds({name: 1.0})


@pytest.mark.parametrize(
    "value",
    [-1, -1e-300, math.nan, math.inf, -math.inf, 2.0**41, 10**400, True, False, None, "1", [1]],
)
@pytest.mark.parametrize("name", CLASSES)
def test_what_is_no_threshold_is_refused(name, value):
    with pytest.raises(UsageError, match=f"{name}: expected a number from 0 on"):
        Thresholds({name: value})


def test_the_least_and_the_largest_threshold_are_some():
    for value in (0, 0.0, 1, 5e-324, 2.0**40, 2**40):
        assert Thresholds({"sum": value}).logged("sum", 1) == value
