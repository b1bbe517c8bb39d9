"""What people met who trained with other tools, and jobs that are unusual but ordinary.

Each test has the number of its case and says what is right. `make` is one small job; a case changes
a part of it. Cases of numerics are in tests/numerics, those of loading in
tests/job/test_loading.py.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import veritrain as vt
from veritrain.training.recorder import OutsideOptimizerWarning
from veritrain.transcript import Transcript

ROOT = Path(__file__).parents[1]
KEY = vt.Signer.generate()


def data() -> TensorDataset:
    x = torch.randn(40, 8)
    return TensorDataset(x, (x.sum(1) > 0).long())


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def make(**changes: Any) -> vt.Job:
    fields: dict[str, Any] = {
        "model": model, "dataset": data, "loss": loss, "optimizer": adamw,
        "batch_size": 8, "steps": 8, "seed": 11, "checkpoint_every": 3,
    }  # fmt: skip
    return vt.Job(**{**fields, **changes})


def train(job: vt.Job, out: Path, **options: Any) -> bytes:
    return vt.train(job, out, signer=KEY, **options)


def accepted(job: vt.Job, out: Path) -> bool:
    """Train, and audit whole and in part."""
    train(job, out)
    reports = [vt.audit(out, job), vt.audit(out, job, steps=(job.steps - 1, job.steps))]
    return all(report.verdict is vt.Verdict.ACCEPTED for report in reports)


def refused(job: vt.Job, out: Path, message: str) -> None:
    """Training says it, before the first step or at the step that does it."""
    with pytest.raises(vt.VeritrainError, match=message) as caught:
        train(job, out)
    assert "report it" not in str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(dedent(text))
    return path


BODY = """
    import itertools
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torch.utils.data import TensorDataset
    import veritrain as vt

    def data():
        x = torch.randn(40, 8)
        return TensorDataset(x, (x.sum(1) > 0).long())
    def model(): return nn.Linear(8, 2)
    def loss(m, b): return F.cross_entropy(m(b[0]), b[1])
    def opt(m): return torch.optim.SGD(m.parameters(), lr=0.1)
    def job(**changes):
        fields = dict(model=model, dataset=data, loss=loss, optimizer=opt, batch_size=8, steps=8,
                      seed=11, checkpoint_every=4)
        return vt.Job(**{**fields, **changes})
"""


# tensors that are not plain


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_14_44_buffers_of_float8_train(dtype: str, tmp_path: Path) -> None:
    def build() -> nn.Module:
        made = model()
        made.register_buffer("q", torch.ones(4).to(getattr(torch, dtype)))
        return made

    assert accepted(make(model=build), tmp_path / "run")


def test_44_a_nan_of_float8_is_named(tmp_path: Path) -> None:
    def build() -> nn.Module:
        made = model()
        made.register_buffer("q", torch.full((4,), float("nan")).to(torch.float8_e5m2))
        return made

    refused(make(model=build), tmp_path / "run", "step [01]: model/q holds a NaN")


NOT_PLAIN: dict[str, tuple[Callable[[], Tensor], str]] = {
    "44_e8m0": (lambda: torch.ones(3).to(torch.float8_e8m0fnu),
        "dtype torch.float8_e8m0fnu cannot"),
    "51_fnuz": (lambda: torch.ones(3).to(torch.float8_e4m3fnuz),
        "dtype torch.float8_e4m3fnuz cannot"),
    "50_meta": (lambda: torch.empty(3, device="meta"), "got meta"),
    "50_sparse": (lambda: torch.eye(8).to_sparse(), "got torch.sparse_coo"),
    "51_csr": (lambda: torch.eye(8).to_sparse_csr(), "got torch.sparse_csr"),
    "51_mkldnn": (lambda: torch.ones(3).to_mkldnn(), "got torch._mkldnn"),
    "51_nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "dense tensor",
    ),
}  # fmt: skip
OUTSIDE = {name: make_one() for name, (make_one, _) in NOT_PLAIN.items()}  # the mode refuses some


@pytest.mark.parametrize("as_parameter", [False, True])
@pytest.mark.parametrize("name", NOT_PLAIN)
def test_50_51_other_tensors_are_refused_with_one_sentence(
    name: str, as_parameter: bool, tmp_path: Path
) -> None:
    def build() -> nn.Module:
        made = model()
        if as_parameter:
            made.q = nn.Parameter(OUTSIDE[name], requires_grad=False)
        else:
            made.register_buffer("q", OUTSIDE[name])
        return made

    refused(make(model=build), tmp_path / "run", re.escape(NOT_PLAIN[name][1]))


# a job that is not the same when it is done again


class Rotating:
    def __init__(self) -> None:
        self.r = np.random.RandomState(3)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return (
            torch.full((8,), i / 10) + torch.tensor(self.r.randint(0, 100, 8) / 50).float(),
            i % 2,
        )


def test_05_a_generator_of_the_data_sets_own(tmp_path: Path) -> None:
    refused(
        make(dataset=Rotating),
        tmp_path / "run",
        r"record \d+ is another one when it is read again; dataset\.r changed",
    )


class Balanced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        out = model(batch[0])
        self.mean.mul_(0.9).add_(out.detach().mean(0), alpha=0.1)
        return F.cross_entropy(out - self.mean, batch[1])


balanced = Balanced()


def test_18_a_loss_that_keeps_state(tmp_path: Path) -> None:
    job = make(loss=lambda m, b: balanced(m, b))
    refused(job, tmp_path / "run", r"step 2, done again .*not the same: .*balanced\.mean")
    assert not (tmp_path / "run").exists()


HIDDEN = {
    "a counter": "calls = itertools.count(1)\ndef loss(m, b): return F.cross_entropy(m(b[0]), b[1]) * next(calls)",  # noqa: E501
    "a record": """
