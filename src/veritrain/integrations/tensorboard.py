"""Steps as scalars in TensorBoard: github.com/tensorflow/tensorboard, by PyTorch's
`SummaryWriter`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from veritrain.integrations.scalars import library, scalars

if TYPE_CHECKING:
    from veritrain.training.callbacks import StepReport


class TensorBoardWriter:
    """Writes events to a folder, for `tensorboard --logdir FOLDER`.

    A run that is resumed goes on in the same folder: TensorBoard is told to forget what an
    interrupted process wrote of the step that it begins with, and of later ones.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Nothing is written before the first step.

        Raises:
            UsageError: TensorBoard is not installed.
        """
        self._make = library("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._folder = os.fspath(folder)
        self._writer: Any = None

    def __call__(self, report: StepReport) -> None:
        """Write the scalars of one step."""
        if self._writer is None:
            self._writer = self._make(self._folder, purge_step=report.step)
        for name, value in scalars(report).items():
            self._writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self._writer is not None:
            self._writer.close()
