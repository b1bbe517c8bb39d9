"""One command of the command line in a process of its own, honest or by a program that cheats.

`python -m tests.service.disputants CHEAT WORDS...` is that process. A cheat attacks at the
boundary: the job has the honest file's digest and does something else, so the command's own checks
    see nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import forks
from veritrain.adversaries import trainers

ROOT = Path(__file__).resolve().parents[2]

# A party replays from the checkpoint before: the disputed step is the first that its program does.
CHEATS: dict[str, Callable[[Any], Any]] = {
    "honest": lambda job: job,
    "rate": lambda job: trainers.wrong_rate(job, 1, 2.0),
    "loss": lambda job: trainers.flatter_loss(job, 0.5),
}


class Command:
    """A running command; its output goes to files."""

    def __init__(self, folder: Path, name: str, words: list[object], cheat: str = "honest") -> None:
        self._out = folder / f"{name}.out"
        self._err = folder / f"{name}.err"
        self.process = forks.start(
            ["-m", "tests.service.disputants", cheat, *map(str, words)],
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT / "src")},
            out=self._out,
            err=self._err,
        )

    @property
    def text(self) -> str:
        return self._out.read_text()

    @property
    def problems(self) -> str:
        return self._err.read_text()

    def objects(self) -> list[Any]:
        """What was printed with --json so far."""
        found, text, decoder = [], self.text, json.JSONDecoder()
        while text.strip():
            try:
                value, end = decoder.raw_decode(text.lstrip())
            except ValueError:
                break
            found.append(value)
            text = text.lstrip()[end:]
        return found

    def url(self) -> str:
        """Its address, once it is ready."""
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            if self.objects():
                return self.objects()[0]["url"]
            time.sleep(0.05)
        raise AssertionError(self.problems)

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(120)

    def kill(self) -> None:
        """End it without a warning."""
        self.process.kill()


def main() -> int:
    import veritrain.job.load
    from veritrain.cli import main

    honest, cheat = veritrain.job.load.load_job, CHEATS[sys.argv[1]]
    veritrain.job.load.load_job = lambda path: cheat(honest(path))
    return main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