class Data(torch.utils.data.Dataset):
    def __init__(self): self.calls = 0
    def __len__(self): return 40
    def __getitem__(self, i):
        self.calls += 1
        return torch.full((8,), float(self.calls)), i % 2
def data(): return Data()
""",
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_05_one_run_has_one_verdict(name: str, tmp_path: Path) -> None:
    """However the audit is cut, in one process or two; and training says so before."""
    file = write(tmp_path / "job.py", dedent(BODY) + HIDDEN[name])
    job = vt.load_job(file)
    with pytest.raises(vt.JobError, match="calls"):
        train(job, tmp_path / "refused")
    train(vt.load_job(file), tmp_path / "run", rehearse=False)
    verdicts = [
        vt.audit(tmp_path / "run", vt.load_job(file), **options).verdict
        for options in ({}, {"workers": 2}, {"steps": (5, 8)}, {"steps": (6, 7)}, {"sample": 2})
    ]
    assert verdicts == [vt.Verdict.REJECTED] * 5


def test_one_job_has_one_accepted_digest(tmp_path: Path) -> None:
    """Stops and what was committed at them do not choose where audits begin anew."""
    text = dedent(BODY).replace("checkpoint_every=4", "checkpoint_every=100") + HIDDEN["a counter"]
    file = write(tmp_path / "job.py", text)
    straight = train(vt.load_job(file), tmp_path / "straight", rehearse=False)
    for _ in range(8):
        with vt.Recorder(vt.load_job(file), tmp_path / "stops", signer=KEY, resume=True,
                         rehearse=False) as run:  # fmt: skip
            next(iter(run)).train()
    assert Transcript.open(tmp_path / "stops").checkpoint_steps == tuple(range(9))
    assert run.digest != straight
    assert vt.audit(tmp_path / "straight", vt.load_job(file)).verdict is vt.Verdict.ACCEPTED
    for options in ({}, {"steps": (8, 8)}, {"sample": 8}, {"workers": 2}):
        report = vt.audit(tmp_path / "stops", vt.load_job(file), **options)
        assert report.verdict is vt.Verdict.REJECTED, options


def test_a_run_without_the_prescribed_states_is_rejected(tmp_path: Path) -> None:
    """Who leaves them out would choose where audits begin anew."""
    train(make(checkpoint_every=8), tmp_path / "run")
    header = (tmp_path / "run" / "header").read_bytes()
    assert b"checkpoint_every\x08" in header
    report = vt.audit(tmp_path / "run", make(checkpoint_every=4))
    assert report.verdict is vt.Verdict.REJECTED  # by its settings already
    from veritrain.errors import VerificationError
    from veritrain.replay.segments import require_prescribed

    with pytest.raises(VerificationError, match="step 4: no state is stored"):
        require_prescribed(make(checkpoint_every=4), Transcript.open(tmp_path / "run"))


# state that is no tensor


class LateDropout(nn.Module):
    """Sets a flag in forward, when a buffer says so."""

    def __init__(self, change: Callable[[LateDropout], object], at: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Linear(8, 16)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 2)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.change, self.at = change, at

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        if int(self.seen) == self.at:
            self.change(self)
        return self.head(self.drop(self.backbone(x)))


FLAGS: dict[str, tuple[Callable[[Any], object], str]] = {
    "26_dropout": (lambda m: setattr(m.drop, "p", 0.1), r"model\.drop\.p \(0\.5, then 0\.1\)"),
    "26_unfreeze": (
        lambda m: m.backbone.requires_grad_(False),
        r"model\.backbone\.bias\.requires_grad \(True, then False\)",
    ),
    "j33_training": (lambda m: m.drop.eval(), r"model\.drop\.training \(True, then False\)"),
    "an attribute": (lambda m: setattr(m, "late", [1]), r"model\.late \(nothing, then \[1\]\)"),
    "a hook": (lambda m: m.drop.register_forward_hook(print), r"model\.drop\.class and hooks"),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_26_j33_flags_that_a_step_changes(name: str, tmp_path: Path) -> None:
    change, message = FLAGS[name]
    job = make(model=lambda: LateDropout(change))
    refused(job, tmp_path / "run", f"step 4: .*{message}.*before_step")
    assert Transcript.open(tmp_path / "run").checkpoint_steps == (0, 3)


def schedule(model: Any, step: int) -> None:
    """Unfreeze in step 4, less dropout from step 5, a part in evaluation mode."""
    model[0].requires_grad_(step >= 4)
    model[2].p = 0.3 if step < 5 else 0.1
    model[3].train(step != 6)


def test_26_before_step_is_the_way(tmp_path: Path) -> None:
    job = make(before_step=schedule, optimizer=sgd)
    straight = train(job, tmp_path / "run")
    assert straight != train(make(optimizer=sgd), tmp_path / "other")
    for options in ({}, {"steps": (5, 5)}, {"steps": (7, 8)}, {"steps": (2, 4)}):
        assert vt.audit(tmp_path / "run", job, **options).verdict is vt.Verdict.ACCEPTED
    for _ in range(4):
        with vt.Recorder(job, tmp_path / "stops", signer=KEY, resume=True) as run:
            steps = iter(run)
            next(steps).train()
            next(steps).train()
    assert run.digest == straight or Transcript.open(tmp_path / "stops").leaves[-1].state == (
        Transcript.open(tmp_path / "run").leaves[-1].state
    )


def test_26_before_step_must_follow_from_the_number_alone(tmp_path: Path) -> None:
    def once(model: Any, step: int) -> None:
        if step == 4:
            model[2].p = 0.1

    refused(make(before_step=once), tmp_path / "run", r"step 5: .*model\.2\.p \(0\.3, then 0\.1\)")


def test_26_before_step_computes_nothing(tmp_path: Path) -> None:
    def shrink(model: Any, step: int) -> None:
        with torch.no_grad():
            model[0].weight.mul_(0.5)

    refused(make(before_step=shrink), tmp_path / "run", "before_step computes with tensors")
    refused(
        make(before_step=lambda m, s: 1 / 0),
        tmp_path / "run",
        "step 1: before_step raised ZeroDivisionError",
    )


BETWEEN: dict[str, tuple[Callable[[Any], object], str]] = {
    "60_requires_grad": (
        lambda m: m[0].requires_grad_(False),
        r"model\.0\.bias\.requires_grad .* was changed outside"
    ),
    "60_dropout": (lambda m: setattr(m[2], "p", 0.0), r"model\.2\.p .* was changed outside"),
    "data": (lambda m: m[0].weight.data.clamp_(-0.01, 0.01),
        r"model/0\.weight was changed outside"),
    "numpy": (
        lambda m: m[0].weight.detach().numpy().fill(0), r"model/0\.weight was changed outside"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BETWEEN)
def test_60_changes_between_two_steps_are_named(name: str, tmp_path: Path) -> None:
    change, message = BETWEEN[name]

    def changing(report: Any) -> None:
        if report.step == 5:
            change(report.model)

    with pytest.raises(vt.UsageError, match=message):
        train(make(), tmp_path / "run", callbacks=[changing])
    assert Transcript.open(tmp_path / "run").checkpoint_steps == (0, 3)


def test_60_evaluation_between_two_steps_changes_nothing(tmp_path: Path) -> None:
    straight = train(make(), tmp_path / "straight")
    with vt.Recorder(make(), tmp_path / "run", signer=KEY) as run:
        for step in run:
            step.train()
            run.model.eval()
            with torch.no_grad():
                run.model(torch.zeros(2, 8))
    assert run.digest == straight


def test_callbacks_are_told_of_each_step_and_may_not_change_the_model(tmp_path: Path) -> None:
    seen: list[Any] = []
    straight = train(make(), tmp_path / "a", callbacks=[seen.append])
    assert [report.step for report in seen] == list(range(1, 9))
    assert [report.loss for report in seen] == [
        leaf.loss for leaf in Transcript.open(tmp_path / "a").leaves[1:]
    ]
    assert {report.rates for report in seen} == {(0.009999999997671694,)} or len(seen) == 8
    assert train(make(), tmp_path / "b") == straight
    with pytest.raises(vt.UsageError, match=r"model/0\.weight was changed outside"):
        train(make(), tmp_path / "c", callbacks=[lambda r: r.model[0].weight.data.zero_()])


# steps that change the form of the state, or carry something else over


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 2)
        self.build(4)

    def build(self, length: int) -> None:
        angles = torch.outer(torch.arange(length).float(), torch.ones(8))
        self.register_buffer("cos", angles.cos(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > len(self.cos):
            self.build(len(x))
        return self.out(x * self.cos[: len(x)])


def test_j35_a_buffer_that_grows(tmp_path: Path) -> None:
    refused(
        make(model=Rotary),
        tmp_path / "run",
        r"model/cos was float32\[4, 8\] and is float32\[8, 8\]",
    )


class AddsGroups(torch.optim.SGD):
    def __init__(self, model: Any) -> None:
        super().__init__(model.head.parameters(), 0.1, momentum=0.9)
        self.model = model

    def step(self, closure: Any = None) -> Any:
        if int(self.model.seen) == 4:
            self.add_param_group({"params": list(self.model.backbone.parameters()), "lr": 0.01})
        return super().step(closure)


def test_j36_k10_groups_that_grow(tmp_path: Path) -> None:
    job = make(model=lambda: LateDropout(lambda m: None), optimizer=AddsGroups)
    with pytest.warns(OutsideOptimizerWarning):
        refused(job, tmp_path / "run", "group 1 was added in step 4.*before_step")


def test_j10_an_optimiser_in_the_loss(tmp_path: Path) -> None:
    def build() -> nn.Module:
        made = nn.Linear(8, 2)
        made.inner = nn.Linear(2, 1)
        made.opt = torch.optim.Adam(made.inner.parameters(), 1e-2)
        return made

    def inner(model: Any, batch: Any) -> Tensor:
        model.opt.zero_grad()
        model.inner(model(batch[0]).detach()).mean().backward()
        model.opt.step()
        return loss(model, batch)

    job = make(
        model=build, loss=inner, optimizer=lambda m: torch.optim.SGD([m.weight, m.bias], 0.1)
    )
    refused(job, tmp_path / "run", r"step 2: loss steps another optimiser \(Adam\)")


def test_j10_the_jobs_own_optimiser_in_the_loss(tmp_path: Path) -> None:
    kept: list[Any] = []

    def build(model: nn.Module) -> torch.optim.Optimizer:
        kept.append(adamw(model))
        return kept[-1]

    def stepping(model: Any, batch: Any) -> Tensor:
        kept[-1].step()
        return loss(model, batch)

    refused(
        make(loss=stepping, optimizer=build), tmp_path / "run", "loss steps the job's optimiser"
    )


def test_an_optimiser_that_a_step_makes_is_no_hidden_state(tmp_path: Path) -> None:
    def inner(model: Any, batch: Any) -> Tensor:
        delta = torch.zeros_like(batch[0], requires_grad=True)
        attack = torch.optim.SGD([delta], 0.1, momentum=0.9)
        for _ in range(2):
            attack.zero_grad()
            (-F.cross_entropy(model(batch[0] + delta), batch[1])).backward()
            attack.step()
        model.zero_grad()
        return F.cross_entropy(model(batch[0] + delta.detach()), batch[1])

    assert accepted(make(loss=inner), tmp_path / "run")


def test_k11_gradients_outside_of_the_optimiser(tmp_path: Path) -> None:
    """They are cleared at each step, for training and audit alike, and said."""

    def build() -> nn.Module:
        made = nn.Linear(8, 2)
        made.log_t = nn.Parameter(torch.zeros(()))
        return made

    def moved_by_hand(model: Any, batch: Any) -> Tensor:
        if model.log_t.grad is not None:
            with torch.no_grad():
                model.log_t -= 0.1 * model.log_t.grad
        return F.cross_entropy(model(batch[0]) * model.log_t.exp(), batch[1])

    job = make(
        model=build,
        loss=moved_by_hand,
        optimizer=lambda m: torch.optim.SGD([m.weight, m.bias], 0.1),
    )
    with pytest.warns(OutsideOptimizerWarning, match="does not have them|not have them: log_t"):
        assert accepted(job, tmp_path / "run")


# the order of a set is that of addresses


def of_a_set(model: Any) -> torch.optim.Optimizer:
    head = set(model[3].parameters())
    base = list(set(model.parameters()) - head)
    return torch.optim.AdamW([{"params": base}, {"params": list(model[3].parameters())}], 1e-2)


def test_j37_sets_of_parameters(tmp_path: Path) -> None:
    for seed in range(8):
        refused(make(optimizer=of_a_set, seed=seed), tmp_path / "run", "group 0 is that of a set")


def in_the_order_of_a_set() -> nn.Module:
    made = nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)], nn.Linear(8, 2))
    for layer in set(made.modules()) - {made}:
        nn.init.normal_(layer.weight, std=0.2)
    return made


def test_k07_sets_of_modules(tmp_path: Path) -> None:
    for seed in range(4):
        job = make(model=in_the_order_of_a_set, seed=seed)
        refused(job, tmp_path / "run", "built a second time it is not the same")


def test_other_hashes_leave_nothing_behind() -> None:
    before = torch.Tensor.__hash__
    vt.check(make())
    assert torch.Tensor.__hash__ is before
    assert hash(module := nn.Linear(1, 1)) == object.__hash__(module)


# the rehearsal leaves no trace, and refuses nothing that an audit repeats

LATE = """
N = [0]
def loss(m, b):
    N[0] += 1
    return F.cross_entropy(m(b[0]), b[1]) * (0.5 if N[0] > 6 else 1)
