"""One replayable step: a pure function of (state, batch, seed) to (state, loss).

A `Program` is a job brought to life: model, optimiser and scheduler with their initial values.
`run_step` advances it by one step. Everything that a step computes follows the job's numerics;
random numbers are keyed by (seed, purpose, step, call), so that a step does not depend on which
steps this process ran before.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import (
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)
from torch.utils._pytree import tree_map_only

from veritrain.errors import JobError, NumericsError, UsageError
from veritrain.job.job import Job, users_code
from veritrain.job.schedule import round_group, round_records, rounded_rates
from veritrain.job.shards import ALONE, BlockSum, ModelBefore, Reduction, Sums, mean, parts
from veritrain.numerics import CPU, Profile, resolve
from veritrain.numerics.keys.generators import calls_of_shard
from veritrain.numerics.platform.operator_mode import OperatorMode
from veritrain.numerics.platform.overlap import overlaps_itself
from veritrain.runtime.progress import Stage, tell
from veritrain.transcript import tensors

if TYPE_CHECKING:
    from veritrain.job.data import Batch
    from veritrain.numerics.logged.rounding import Rounding
    from veritrain.numerics.profile import Scope


@dataclass(frozen=True, kw_only=True)
class Program:
    """Model, optimiser and scheduler of a job. Frozen means which objects; their tensors change.

    `device` is where they lie and steps are computed; under `exact` it changes no bit.
    """

    job: Job
    profile: Profile
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    device: torch.device = CPU

    @classmethod
    def build(cls, job: Job, profile: Profile | None = None, device: str = "cpu") -> Program:
        """Build everything anew, with random numbers keyed by (seed, "init").

        The model is built on the CPU and then moved.

        Args:
            job: what to build.
            profile: computes it; None for the job's own numerics.
            device: where: "cpu", "cuda" or "cuda:N".

        Raises:
            JobError: a part of the job returned something else than it should.
            UsageError: there is no such device here.
        """
        place = find_device(device)
        tell(Stage(doing="building the model"))
        profile = profile if profile is not None else resolve(job.numerics)
        with profile.active(seed=job.seed, purpose="init", step=0, device=place):
            with users_code("model"), CPU:
                model = job.model()
            _require_type("model", model, nn.Module)
            _require_initialised(model)
            _require_plain_tensors(model)
            if place != CPU:
                model.to(place)
            model.train()
            with users_code("optimizer"):
                optimizer = job.optimizer(model)
            _require_type("optimizer", optimizer, Optimizer)
            _require_plain_step(optimizer)
            profile.fix_flags(optimizer)
            for group in optimizer.param_groups:
                round_group(group)
            scheduler = _build_scheduler(job, optimizer)
            program = cls(
                job=job, profile=profile, model=model, optimizer=optimizer, scheduler=scheduler,
                device=place,
            )  # fmt: skip
            program.round_state()
        return program

    def recording(self) -> Rounding | None:
        """The trainer's rounding decisions for one step, where the numerics have such."""
        return self.profile.recording(self.job.thresholds)

    def following(self, log: bytes | None) -> Rounding | None:
        """The rounding decisions of a step's log.

        Raises:
            TranscriptError: there is a log and should be none, or the other way round.
        """
        return self.profile.following(self.job.thresholds, log)

    def round_state(self) -> None:
        """Bring parameters, buffers and the optimiser's tensors, but for its counters, to the
        numbers of the numerics."""
        states = (state for state in self.optimizer.state.values() if isinstance(state, dict))
        state = (value for values in states for name, value in values.items() if name != "step")
        every = (*self.model.parameters(), *self.model.buffers(), *state)
        self.profile.round_state(tensor for tensor in every if isinstance(tensor, Tensor))

    def begin_step(self, step: int) -> None:
        """Set the flags that a step starts with: training mode, then what the job's `before_step`
        sets.

        Raises:
            JobError: `before_step` raised, or computed with tensors.
        """
        self.model.train()
        if self.job.before_step is not None:
            with users_code(f"step {step}: before_step"), _FlagsOnly():
                self.job.before_step(self.model, step)

    @property
    def outside(self) -> list[str]:
        """Names of the parameters that have a gradient and that the optimiser does not have."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and id(parameter) not in held
        ]


def find_device(name: str) -> torch.device:
    """The device called `name`: "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: none of these, or not on this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is unknown; choose cpu, cuda or cuda:N")
    if device.type == "cpu":
        return CPU
    device = torch.device("cuda", device.index or 0)
    if device.index >= torch.cuda.device_count():
        raise UsageError(f"device {name!r}: PyTorch sees {torch.cuda.device_count()} GPUs here")
    return device


