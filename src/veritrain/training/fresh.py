"""What a program that was just built has, and a program must still have after each of its steps.

An audit builds a program anew, puts a stored state into it and goes on from there. So after any
step the state must fit into a program that was just built, and flags and plain attributes must be
as in one that begins the same step. What is not is refused by name, when it happens.
"""

from __future__ import annotations

from collections.abc import Sequence

from veritrain.errors import JobError
from veritrain.job.shards import BlockSum
from veritrain.job.state import StateForm
from veritrain.job.step import Program
from veritrain.training.attributes import Attributes, Change

_SHOWN = 3  # attributes that a message names


class Fresh:
    """Notes a program when it was built; `require_kept` compares.

    Args:
        program: just built, with no step done.
        set_by_steps: attributes that every step sets to these values, as a rehearsal has found;
            None for those that the first step here sets.

    Raises:
        JobError: as `capture`.
    """

    def __init__(self, program: Program, set_by_steps: Attributes | None = None) -> None:
        self._program = program
        self._form = StateForm.of(program)
        self._built = Attributes.of(program)
        self._set_by_steps = set_by_steps
        self._after_first: tuple[int, Attributes] | None = None  # shard of a step, here

    def require_kept(self, step: int) -> Attributes:
        """Check the program after `step`.

        Returns:
            Its attributes.

        Raises:
            JobError: as `require_form` and `require_attributes`.
        """
        self.require_form(step)
        return self.require_attributes(step)

    def is_set_by_steps(self, name: str) -> bool:
        """Whether every step sets the attribute of this name."""
        return self._set_by_steps is not None and name in self._set_by_steps

    def set_in(self, step: int) -> Attributes:
        """What `step`, the program's first, has set: other values than it began with."""
        now = Attributes.of(self._program)
        return self._at(step, now).changed(now)

    def require_form(self, step: int) -> None:
        """Check the form of the state after `step`.

        Raises:
            JobError: names the tensor or group that a program which was just built would not have.
        """
        self._form.require_kept(StateForm.of(self._program), step)

    def require_attributes(self, step: int) -> Attributes:
        """Check flags and plain attributes after `step`.

        Returns:
            They.

        Raises:
            JobError: names those that are not as in a program that was just built.
        """
        program = self._program
        now = Attributes.of(program)
        begun = self._at(step, now)
        if self._set_by_steps is None:
            self._set_by_steps = begun.changed(now)
        # What every step sets to one value (a cached shape) is set in an audit's first step too.
        changes = begun.updated(self._set_by_steps).changes(now)
        if not changes:
            return now
        remedy = (
            "before_step must set it at every step, from the number of the step alone"
            if program.job.before_step is not None
            else (
                "set it by the job's before_step(model, step) from the number of the step, keep it"
                " in a buffer (or in the state of an optimiser), or, if nothing reads it, in a"
                " local variable"
            )
        )
        raise JobError(
            f"step {step}: not as when it was built: {_listed(changes)}. An attribute is no state,"
            f" and an audit builds the model anew; {remedy}"
        )

    def after_shard(self, result: BlockSum) -> None:
        """Check flags and plain attributes after a shard of a step: for `run_step`.

        Processes that share the shards out begin with other ones, and each begins with what the one
        before it left. So every shard has to leave what the first one left.

        Raises:
            JobError: names those that are others.
        """
        shard, now = result.shards.start, Attributes.of(self._program)
        if self._after_first is None or shard <= self._after_first[0]:  # another step begins
            self._after_first = (shard, now)
            return
        first, left = self._after_first
        if changes := left.changes(now):
            raise JobError(
                f"shards: shard {shard} does not leave what shard {first} left: "
                f"{_listed(changes)}. An attribute is no state, and shards may be computed by "
                "different processes; keep it in a local variable, or set it by "
                "before_step(model, step), which is called before each shard"
            )

    def _at(self, step: int, now: Attributes) -> Attributes:
        """The attributes of a program that was just built and begins `step`."""
        program = self._program
        if program.job.before_step is None:
            return self._built
        self._built.put_back(program)
        with program.profile.active(
            seed=program.job.seed, purpose="step", step=step, device=program.device
        ):
            program.begin_step(step)
        begun = Attributes.of(program)
        now.put_back(program)
        return begun


def _listed(changes: Sequence[Change]) -> str:
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return ", ".join(map(str, changes[:_SHOWN])) + more
