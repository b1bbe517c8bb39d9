"""A check finds all that a run would be refused for, and says what the run will take."""

from __future__ import annotations

import gc
import itertools
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils.checkpoint import checkpoint

import veritrain as vt
from tests import jobs
from veritrain.job.data import Batches
from veritrain.job.state import capture
from veritrain.job.step import Program, run_step
from veritrain.numerics import observed as observed_module
from veritrain.numerics.profile import Exact
from veritrain.training import observe as observe_module
from veritrain.training import repeat as repeat_module
from veritrain.training.observe import observe
from veritrain.transcript import Transcript, state_entries


def fft(x: Tensor) -> Tensor:
    return torch.view_as_real(torch.fft.fft(x))[..., 0]


class Block(nn.Module):
    """A layer and some function after it."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


class Net(nn.Module):
    def __init__(self, *functions: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(function) for function in functions)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def make(*functions: Any, **changes: Any) -> vt.Job:
    """A job whose model has a block for each function."""
    return jobs.make(**{"model": lambda: Net(*functions), "accumulate": 1, **changes})


def places(report: vt.CheckReport) -> set[tuple[str, str]]:
    return {(item.operator, item.where) for item in report.operators}


def only_problem(report: vt.CheckReport) -> tuple[str, str]:
    assert len(report.problems) == 1, report.problems
    return report.problems[0].part, report.problems[0].message


def one_problem(report: vt.CheckReport, part: str) -> str:
    """The message of the one problem of this part; there may be others of other parts."""
    messages = [problem.message for problem in report.problems if problem.part == part]
    assert len(messages) == 1, report.problems
    return messages[0]


def test_a_good_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = vt.check(jobs.make())
    assert report.is_ok
    report.require_ok()
    assert (report.operators, report.problems) == ((), ())
    assert (report.records_checked, report.records) == (40, 40)
    assert report.estimates is not None
    assert report.estimates.timed_steps == 2
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="no truth value"):
        bool(report)


@pytest.mark.parametrize(
    "job",
    [jobs.make(), jobs.make(steps=1), jobs.make(numerics="exact14")],
    ids=["two steps", "one step", "narrow products"],
)
def test_looking_on_changes_no_bit(job: vt.Job) -> None:
    program, batches = Program.build(job), Batches(job)
    losses = [run_step(program, step, batches[step]) for step in range(1, min(2, job.steps) + 1)]
    seen = observe(job, 10)
    assert seen.states[-1] == state_entries(capture(program))
    assert [outcome.loss for outcome in seen.outcomes] == losses


def test_all_refused_operators_with_their_places() -> None:
    job = make(
        lambda x: x @ torch.linalg.lu(torch.eye(6) + x.mean() / 8)[2],
        fft,
        loss=lambda model, batch: fft(jobs.loss(model, batch)[None])[0],
    )
    report = vt.check(job)
    assert {
        ("aten.linalg_lu.default", "blocks.0"),
        ("aten.linalg_solve_triangular.default", "backward of blocks.0"),
        ("aten._fft_r2c.default", "blocks.1"),
        ("aten._fft_c2c.default", "backward of blocks.1"),
        ("aten._fft_r2c.default", "loss"),
        ("aten._fft_c2c.default", "backward of loss"),
    } <= places(report)
    parts = {"blocks.0", "blocks.1", "loss"}
    assert {where.removeprefix("backward of ") for _, where in places(report)} == parts
    first = report.operators[0]
    assert (first.operator, first.times, first.arguments) == (
        "aten.linalg_lu.default", 1, "float32[6, 6]"
    )  # fmt: skip
    assert "write this part of the model with covered operators" in first.remedy
    assert first.line is not None
    file, _, number = first.line.rpartition(":")
    assert file == __file__
    assert "torch.linalg.lu" in Path(file).read_text().splitlines()[int(number) - 1]
    assert report.estimates is not None
    with pytest.raises(vt.UnsupportedOperatorError, match=r"blocks.0: operator aten.linalg_lu"):
        report.require_ok()


def test_times_are_those_of_one_step() -> None:
    report = vt.check(make(fft, accumulate=4))
    times = {(item.operator, item.where): item.times for item in report.operators}
    assert times["aten._fft_r2c.default", "blocks.0"] == 4


@pytest.mark.parametrize(
    ("function", "operator", "arguments", "remedy"),
    [
        (lambda x: x.double().exp().float(), "aten.exp.default", "float64[8, 6]", "use .float()"),
        (lambda x: (x.bfloat16() * 2).float(), "aten.mul.Tensor", "bfloat16[8, 6]", "use .float()"),
        (
            lambda x: torch.complex(x, x).conj().abs(),
            "aten.abs.default",
            "complex64[8, 6]",
            "real and imaginary parts",
        ),
        (
            lambda x: torch.sparse.mm(x.to_sparse(), torch.ones(6, 6)),
            "aten._sparse_addmm.default",
            "float32[8, 6], sparse_coo float32[8, 6], float32[6, 6]",
            "covered operators",
        ),
        (lambda x: x + torch.linalg.svdvals(x).sum(), "aten._linalg_svd", "float32[8, 6]", "write"),
    ],
    ids=["float64", "bfloat16", "complex", "sparse", "svd"],
)
def test_other_kinds_of_numbers(function: Any, operator: str, arguments: str, remedy: str) -> None:
    report = vt.check(make(function))
    assert report.problems == ()
    assert {item.where for item in report.operators} <= {"blocks.0", "backward of blocks.0"}
    found = next(item for item in report.operators if item.operator.startswith(operator))
    assert found.arguments.startswith(arguments)
    assert remedy in found.remedy


def test_messages_with_values_in_them_are_one_entry() -> None:
    report = vt.check(make(lambda x: x + (x * 1e30).to(torch.int32) * 0, accumulate=4))
    assert [(item.operator, item.where, item.times) for item in report.operators] == [
        ("aten._to_copy.default", "blocks.0", 4)
    ]
    assert report.operators[0].remedy == "clamp first"


def test_an_operator_of_the_second_step_only() -> None:
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(fft(x) if self.calls > 1 else x)

    report = vt.check(make(model=Late))
    assert ("aten._fft_r2c.default", "model") in places(report)
    assert report.problems == ()


def test_a_refused_operator_that_cannot_be_computed_at_all() -> None:
    report = vt.check(make(model=lambda: Net(fft).bfloat16()))  # its records are float32
    part, message = only_problem(report)
    assert part == "step"
    assert "aten.addmm.default cannot be computed by PyTorch either (RuntimeError: mat1" in message
    assert len(message) < 300
    assert ("aten.addmm.default", "blocks.0.layer") in places(report)
    assert report.estimates is None


def test_refusals_outside_of_the_step() -> None:
    class Data(jobs.Points):
        def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
            record, label = super().__getitem__(index)
            return {**record, "x": fft(record["x"])}, label

    def build() -> nn.Module:
        model = Net()
        with torch.no_grad():
            model.last.weight.copy_(fft(model.last.weight))
        return model

    report = vt.check(make(model=build, dataset=Data()))
    found = {where for operator, where in places(report) if operator == "aten._fft_r2c.default"}
    assert found == {"data set", "building"}
    assert report.problems == ()


def test_a_refused_optimiser_does_not_hide_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Exact, optimizer: torch.optim.Optimizer) -> None:
        raise vt.UnsupportedOperatorError("optimizer AdamW is not for this test; use SGD")

    monkeypatch.setattr(Exact, "fix_flags", refuse)
    report = vt.check(make(fft))
    assert {("AdamW", "building"), ("aten._fft_r2c.default", "blocks.0")} <= places(report)
    assert report.operators[0].remedy == "use SGD"


def test_places_of_modules_that_fail_or_run_again() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError

    class Model(Net):
        def __init__(self) -> None:
            super().__init__(lambda x: fft(x).tanh())
            self.failing = Failing()

        def forward(self, x: Tensor) -> Tensor:
            try:
                self.failing(x)
            except ValueError:
                x = fft(x)
            return self.last(checkpoint(self.blocks[0], x, use_reentrant=False))

    times = {
        item.where: item.times
        for item in vt.check(make(model=Model)).operators
        if item.operator == "aten._fft_r2c.default"
    }
    assert times == {"model": 1, "blocks.0": 2}  # once forward, once more for the backward pass


def test_nothing_of_the_check_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[weakref.ref[nn.Module]] = []

    def build() -> nn.Module:
        model = jobs.Net()
        built.append(weakref.ref(model))
        return model

    observe(jobs.make(model=build), 10)
    gc.collect()
    assert built[0]() is None
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks


# a step that is no function of its state

COUNTER = itertools.count(1)


class Counting(jobs.Net):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class Buffered(jobs.Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class Wandering(jobs.Points):
    def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
        record, label = super().__getitem__(index)
        return {**record, "x": record["x"] + next(COUNTER)}, label


def counted_loss(model: nn.Module, batch: Any) -> Tensor:
    return jobs.loss(model, batch) * next(COUNTER)


def counted_model() -> nn.Module:
    model = jobs.Net()
    with torch.no_grad():
        model.second.bias.add_(next(COUNTER))
    return model


@pytest.mark.parametrize(
    ("changes", "part", "message"),
    [
        (
            {"model": Counting},
            "hidden state",
            r"its loss, model/first.bias, .*model.calls \(4, then 2",
        ),
        ({"model": Counting, "numerics": "native"}, "hidden state", "kernels that do not repeat"),
        ({"loss": counted_loss}, "hidden state", "step 2, done again from the stored state 1"),
        ({"loss": counted_loss, "steps": 1}, "hidden state", "step 1, done again"),
        ({"dataset": Wandering()}, "hidden state", "its batch, so a record is not the same"),
        ({"model": counted_model}, "building", "not the same: model/second.bias;"),
    ],
)
def test_hidden_state_is_found_and_named(changes: dict[str, Any], part: str, message: str) -> None:
    report = vt.check(jobs.make(**changes))
    text = one_problem(report, part)
    assert re.search(message, text), text
    assert report.estimates is not None
    with pytest.raises(vt.JobError):
        report.require_ok()


def test_a_buffer_is_not_hidden() -> None:
    assert vt.check(jobs.make(model=Buffered)).is_ok


# what else is wrong


class Uneven(jobs.Points):
    """Record 1, which is not in the first batches, holds a set."""

    def __getitem__(self, index: int) -> tuple[dict[str, Any], Any]:
        record, label = super().__getitem__(index)
        return record, {label} if index == 1 else label


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(3)


class Complex(Net):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, dtype=torch.complex64))


class Growing(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.register_buffer("seen", x.detach())
        return super().forward(x)


@pytest.mark.parametrize(
    ("changes", "part", "message"),
    [
        ({"sources": ["no-such-file"]}, "job", "no-such-file: expected a file, got nothing"),
        (
            {"dataset": jobs.Points(4)},
            "data set",
            "expected at least batch_size = 8 records, got 4",
        ),
        ({"dataset": Uneven()}, "data set", r"record 1\[1\].*builtins.set has no canonical bytes"),
        ({"dataset": lambda: 1 / 0}, "data set", "the function raised ZeroDivisionError"),
        ({"model": Lazy}, "building", "parameter layer.weight is lazy"),
        ({"model": lambda: 3}, "building", "model: must return a Module, got int"),
        ({"optimizer": lambda m: torch.optim.LBFGS(m.parameters())}, "building", "needs closure"),
        ({"model": Complex}, "building", "dtype torch.complex64 cannot be part of a state"),
        ({"model": Growing}, "step", "model/seen appeared in step 1"),
        ({"loss": lambda m, b: m(b[0]["x"])}, "step", r"shape \(\), got torch.float32 of shape"),
        ({"loss": lambda m, b: m(b[7])}, "step", "step 1: loss raised IndexError"),
        ({"loss": lambda m, b: jobs.loss(m, b) / 0}, "step", "the loss is inf"),
        ({"steps": 20000, "checkpoint_every": 20000}, "run", "steps between two commits"),
        ({"steps": 5_000_000}, "run", "a run has at most 3999999"),
        ({"steps": 1_000_000, "checkpoint_every": 1}, "run", "at most 1000000 files"),
    ],
)
def test_other_problems(changes: dict[str, Any], part: str, message: str) -> None:
    report = vt.check(make(**changes))
    found, text = only_problem(report)
    assert found == part
    assert re.search(message, text), text
    assert report.operators == ()
    assert (report.estimates is None) == (not isinstance(changes.get("dataset"), Uneven))


def test_problems_of_several_parts() -> None:
    report = vt.check(make(model=Lazy, dataset=jobs.Points(4), sources=["no-such-file"]))
    assert [problem.part for problem in report.problems] == ["job", "data set", "building"]


def test_records_are_spread_over_the_data_set() -> None:
    asked: list[int] = []

    class Noting(jobs.Points):
        def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
            asked.append(index)
            return super().__getitem__(index)

    job = make(dataset=Noting(1000))
    assert vt.check(job, records=4).records_checked == 4
    assert asked[:6] == [0, 0, 0, 333, 666, 999]  # the first one draws, and is asked again
    assert vt.check(job, records=1).records_checked == 1
    assert vt.check(job, records=5000).records_checked == 1000
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(vt.UsageError, match="records: expected 1 or more"):
            vt.check(job, records=wrong)  # type: ignore[arg-type]


# estimates


class Wide(nn.Module):
    """So many numbers that the text among them, which varies in length, does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 2000)
        self.second = nn.Linear(2000, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class Frozen(Wide):
    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)


