"""Steps in a run of Weights & Biases: wandb.ai, by `wandb.init` and `Run.log`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from veritrain.integrations.scalars import library, scalars

if TYPE_CHECKING:
    from veritrain.training.callbacks import StepReport


class WandbWriter:
    """Logs to a run of its own.

    Weights & Biases takes steps in rising order only: to go on with a run that was interrupted,
    give its `id` with `resume="allow"`; what it has of a step already stays.
    """

    def __init__(self, **settings: Any) -> None:
        """Start the run.

        Args:
            settings: of `wandb.init`: `project`, `name`, `mode="offline"` and others.

        Raises:
            UsageError: wandb is not installed.
        """
        self._run: Any = library("wandb", "wandb").init(**settings)

    def __call__(self, report: StepReport) -> None:
        """Log the numbers of one step."""
        self._run.log(scalars(report), step=report.step, commit=True)

    def close(self) -> None:
        """Send what is left, and end the run."""
        self._run.finish()
