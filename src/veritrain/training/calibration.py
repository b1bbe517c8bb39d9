"""Finding the thresholds of `logged` numerics: how far machines lie apart on this job.

One machine does some steps and writes its rounding logs with samples of its unrounded results; each
other one does the same steps by these logs and measures the largest gap of each class of operators.
The threshold is that gap times a safety factor, and never above what rounding errors explain. The
published procedure searches by bisection for the smallest threshold without an unlogged
disagreement (Srivastava, Arora and Boneh 2024, algorithm 3); that is the largest gap, which is
measured here at once. A disagreement on the way is noted, and the measurement goes on. A second
round then shows that with the new thresholds all agree.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from veritrain.encoding import DIGEST_BYTES, digest_value
from veritrain.errors import TranscriptError, UsageError, VerificationError
from veritrain.job.data import Batches
from veritrain.job.job import Job
from veritrain.job.sources import commitment
from veritrain.job.step import Program, run_step
from veritrain.numerics import resolve
from veritrain.numerics.logged.thresholds import Thresholds
from veritrain.numerics.profile import Logged
from veritrain.runtime.started import as_started
from veritrain.training.machines import environment, machines
from veritrain.transcript.fields import shown
from veritrain.transcript.given import open_given

DEFAULT_SAFETY = 8.0
DEFAULT_STEPS = 3
_REORDERED = "sums in another order"
_LENGTH_BYTES = 8
_TOLD = 8  # disagreements of one machine
_TEXT_CHARS = 2000  # of a text in another computer's result
_PART_BYTES = 1 << 32  # of a step's samples: a sparse file says what it likes


@dataclass(frozen=True, kw_only=True)
class ClassGap:
    """What was found of one class of operators."""

    name: str
    samples: int
    gap: float  # largest, in units of u * S
    operator: str  # where it was
    threshold: float | None  # None: no machine differed, the a-priori one stays


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was found, and whether a second round with the new thresholds agreed."""

    steps: int
    safety: float
    machines: tuple[str, ...]
    classes: tuple[ClassGap, ...]
    log_bytes: tuple[int, int]  # of a step, mean: a priori, and with the new thresholds
    disagreements_before: tuple[str, ...]  # while gaps were measured, on other computers too
    disagreements: tuple[str, ...]  # of the second round

    @property
    def thresholds(self) -> dict[str, float]:
        """For `Job.thresholds`."""
        return {item.name: item.threshold for item in self.classes if item.threshold is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "steps": self.steps,
            "safety": self.safety,
            "machines": list(self.machines),
            "classes": [vars(item) for item in self.classes],
            "log_bytes_a_priori": self.log_bytes[0],
            "log_bytes": self.log_bytes[1],
            "thresholds": self.thresholds,
            "disagreements_before": list(self.disagreements_before),
            "disagreements": list(self.disagreements),
        }