def sgd(momentum: float) -> Any:
    return lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 1, "checkpoint_every": 100},
        {"steps": 30, "checkpoint_every": 7, "accumulate": 1},
        {"model": Frozen},
        {"optimizer": sgd(0.0), "scheduler": None},
        {"optimizer": sgd(0.9)},
        {"numerics": "native"},
        {"numerics": "logged"},
    ],
    ids=["adamw", "one step", "many", "frozen", "sgd", "momentum", "native", "logged"],
)
def test_estimated_bytes_are_those_of_a_run(changes: dict[str, Any], tmp_path: Path) -> None:
    job = jobs.make(**{"model": Wide, **changes})
    report = vt.check(job)
    assert report.is_ok
    assert report.estimates is not None
    disk = report.estimates.disk
    vt.train(job, tmp_path / "run", signer=vt.Signer.generate())
    files = {
        str(file.relative_to(tmp_path / "run")): file.stat().st_size
        for file in (tmp_path / "run").rglob("*")
        if file.is_file()
    }
    transcript = Transcript.open(tmp_path / "run")
    state = sum(entry.num_bytes for entry in transcript.checkpoint(job.steps).tensors)
    first, last = (
        sum(
            size
            for name, size in files.items()
            if f"/{step:012d}" in name and not name.startswith(("leaves/", "rounding/"))
        )
        for step in (0, job.steps)
    )
    assert disk.header == files["header"]
    assert disk.first_checkpoint == first + files["leaves/000000000000"]
    assert disk.checkpoints == len(transcript.checkpoint_steps)
    assert report.estimates.state_bytes == pytest.approx(state, rel=0.002)
    assert disk.checkpoint == pytest.approx(last, rel=0.002)
    assert disk.total == pytest.approx(sum(files.values()), rel=0.002)
    logs = [size for name, size in files.items() if name.startswith("rounding/")]
    assert disk.log * job.steps == pytest.approx(sum(logs), rel=0.1)