"""


def test_the_rehearsal_leaves_no_trace(tmp_path: Path) -> None:
    """Such a job carries something over; but an audit of one interval repeats it from its start."""
    text = dedent(BODY).replace("checkpoint_every=4", "checkpoint_every=100") + LATE
    file = write(tmp_path / "job.py", text)
    digest = train(vt.load_job(file), tmp_path / "run")
    assert train(vt.load_job(file), tmp_path / "other", rehearse=False) == digest
    assert vt.audit(tmp_path / "run", vt.load_job(file)).verdict is vt.Verdict.ACCEPTED


LAZY = """
import importlib
def loss(m, b):
    importlib.import_module("packag" + "ing")
    return F.cross_entropy(m(b[0]), b[1])
"""


def test_a_run_that_rehearsed_is_resumed_by_one_that_did_not(tmp_path: Path) -> None:
    """The header names a package that only steps import."""
    file = write(tmp_path / "job.py", dedent(BODY) + LAZY)
    with vt.Recorder(vt.load_job(file), tmp_path / "run", signer=KEY) as run:
        next(iter(run)).train()
    assert "packaging" in Transcript.open(tmp_path / "run").header.environment
    train(vt.load_job(file), tmp_path / "run", resume=True)
    assert vt.audit(tmp_path / "run", vt.load_job(file)).verdict is vt.Verdict.ACCEPTED


class FromData(nn.Module):
    """Keeps what it has seen first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.scale: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = float(x.sum())
        return self.layer(x)