def run_step(
    program: Program,
    step: int,
    batch: Batch,
    rounding: Rounding | None = None,
    reduction: Reduction = ALONE,
    after_shard: Callable[[BlockSum], None] | None = None,
) -> float:
    """Advance the program from state step - 1 to state `step`.

    Args:
        program: in state step - 1.
        step: 1 or more.
        batch: `accumulate` micro-batches for each shard that this process computes, each collated
            by itself.
        rounding: decides where numerics have a rounding log; None for `program.recording()`.
        reduction: which shards this process computes, where the job has more than one.
        after_shard: called with the result of each shard that was computed here, before it is
            added.

    Returns:
        The mean of the micro-batches' losses.

    Raises:
        NumericsError: the loss is not a finite scalar, or an operator has no rule.
        JobError: the job's own code raised; names the step and the part. A shard left what no mean
            can be made of; names it.
    """
    job = program.job
    rounding = rounding if rounding is not None else program.recording()
    with program.profile.active(
        seed=job.seed, purpose="step", step=step, device=program.device, rounding=rounding
    ) as scope:
        if job.shards == 1:
            program.begin_step(step)
            loss = _forward_and_backward(program, step, batch)
            _require_finite(loss, step)
        else:
            mine, before = reduction.mine(job.shards), ModelBefore(program.model)
            with Sums(job.shards) as sums:
                for shard, micro_batches in zip(mine, parts(batch, len(mine)), strict=True):
                    sums.make_room()
                    result = _shard(program, scope, step, shard, micro_batches, before)
                    if after_shard is not None:
                        after_shard(result)
                    sums.push(result)
                own = sums.finish()
            loss = _meet(program, scope, step, reduction.total(own, job.shards), before)
        _update(program, step)
    return loss


def run_shard(program: Program, step: int, shard: int, batch: Batch) -> BlockSum:
    """Compute one shard of a step, and leave the program's state as it was.

    Args:
        program: in state step - 1.
        step: 1 or more.
        shard: from 0.
        batch: the shard's own micro-batches.

    Raises:
        NumericsError, JobError: as `run_step`.
    """
    with program.profile.active(
        seed=program.job.seed, purpose="step", step=step, device=program.device
    ) as scope:
        return _shard(program, scope, step, shard, batch, ModelBefore(program.model))


def finish_step(program: Program, step: int, total: BlockSum) -> float:
    """Advance the program to state `step` by the sum of all its shards, which it takes apart.

    Returns:
        The mean of the shards' losses.

    Raises:
        NumericsError, JobError: as `run_step`.
    """
    with program.profile.active(
        seed=program.job.seed, purpose="step", step=step, device=program.device
    ) as scope:
        # The optimiser sees the flags of the step, which no shard has set in this process perhaps.
        scope.rekey(seed=program.job.seed, purpose="step", step=step, calls=calls_of_shard(None))
        program.begin_step(step)
        loss = _meet(program, scope, step, total, ModelBefore(program.model))
        _update(program, step)
    return loss


def _shard(
    program: Program, scope: Scope, step: int, shard: int, batch: Sequence[Any], before: ModelBefore
) -> BlockSum:
    """One shard, from the flags and the state that every shard of the step starts with."""
    seed = program.job.seed
    scope.rekey(seed=seed, purpose="step", step=step, calls=calls_of_shard(None))
    program.begin_step(step)
    scope.rekey(seed=seed, purpose="step", step=step, calls=calls_of_shard(shard))
    loss = _forward_and_backward(program, step, batch)
    _require_finite(loss, step)
    return before.taken(shard, loss, step)


def _meet(program: Program, scope: Scope, step: int, total: BlockSum, before: ModelBefore) -> float:
    """Give the program the mean of all shards, and the random numbers of what the step does
    once."""
    scope.rekey(seed=program.job.seed, purpose="step", step=step, calls=calls_of_shard(None))
    _clear_gradients(program)
    loss = mean(total, before)
    _require_finite(loss, step)
    return loss


def _forward_and_backward(program: Program, step: int, batch: Sequence[Any]) -> float:
    """Gradients of the mean over the micro-batches, and that mean."""
    job, total = program.job, 0.0
    _clear_gradients(program)
    with _no_kept_optimizers(program.optimizer, step):
        for micro in batch:
            with users_code(f"step {step}: loss"):
                loss = job.loss(program.model, _moved(micro, program.device))
            _require_scalar(loss, step)
            part = loss / job.accumulate if job.accumulate > 1 else loss
            total += float(part.detach().item())
            with users_code(f"step {step}: backward"):
                part.backward()
    return total