def test_a_report_prints_as_the_command_does() -> None:
    lines = str(vt.check(make(lambda x: x, lambda x: x.tanh()))).splitlines()
    assert lines[0] == "numerics   exact: the same bits on every machine"
    assert lines[-1] == "OK: nothing would be refused"
    lines = str(vt.check(make(lambda x: x, torch.special.bessel_j0))).splitlines()
    assert lines[0] == "1 operator would be refused"
    assert lines[-1].startswith("REFUSED: 1 operator")


def test_costs_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    for module in (
        observe_module,
        observed_module,
        repeat_module,
    ):  # a clock that no load of the machine changes
        monkeypatch.setattr(module, "perf_counter", lambda: next(ticks) / 1024)
    estimates = vt.check(make(lambda x: x, lambda x: x.tanh())).estimates
    assert estimates is not None
    names = [cost.name for cost in estimates.operators]
    assert all(name.startswith("aten.") for name in names)
    assert {"blocks.0.layer", "blocks.1.layer"} <= {cost.name for cost in estimates.places}
    for costs in (estimates.operators, estimates.places):
        assert [cost.seconds for cost in costs] == sorted((c.seconds for c in costs), reverse=True)
        assert all(cost.seconds * 1024 >= cost.calls for cost in costs)
    assert estimates.seconds == pytest.approx(
        10 * estimates.step_seconds + 40 * estimates.record_seconds
    )
    assert estimates.peak_bytes > 100e6  # PyTorch alone has more


def test_native_numerics_refuse_nothing() -> None:
    report = vt.check(make(fft, numerics="native"))
    assert report.is_ok
    assert report.estimates is not None
    assert sum(cost.calls for cost in report.estimates.operators) > 0