def test_an_attribute_that_comes_from_the_first_batch(tmp_path: Path) -> None:
    refused(make(model=FromData), tmp_path / "run", r"step 1: .*model\.scale \(")


def test_what_steps_set_is_put_back_between_steps(tmp_path: Path) -> None:
    straight = train(make(model=Harmless), tmp_path / "straight")

    def change(report: Any) -> None:
        report.model.shift_size = 7

    assert train(make(model=Harmless), tmp_path / "run", callbacks=[change]) == straight


class Caching(torch.utils.data.Dataset):
    """Keeps a record with the noise of its first use, as caches do that are filled too late."""

    def __init__(self) -> None:
        self.cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i not in self.cache:
            self.cache[i] = torch.randn(8)
        return self.cache[i], i % 2


def test_a_cache_of_random_records_is_refused(tmp_path: Path) -> None:
    message = r"dataset: .*(draws random numbers when it is first read, and not again|another one)"
    refused(make(dataset=Caching), tmp_path / "run", message)


class Harmless(nn.Module):
    """Sets plain attributes in forward to what every first step sets them to (as Swin does)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.shift_size = 2
        self.last: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.shift_size, self.last = 0, tuple(x.shape)
        return self.layer(x)


def test_attributes_that_every_step_sets_to_one_value(tmp_path: Path) -> None:
    assert accepted(make(model=Harmless), tmp_path / "run")
    with vt.Recorder(make(model=Harmless), tmp_path / "own", signer=KEY) as run:
        for step in run:
            step.train()
            run.model(torch.zeros(3, 8))  # another shape


def test_before_step_may_take_a_block_out(tmp_path: Path) -> None:
    def drop(model: Any, step: int) -> None:
        if step > 2:
            model[2] = nn.Identity()

    assert accepted(make(before_step=drop), tmp_path / "run")


NAMED = """
class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.names = {p: n for n, p in self.named_parameters()}
    def forward(self, m, b):
        assert self.names[self.scale] == "scale"
        return F.cross_entropy(m(b[0]), b[1])
