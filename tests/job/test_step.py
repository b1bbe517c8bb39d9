"""The pure step and the state: what carries over is captured, restored and nothing else matters."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler

from tests import jobs
from veritrain import Job, JobError, NumericsError, TranscriptError
from veritrain.job.data import Batches
from veritrain.job.state import HYPER, SCHEDULER, capture, refuse_nan, require_fit, restore
from veritrain.job.step import Program, run_step
from veritrain.numerics.patches.exact_floats import correctly_rounded_math
from veritrain.transcript import state_entries, state_root

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda m: SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: SGD(list(jobs.groups(m)), lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda m: Adam(m.parameters(), lr=0.01, amsgrad=True),
    "adamw": jobs.adamw,
    "tensor rate": lambda m: AdamW(m.parameters(), lr=torch.tensor(0.01)),
}
SCHEDULERS: dict[str, Callable[[Optimizer], lr_scheduler.LRScheduler] | None] = {
    "none": None,
    "cosine": jobs.cosine,
    "steps": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4]),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}


def digest(program: Program) -> bytes:
    return state_root(state_entries(capture(program)))


def copied(program: Program) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in capture(program).items()}


def run(program: Program, first: int, last: int) -> list[float]:
    batches = Batches(program.job)
    return [run_step(program, step, batches[step]) for step in range(first, last + 1)]


def combinations() -> list[Any]:
    pairs = [(o, "cosine") for o in OPTIMIZERS] + [("momentum", s) for s in SCHEDULERS]
    return [pytest.param(o, s, id=f"{o}-{s}") for o, s in pairs]


@pytest.mark.parametrize(("optimizer", "scheduler"), combinations())
def test_a_restored_state_goes_on_as_if_never_stopped(optimizer: str, scheduler: str) -> None:
    job = jobs.make(optimizer=OPTIMIZERS[optimizer], scheduler=SCHEDULERS[scheduler])
    straight = Program.build(job)
    run(straight, 1, 3)
    stored = copied(straight)
    losses = run(straight, 4, 6)
    resumed = Program.build(job)
    restore(resumed, stored)
    assert digest(resumed) == state_root(state_entries(stored))
    assert run(resumed, 4, 6) == losses
    assert digest(resumed) == digest(straight)


def test_a_step_does_not_depend_on_the_process_history() -> None:
    job = jobs.make()
    one, other = Program.build(job), Program.build(job)
    assert digest(one) == digest(other)
    run(one, 1, 1)
    torch.manual_seed(99)
    torch.rand(5)
    run(Program.build(jobs.make(seed=3)), 1, 2)
    run(other, 1, 1)
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 12},
        {"optimizer": lambda m: AdamW(list(jobs.groups(m)), lr=0.011)},
        {"optimizer": lambda m: AdamW(list(jobs.groups(m)), lr=0.01, betas=(0.9, 0.998))},
        {"scheduler": lambda o: lr_scheduler.CosineAnnealingLR(o, 11)},
    ],
)
def test_hyper_parameters_are_state_from_the_start(change: dict[str, Any]) -> None:
    assert digest(Program.build(jobs.make())) != digest(Program.build(jobs.make(**change)))


@pytest.mark.parametrize("change", [{"accumulate": 4}, {"clip_norm": 0.01}, {"clip_norm": None}])
def test_settings_of_the_step_matter(change: dict[str, Any]) -> None:
    programs = [Program.build(jobs.make()), Program.build(jobs.make(**change))]
    assert digest(programs[0]) == digest(programs[1])
    for program in programs:
        run(program, 1, 2)
    assert digest(programs[0]) != digest(programs[1])


def test_state_holds_buffers_tied_weights_and_optimiser_tensors() -> None:
    class Tied(jobs.Net):
        def __init__(self) -> None:
            super().__init__()
            self.alias = self.first

    program = Program.build(jobs.make(model=Tied))
    run(program, 1, 1)
    names = set(capture(program))
    assert {"model/scale", "model/norm.running_mean", "model/norm.num_batches_tracked"} <= names
    assert {"model/first.weight", "model/alias.weight"} <= names
    assert {"optimizer/first.weight/exp_avg", "optimizer/first.weight/step"} <= names
    assert {HYPER, SCHEDULER} <= names
    assert not any(name.startswith("optimizer/alias") for name in names)
    stored = copied(program)
    restore(program, stored)
    stored["model/alias.weight"] = stored["model/alias.weight"] + 1
    with pytest.raises(TranscriptError, match="tied"):
        restore(program, stored)


def damaged(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "model/first.weight"
    match kind:
        case "missing":
            del state[name]
        case "unknown":
            state["model/extra"] = torch.zeros(1)
        case "unknown optimiser tensor":
            state["optimizer/nothing/exp_avg"] = torch.zeros(1)
        case "shape":
            state[name] = state[name].t()
        case "dtype":
            state[name] = state[name].double()
        case "hyper missing":
            del state[HYPER]
        case "hyper dtype":
            state[HYPER] = state[HYPER].float()
        case "hyper bytes":
            state[HYPER] = state[HYPER][:-1]
        case "hyper pickle":
            state[HYPER] = torch.frombuffer(bytearray(b"\x80\x04N."), dtype=torch.uint8)
        case "hyper list":
            state[HYPER] = torch.tensor([0x80], dtype=torch.uint8)
        case "hyper empty":
            state[HYPER] = torch.tensor([0xA0], dtype=torch.uint8)
        case "scheduler swapped":
            state[SCHEDULER] = state[HYPER]
        case _:
            raise ValueError(kind)
    return state


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "model/first.weight.* missing"),
        ("unknown", "model/extra.* no such tensor"),
        ("unknown optimiser tensor", "optimizer/nothing/exp_avg.* no such tensor"),
        ("shape", r"model/first.weight: expected shape \(8, 6\), got \(6, 8\)"),
        ("dtype", "model/first.weight: expected dtype torch.float32, got torch.float64"),
        ("hyper missing", "optimizer/hyper.* missing"),
        ("hyper dtype", "optimizer/hyper'?: expected uint8"),
        ("hyper bytes", "optimizer/hyper: not a canonical"),
        ("hyper pickle", "optimizer/hyper"),
        ("hyper list", "optimizer/hyper'?: expected a map"),
        ("hyper empty", "optimizer/hyper'?: expected 2 parameter groups"),
        ("scheduler swapped", "scheduler/state"),
    ],
)
def test_refuses_a_damaged_state_by_name(kind: str, message: str) -> None:
    program = Program.build(jobs.make())
    run(program, 1, 1)
    with pytest.raises(TranscriptError, match=message):
        restore(program, damaged(kind, copied(program)))


def test_a_later_state_fits_and_others_are_refused_before_they_are_read() -> None:
    program = Program.build(jobs.make())
    run(program, 1, 2)
    good = {entry.name: entry for entry in state_entries(capture(program))}
    fresh = Program.build(jobs.make())
    require_fit(fresh, good.values())

    def refuses(message: str, name: str, **change: Any) -> None:
        changed = {**good, name: replace(good.get(name, good[HYPER]), name=name, **change)}
        with pytest.raises(TranscriptError, match=message):
            require_fit(fresh, changed.values())

    refuses("model/first.weight: expected .* got .*9, 6", "model/first.weight", shape=(9, 6))
    refuses("model/first.weight: expected .* got ", "model/first.weight", dtype="float64")
    refuses("model/more'?: the job's state has no such", "model/more", shape=(2**40,))
    refuses("optimizer/no/exp_avg'?: the job's state has no", "optimizer/no/exp_avg")
    refuses("expected shape .8, 6., got shape .49", "optimizer/first.weight/exp_avg", shape=(49,))
    refuses("optimizer/hyper'?: expected at most", HYPER, shape=(2**30,))
    refuses("scheduler/state'?: expected at most", SCHEDULER, shape=(2**30,))
    with pytest.raises(TranscriptError, match="model/scale: is missing"):
        require_fit(fresh, [entry for name, entry in good.items() if name != "model/scale"])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_hostile_plain_state_gives_one_kind_of_error(data: st.DataObject) -> None:
    """Any bytes in the two CBOR tensors are either taken or refused as malformed."""
    program = Program.build(jobs.make())
    state = copied(program)
    name = data.draw(st.sampled_from([HYPER, SCHEDULER]))
    content = bytearray(state[name].numpy().tobytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    state[name] = torch.frombuffer(content, dtype=torch.uint8)
    with suppress(TranscriptError):
        restore(program, state)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, b: 1.0, "step 1: loss must return a scalar tensor, got float"),
        (lambda m, b: m(b[0]["x"]), r"step 1: .* shape \(\), got torch.float32 of shape \(4, 3\)"),
        (lambda m, b: m(b[0]["x"]).sum().long(), "step 1: .* got torch.int64"),
        (lambda m, b: torch.tensor(1.0), "step 1: the loss does not depend on any parameter"),
        (lambda m, b: m(b[0]["x"]).sum() * math.inf, "step 1: the loss is (nan|-?inf)"),
        (lambda m, b: m(b[0]["x"]).sum() * math.nan, "step 1: the loss is nan"),
    ],
)
def test_refuses_bad_losses(loss: Callable[..., Any], message: str) -> None:
    with pytest.raises(NumericsError, match=message):
        run(Program.build(jobs.make(loss=loss)), 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": lambda: 1}, "model: must return a Module, got int"),
        ({"model": lambda: nn.LazyLinear(3)}, "model: parameter weight is lazy"),
        ({"optimizer": lambda m: 1}, "optimizer: must return a Optimizer, got int"),
        ({"scheduler": lambda o: 1}, "scheduler: must return a LRScheduler, got int"),
    ],
)
def test_refuses_parts_of_the_wrong_type(change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        Program.build(jobs.make(**change))


class Expanded(jobs.Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(1, 3).expand(2, 3))


class KeyedByName(SGD):
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.state["count"] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": Expanded}, "model: mask overlaps itself in memory"),
        (
            {"optimizer": lambda m: torch.optim.LBFGS(m.parameters()), "scheduler": None},
            r"optimizer: LBFGS.step\(\) needs closure",
        ),
        ({"model": lambda: 1 / 0}, "model raised ZeroDivisionError"),
        ({"optimizer": lambda m: 1 / 0}, "optimizer raised ZeroDivisionError"),
        ({"scheduler": lambda o: 1 / 0}, "scheduler raised ZeroDivisionError"),
        ({"model": lambda: sys.exit(0)}, "model raised SystemExit: 0"),
    ],
)
def test_refuses_parts_that_cannot_work_when_built(change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        Program.build(jobs.make(**change))


def test_ordinary_layouts_do_not_overlap() -> None:
    class Strided(jobs.Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("a", torch.ones(2, 3, 4).permute(2, 0, 1))
            self.register_buffer("b", torch.ones(4, 6)[::2, ::3])
            self.register_buffer("c", torch.ones(()).expand(1, 1))
            self.register_buffer("d", torch.ones(0, 3))

    assert "model/b" in capture(Program.build(jobs.make(model=Strided)))


def test_state_under_a_name_is_refused_by_name() -> None:
    program = Program.build(
        jobs.make(optimizer=lambda m: KeyedByName(m.parameters(), lr=0.1), scheduler=None)
    )
    run_step(program, 1, Batches(program.job)[1])
    with pytest.raises(JobError, match="optimizer: keeps a int as state of 'count'"):
        capture(program)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise LookupError("no gradient")


class Failing(SGD):
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        raise LookupError("no step")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": lambda m, b: b["gone"]}, "step 3: loss raised TypeError"),
        ({"loss": lambda m, b: sys.exit(0)}, "step 3: loss raised SystemExit: 0"),
        (
            {"loss": lambda m, b: Backward.apply(jobs.loss(m, b))},
            "step 3: backward raised LookupError: no gradient",
        ),
        (
            {"optimizer": lambda m: Failing(m.parameters(), lr=0.1), "scheduler": None},
            r"step 3: optimizer.step raised LookupError: no step",
        ),
    ],
)
def test_errors_of_the_users_code_name_step_and_part(change: dict[str, Any], message: str) -> None:
    program = Program.build(jobs.make(**change))
    with pytest.raises(JobError, match=message):
        run_step(program, 3, Batches(program.job)[3])


def test_refuses_a_foreign_parameter() -> None:
    stray = nn.Parameter(torch.ones(3))
    job = jobs.make(optimizer=lambda m: SGD([*m.parameters(), stray], lr=0.1))
    with pytest.raises(JobError, match=r"a tensor of shape \(3,\) that is not a parameter"):
        capture(Program.build(job))


def test_nan_is_found_wherever_it_is() -> None:
    for bad in (torch.tensor(math.nan), torch.tensor([[1.0, math.nan], [math.inf, 0]]).bfloat16()):
        with pytest.raises(NumericsError, match="step 4: b holds a NaN"):
            refuse_nan({"a": torch.ones(2), "b": bad}, 4)
    refuse_nan(
        {"a": torch.tensor([math.inf, -0.0]), "b": torch.zeros(0), "c": torch.ones(1).int()}, 1
    )


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(["exp", "log", "sin", "cos", "pow"]),
    x=st.floats(1e-3, 600),
    y=st.floats(-20, 20),
)
def test_scheduler_math_is_correctly_rounded(name: str, x: float, y: float) -> None:
    arguments = (x, y) if name == "pow" else (x,)
    with correctly_rounded_math():
        got = getattr(math, name)(*arguments)
    with mpmath.workprec(2000):
        true = getattr(mpmath, "power" if name == "pow" else name)(*map(mpmath.mpf, arguments))
        below, above = (mpmath.mpf(math.nextafter(got, to)) for to in (-math.inf, math.inf))
        error = abs(true - mpmath.mpf(got))
        assert error <= abs(true - below)
        assert error <= abs(true - above)


def test_scheduler_math_keeps_edges_and_is_put_back() -> None:
    before = (math.exp, math.log, math.pow, math.sin, math.cos)
    with correctly_rounded_math():
        assert math.log(8, 2) == 3
        assert (math.exp(-1e9), math.pow(0, 0), math.cos(0)) == (0, 1, 1)
        assert math.isnan(math.exp(math.nan))
    with pytest.raises(ValueError, match="math domain"), correctly_rounded_math():
        math.log(-1)
    assert before == (math.exp, math.log, math.pow, math.sin, math.cos)


def test_native_numerics_runs_too() -> None:
    job: Job = jobs.make(numerics="native")
    one, other = Program.build(job), Program.build(job)
    assert run(one, 1, 3) == run(other, 1, 3)
