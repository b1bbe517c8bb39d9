"""Run as a rank of `veritrain train`: rank 1 flips one bit of its state after step 3, as broken
memory does.

python -m tests.training.odd_rank train job.py --out RUN ...
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from veritrain import cli
from veritrain.training.distributed import together

_run_step = together.run_step


def _flipping(program: Any, step: int, *args: Any, **kwargs: Any) -> float:
    loss = _run_step(program, step, *args, **kwargs)
    if step == 3 and os.environ.get("ODD_RANK") == "1":
        with torch.no_grad():
            weight = dict(program.model.named_parameters())["2.weight"]
            weight.view(-1).view(torch.int32)[5] ^= 1
    return loss


if __name__ == "__main__":
    # The command takes RANK out of the environment, and starts anew for a fixed hash seed.
    os.environ.setdefault("ODD_RANK", os.environ["RANK"])
    together.run_step = _flipping
    sys.exit(cli.main())