def calibrate(
    job: Job,
    *,
    steps: int = DEFAULT_STEPS,
    safety: float = DEFAULT_SAFETY,
    measured: Mapping[str, Mapping[str, Any]] | None = None,
    on_machine: Callable[[int, int, str], None] | None = None,
) -> Calibration:
    """Measure the gaps of `job` over the machines that this computer can be.

    Args:
        job: from `load_job`, since other processes load it.
        steps: to do on each machine.
        safety: threshold over largest gap, 1 or more.
        measured: results of `compare` on other computers, by a name for each.
        on_machine: called as each machine starts: how many were done, how many there are, its name.

    Raises:
        UsageError: not a job of logged numerics, made in a script, a machine failed, a result is of
            another job, or a gap that rounding errors do not explain.
    """
    if job.origin is None:
        raise UsageError("calibrate: expected a job from load_job(); other processes load its file")
    if not safety >= 1.0:
        raise UsageError(f"safety: expected 1 or more, got {safety}")
    for name, result in (measured or {}).items():
        _require_result(name, result, _identity(job, steps))
    settings = machines(torch.get_num_threads())
    turns = itertools.count()

    def tell(name: str) -> None:
        if on_machine is not None:
            on_machine(next(turns), 2 * len(settings) + 2, name)

    with tempfile.TemporaryDirectory() as folder:
        before = _round(job, {}, steps, settings, Path(folder) / "a", tell)
        bounds = _bounds(before.results.values())
        results = {**before.results, **(measured or {})}
        for name, result in results.items():
            _require_explained(name, result, bounds)
        found = _widest(results.values())
        thresholds = {
            name: min(_threshold(item["largest"], safety), bounds[name])
            for name, item in sorted(found.items())
            if item["largest"] > 0.0  # where no machine differed nothing is known of others
        }
        after = _round(job, thresholds, steps, settings, Path(folder) / "b", tell)
    return Calibration(
        steps=steps,
        safety=safety,
        machines=(*settings, _REORDERED, *(measured or {})),
        classes=tuple(
            ClassGap(
                name=name, samples=item["samples"], gap=item["largest"], operator=item["operator"],
                threshold=thresholds.get(name),
            )
            for name, item in sorted(found.items())
        ),
        log_bytes=(before.log_bytes, after.log_bytes),
        disagreements_before=_disagreements(results),
        disagreements=_disagreements(after.results),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Round:
    results: dict[str, Mapping[str, Any]]  # of `compare`, by machine
    log_bytes: int  # of a step, mean


def _round(
    job: Job,
    thresholds: Mapping[str, float],
    steps: int,
    settings: Mapping[str, dict[str, str]],
    file: Path,
    tell: Callable[[str], None],
) -> _Round:
    """The first machine writes, the others compare."""
    first, *others = settings
    results: dict[str, Mapping[str, Any]] = {}
    tell(first)
    made = _on_machine(job, settings[first], "--write", file, steps, thresholds)
    for name in others:
        tell(name)
        results[name] = _on_machine(job, settings[name], "--against", file, steps, thresholds)
    tell(_REORDERED)
    results[_REORDERED] = _on_machine(
        job, settings[first], "--against", file, steps, thresholds, "--reordered"
    )
    return _Round(results=results, log_bytes=made["log_bytes"])


def _on_machine(
    job: Job, settings: dict[str, str], what: str, file: Path, steps: int,
    thresholds: Mapping[str, float], *more: str,
) -> dict[str, Any]:  # fmt: skip
    command = [
        sys.executable, "-m", "veritrain", "calibrate", str(job.origin), what, str(file),
        "--steps", str(steps), "--thresholds", json.dumps(dict(thresholds)), "--json", *more,
    ]  # fmt: skip
    with as_started():  # the job was executed here, and does not say where its machines find code
        started_with = environment(settings)
    done = subprocess.run(  # noqa: S603 - ourselves
        command, env=started_with, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        error = lines[-1]  # progress comes before it
        raise UsageError(f"a machine could not do the steps: {error}")
    return json.loads(done.stdout)


def write(job: Job, file: Path, *, steps: int, thresholds: Mapping[str, float]) -> dict[str, Any]:
    """Do some steps; write their logs and samples.

    Raises:
        UsageError: not a job of logged numerics.
    """
    from veritrain.numerics.logged.samples import Sampling

    profile = _logged(job)
    program, batches, sizes = Program.build(job), Batches(job), 0
    with file.open("wb") as out:
        out.write(digest_value("job", commitment(job)))
        for step in range(1, steps + 1):
            rounding = Sampling(profile.target, Thresholds(thresholds))
            run_step(program, step, batches[step], rounding)
            for part in (rounding.finish(), rounding.decisions(), rounding.samples()):
                out.write(len(part).to_bytes(_LENGTH_BYTES, "little") + part)
            sizes += len(rounding.finish())
    return {"log_bytes": sizes // steps}


def compare(
    job: Job, file: Path, *, steps: int, thresholds: Mapping[str, float], reordered: bool = False
) -> dict[str, Any]:
    """Do the same steps by the logs of `write`; the largest gap of each class.

    `reordered`: with sums the other way round where that can be asked for.

    Raises:
        UsageError: not a job of logged numerics, or the file is of another job.
        TranscriptError: the file is not one of `write`.
    """
    from veritrain.numerics.logged.samples import Comparing, Gap

    profile, identity = _logged(job), _identity(job, steps)
    program, batches = Program.build(job), Batches(job)
    gaps: dict[str, Gap] = {}
    disagreements: list[str] = []
    with open_given(file) as source:
        if source.read(DIGEST_BYTES).hex() != identity["job"]:
            raise UsageError(f"{file} is of another job")
        for step in range(1, steps + 1):
            parts = [_part(source, file) for _ in range(3)]
            rounding = Comparing(
                profile.target, Thresholds(thresholds), *parts, reordered=reordered
            )
            is_lost = False
            try:
                run_step(program, step, batches[step], rounding)
                rounding.finish()
            except VerificationError as error:
                is_lost = True  # no operands to go on with that both have
                rounding.disagreements.append(str(error))
            disagreements += (f"step {step}: {text}" for text in rounding.disagreements)
            gaps = {
                name: gaps.get(name, Gap()) + rounding.gaps.get(name, Gap())
                for name in gaps.keys() | rounding.gaps.keys()
            }
            if is_lost:
                break
    return {
        **identity,
        "thresholds": dict(thresholds),
        "gaps": {name: vars(gap) for name, gap in sorted(gaps.items())},
        "disagreements": _shortened(disagreements),
    }


def _identity(job: Job, steps: int) -> dict[str, Any]:
    """What a result says it is of."""
    digest = digest_value("job", commitment(job))
    return {"numerics": job.numerics, "job": digest.hex(), "steps": steps}


def _shortened(texts: list[str]) -> list[str]:
    more = len(texts) - _TOLD
    return [*texts[:_TOLD], f"and {more} more"] if more > 0 else texts


def _part(source: BinaryIO, file: Path) -> bytes:
    """The next part; its length is checked against the file's before memory is taken for it."""
    length = int.from_bytes(source.read(_LENGTH_BYTES), "little")
    if length > os.fstat(source.fileno()).st_size - source.tell():
        raise TranscriptError(str(file), "ends early")
    if length > _PART_BYTES:
        raise TranscriptError(str(file), f"expected parts of at most {_PART_BYTES} bytes")
    return source.read(length)


def _require_result(name: str, result: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Check what another computer says that it measured.

    Raises:
        UsageError: it is no result of `compare`, or one of another job or of other steps.
    """
    if not _is_result(result):
        raise UsageError(f"{name}: not a result of --against")
    for key, expected in identity.items():
        if result.get(key) != expected:
            raise UsageError(
                f"{name}: measured on something else: {key}: expected {expected!r}, "
                f"got {shown(result.get(key))}"
            )


def _is_result(result: Mapping[str, Any]) -> bool:
    gaps, told = result.get("gaps"), result.get("disagreements")
    return (
        isinstance(gaps, dict)
        and all(isinstance(gap, dict) and _is_gap(gap) for gap in gaps.values())
        and isinstance(told, list)
        and all(isinstance(text, str) and len(text) <= _TEXT_CHARS for text in told)
    )


def _is_gap(gap: dict[str, Any]) -> bool:
    return (
        type(gap.get("samples")) is int
        and 0 <= gap["samples"] < 2**63
        and isinstance(gap.get("operator"), str)
        and len(gap["operator"]) <= _TEXT_CHARS
        and all(
            # an integer of a thousand digits is a number that cannot be printed
            type(gap.get(key)) in (int, float) and 0 <= gap[key] <= sys.float_info.max
            for key in ("largest", "reach")
        )
    )


def _bounds(results: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What rounding errors explain of each class at most, as this computer has it."""
    bounds: dict[str, float] = {}
    for result in results:
        for name, gap in result["gaps"].items():
            bounds[name] = max(bounds.get(name, 0.0), gap["bound"])
    return bounds


def _require_explained(
    machine: str, result: Mapping[str, Any], bounds: Mapping[str, float]
) -> None:
    """Raises UsageError where a gap is no matter of rounding errors."""
    for name, gap in result["gaps"].items():
        if name not in bounds:
            raise UsageError(f"{machine}: {shown(name)} is no class of the job's operators")
        if not (gap["largest"] <= bounds[name] and gap["reach"] <= 1.0):
            raise UsageError(
                f"{machine}: class {name}: {gap['operator']} lies {gap['largest']:.3g} u * S apart,"
                f" and rounding errors explain {bounds[name]:.3g} at most: its kernels are broken,"
                " the result is made up, or the operator is too ill-conditioned for logged"
                " numerics"
            )


def _disagreements(results: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(
        f"{name}: {text}" for name, result in results.items() for text in result["disagreements"]
    )


def _widest(results: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The largest gap of each class over all machines."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        for name, gap in result["gaps"].items():
            old = found.get(name, {"samples": 0, "largest": -1.0, "operator": ""})
            wider = gap if gap["largest"] > old["largest"] else old
            found[name] = {**wider, "samples": old["samples"] + gap["samples"]}
    return found


def _threshold(gap: float, safety: float) -> float:
    """Two digits, rounded up: nobody reads more into it."""
    value = max(gap, _LEAST_GAP) * safety
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.6g}")


_LEAST_GAP = 0.125  # in units of u * S; of a rounding or less is no measure


def _logged(job: Job) -> Logged:
    profile = resolve(job.numerics)
    if not isinstance(profile, Logged):
        raise UsageError(f"{job.numerics} numerics have no thresholds; choose numerics='logged'")
    return profile