def _clear_gradients(program: Program) -> None:
    program.optimizer.zero_grad(set_to_none=True)
    program.model.zero_grad(set_to_none=True)  # gradients that the optimiser leaves alone too


def _update(program: Program, step: int) -> None:
    """What a step does once: clipping, optimiser, scheduler, and the numbers of the numerics."""
    if program.job.clip_norm is not None:
        parameters = [p for group in program.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, program.job.clip_norm, foreach=False)
    with (
        users_code(f"step {step}: optimizer.step"),
        program.profile.stepping(program.optimizer),
    ):
        program.optimizer.step()
    if program.scheduler is not None:
        with users_code(f"step {step}: scheduler.step"), rounded_rates(program.optimizer):
            program.scheduler.step()
        round_records(program.scheduler)
    program.round_state()


class _FlagsOnly(OperatorMode):
    """Refuses every operator: a job's `before_step` sets flags, and computes nothing."""

    def operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        """See `OperatorMode`."""
        raise JobError(
            f"before_step computes with tensors ({func}): it may set flags and plain attributes"
            " only, from the number of the step"
        )


@contextmanager
def _no_kept_optimizers(own: Optimizer, step: int) -> Generator[None]:
    """Within it, the job's loss runs. It may take steps with optimisers that it makes itself.

    Raises:
        JobError: it steps the job's own optimiser, or one that carries something from an earlier
            step.
    """
    begun: set[int] = set()

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        name = type(optimizer).__name__
        if optimizer is own:
            raise JobError(
                f"step {step}: loss steps the job's optimiser; the step itself does that"
            )
        if optimizer.state and id(optimizer) not in begun:
            raise JobError(
                f"step {step}: loss steps another optimiser ({name}) whose state comes from an"
                " earlier step and is not part of the run's state: use one optimiser with several"
                " parameter groups, or make the inner one anew in each step"
            )
        begun.add(id(optimizer))

    handle = register_optimizer_step_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def _moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`."""
    if device.type == "cpu":
        return batch
    return tree_map_only(Tensor, lambda x: x.to(device), batch)


def _build_scheduler(job: Job, optimizer: Optimizer) -> LRScheduler | None:
    if job.scheduler is None:
        return None
    with users_code("scheduler"), rounded_rates(optimizer):
        scheduler = job.scheduler(optimizer)
    _require_type("scheduler", scheduler, LRScheduler)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise JobError(
            "scheduler: ReduceLROnPlateau follows a metric that is not part of a step; choose a "
            "schedule over steps"
        )
    round_records(scheduler)
    return scheduler


def _require_type(field: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise JobError(f"{field}: must return a {kind.__name__}, got {type(value).__name__}")


def _require_initialised(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise JobError(f"model: parameter {name} is lazy; give its shape when it is built")


def _require_plain_tensors(model: nn.Module) -> None:
    """Refuse tensors that cannot be written down, or that hold one place of memory twice: they
    cannot be written to."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        try:
            # Nested tensors answer by operators, which have no rules.
            with _disable_current_modes():
                tensors.require_plain(tensor)
        except UsageError as error:
            raise JobError(f"model: {name}: {error}") from None
        if overlaps_itself(tensor):
            raise JobError(
                f"model: {name} overlaps itself in memory (made by expand, perhaps); "
                "register a .clone() of it"
            )


def _require_plain_step(optimizer: Optimizer) -> None:
    parameters = inspect.signature(optimizer.step).parameters.values()
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if needed:
        raise JobError(
            f"optimizer: {type(optimizer).__name__}.step() needs {', '.join(needed)}; a step "
            "computes the loss once, so choose an optimiser whose step() takes no arguments"
        )


def _require_scalar(loss: object, step: int) -> None:
    if not isinstance(loss, Tensor):
        raise NumericsError(
            f"step {step}: loss must return a scalar tensor, got {type(loss).__name__}"
        )
    if loss.dim() != 0 or not loss.is_floating_point():
        raise NumericsError(
            f"step {step}: loss must return a floating-point tensor of shape (), "
            f"got {loss.dtype} of shape {tuple(loss.shape)}"
        )
    if not loss.requires_grad:
        raise NumericsError(f"step {step}: the loss does not depend on any parameter")


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise NumericsError(f"step {step}: the loss is {loss}")
