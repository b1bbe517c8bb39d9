"""Steps as lines of a CSV file: `step`, `loss`, learning rates, seconds."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from veritrain.errors import UsageError
from veritrain.integrations.scalars import scalars

if TYPE_CHECKING:
    from veritrain.training.callbacks import StepReport

_FIRST_COLUMNS = ["step", "loss"]


class CsvWriter:
    """Writes a line for each step, at once.

    A run that is resumed goes on in the same file: lines of the step that it begins with and of
    later ones, which an interrupted process wrote, are replaced. Numbers are written with all their
    digits.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Nothing is written before the first step.

        Raises:
            UsageError: there is a file already, and it is not one of this writer.
        """
        self._path = Path(path)
        self._file: TextIO | None = None
        self._kept = _lines_of(self._path)

    def __call__(self, report: StepReport) -> None:
        """Write the line of one step.

        Raises:
            OSError: the file cannot be written.
        """
        values: dict[str, Any] = {"step": report.step, **scalars(report)}
        if self._file is None:
            self._file = self._begun(list(values), report.step)
        csv.writer(self._file).writerow(values.values())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _begun(self, columns: list[str], first: int) -> TextIO:
        """The file with the lines of the steps before `first`."""
        kept = [line for line in self._kept[1:] if int(line[0]) < first]
        if kept and self._kept[0] != columns:
            raise UsageError(
                f"{self._path}: has the columns {','.join(self._kept[0])}, and this run "
                f"{','.join(columns)}; choose another file"
            )
        file = self._path.open("w", newline="", encoding="utf-8")
        csv.writer(file).writerows([columns, *kept])
        return file


def _lines_of(path: Path) -> list[list[str]]:
    """The cells of a file that an earlier writer made; none where there is no file.

    Raises:
        UsageError: it is another file.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be gone on with: {error}") from None
    if not lines or lines[0][:2] != _FIRST_COLUMNS:
        raise UsageError(f"{path}: is there already, and no file of this writer; choose another")
    # A line that a crash cut off is left out.
    whole = [line for line in lines[1:] if len(line) == len(lines[0]) and line[0].isdecimal()]
    return [lines[0], *whole]