named = Named()
def loss(m, b): return named(m, b)
"""


def test_dictionaries_with_tensors_as_keys(tmp_path: Path) -> None:
    file = write(tmp_path / "job.py", dedent(BODY) + NAMED)
    assert accepted(vt.load_job(file), tmp_path / "run")


def test_large_attributes_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from veritrain.training.attributes import NOT_PLAIN, plain_form

    assert plain_form([[0.5] * 64 for _ in range(60)]) is not NOT_PLAIN
    assert plain_form([[0.5] * 64 for _ in range(4000)]) is NOT_PLAIN
    assert plain_form({i: [i] * 4000 for i in range(4000)}) is NOT_PLAIN


ONCE = """
LIBRARY = torch.library.Library("floor_test", "DEF")
"""


def test_a_job_that_can_be_executed_once_only_is_told_before_the_run(tmp_path: Path) -> None:
    file = write(tmp_path / "job.py", dedent(BODY) + ONCE)
    job = vt.load_job(file)
    refused(job, tmp_path / "run", "executed a second time, as audits do")


# errors, stops and starts


@pytest.mark.parametrize("optimizer", [sgd, adamw, lambda m: torch.optim.Adam(m.parameters())])
def test_x_nan3_a_nan_is_named_with_step_and_tensor(optimizer: Any, tmp_path: Path) -> None:
    def at_zero(model: Any, batch: Any) -> Tensor:
        out = model(batch[0])
        model.n += 1
        return torch.sqrt((out * (model.n != 3)).pow(2).sum(1)).mean()

    def build() -> nn.Module:
        made = nn.Linear(8, 2)
        made.register_buffer("n", torch.zeros(()))
        return made

    job = make(model=build, loss=at_zero, optimizer=optimizer)
    refused(job, tmp_path / "run", r"^step 3: (model|optimizer)/\S+ holds a NaN(\n|$)")


def test_a_failed_start_leaves_its_folder_free(tmp_path: Path) -> None:
    bad = make(loss=lambda m, b: loss(m, b) * float("nan"))
    for options in ({}, {"rehearse": False}, {"rehearse": False, "resume": True}):
        with pytest.raises(vt.NumericsError):
            train(bad, tmp_path / "run", **options)
    straight = train(make(), tmp_path / "straight")
    assert train(make(), tmp_path / "run") == straight
    with pytest.raises(vt.NumericsError):
        train(bad, tmp_path / "other", rehearse=False)
    assert train(make(), tmp_path / "other", resume=True) == straight
    with pytest.raises(vt.UsageError, match="holds files already"):
        train(make(), tmp_path / "run")


def test_a_refused_job_leaves_no_folder(tmp_path: Path) -> None:
    refused(make(model=Rotary), tmp_path / "a" / "run", "model/cos was")
    assert not (tmp_path / "a").exists()


def test_errors_note_what_is_committed_and_how_to_go_on(tmp_path: Path) -> None:
    def fail(report: Any) -> None:
        if report.step == 5:
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom") as caught:
        train(make(), tmp_path / "run", callbacks=[fail])
    assert "has the run up to step 5; go on with resume=True" in caught.value.__notes__[-1]


def test_nothing_but_a_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(vt.VeritrainError):
            train(make(), tmp_path / "run", resume=resume)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_arguments_are_checked_before_the_data_set_is_read(tmp_path: Path) -> None:
    read: list[int] = []

    def slow() -> TensorDataset:
        read.append(1)
        return data()

    train(make(), tmp_path / "run")
    job = make(dataset=slow)
    with pytest.raises(vt.UsageError, match="holds files already"):
        train(job, tmp_path / "run")
    with pytest.raises(vt.UsageError, match="load the key the run began with"):
        vt.train(job, tmp_path / "run", signer=vt.Signer.generate(), resume=True)
    with pytest.raises(vt.UsageError, match="cannot be written"):
        train(job, Path("/proc/nowhere/run"))
    with pytest.raises(vt.UsageError, match="device"):
        train(job, tmp_path / "new", device="tpu")
    with pytest.raises(vt.UsageError, match="trusted_key"):
        vt.audit(tmp_path / "run", job, trusted_key="12")
    report = vt.audit(tmp_path / "run", job, trusted_key="0" * 32)
    assert report.verdict is vt.Verdict.REJECTED
    assert read == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [0, 1])
def test_63_sigterm_is_as_ctrl_c(number: signal.Signals, workers: int, tmp_path: Path) -> None:
    text = dedent(BODY).replace("steps=8", "steps=100000").replace("every=4", "every=50000")
    write(tmp_path / "job.py", text + PAUSED)
    command = [
        sys.executable, "-m", "veritrain", "train", str(tmp_path / "job.py"), "--out",
        str(tmp_path / "run"), "--key", str(tmp_path / "key"), "--processes", str(workers),
    ]  # fmt: skip
    KEY.save(tmp_path / "key")
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    steps = (line for line in process.stderr if "step of the job" in line)
    for _ in range(6):  # the rehearsal has three
        next(steps)
    os.killpg(process.pid, number)  # batch systems signal the workers too
    said = process.stderr.read()
    assert process.wait() == 128 + number, said
    recorded = re.search(r"recorded up to step (\d+); go on with: veritrain train .*--resume", said)
    assert recorded, said
    assert len(Transcript.open(tmp_path / "run").leaves) - 1 == int(recorded[1]) >= 1


PAUSED = """
import sys
def loss(m, b):
    print("a step of the job", file=sys.stderr, flush=True)
    return F.cross_entropy(m(b[0]), b[1])
"""


def test_a_full_disk_says_how_to_go_on(tmp_path: Path) -> None:
    write(tmp_path / "job.py", dedent(BODY) + PAUSED)
    KEY.save(tmp_path / "key")
    out = tmp_path / "run"
    script = """
        import errno, sys
        from veritrain.transcript import store
        from veritrain.cli import main
        write = store._write_durably
        def full(path, parts):
            if "000000000008" in str(path) or any(store_step(p) for p in path.parent.glob("*4*")):
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, parts)
        def store_step(path):
            return path.name.startswith("000000000004") and "signatures" in str(path)
        store._write_durably = full
        sys.exit(main(sys.argv[1:]))
    """
    command = [
        sys.executable, "-c", dedent(script), "train", str(tmp_path / "job.py"), "--out", str(out),
        "--key", str(tmp_path / "key"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(
        r"No space left on device, recorded up to step 4; go on with: .*--resume", last
    )
