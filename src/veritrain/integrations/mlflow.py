"""Steps as metrics of an MLflow run: mlflow.org, by `mlflow.log_metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from veritrain.integrations.scalars import library, scalars

if TYPE_CHECKING:
    from veritrain.training.callbacks import StepReport


class MlflowWriter:
    """Logs to the MLflow run that is active; where none is, to one of its own.

    Where runs are kept, and in which experiment, is MLflow's to know: `mlflow.set_tracking_uri`,
    `mlflow.set_experiment`, or its variables.
    """

    def __init__(self, **settings: Any) -> None:
        """Start the MLflow run, if none is active.

        Args:
            settings: of `mlflow.start_run`; `run_id` goes on with an earlier one.

        Raises:
            UsageError: MLflow is not installed.
        """
        self._mlflow = library("mlflow", "mlflow")
        self._is_own = bool(settings) or self._mlflow.active_run() is None
        find = self._mlflow.start_run if self._is_own else self._mlflow.active_run
        self._run_id: str = find(**settings).info.run_id

    def __call__(self, report: StepReport) -> None:
        """Log the metrics of one step."""
        self._mlflow.log_metrics(scalars(report), step=report.step, run_id=self._run_id)

    def close(self) -> None:
        """End the MLflow run, if it was started here."""
        if self._is_own:
            self._mlflow.end_run()
            self._is_own = False
