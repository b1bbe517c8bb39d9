"""Run by test_schedule.py on each machine: digests of rates, as computed and as rounded, as JSON.

A composed scheduler remembers rates of its parts: its whole state is digested after each step.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LinearLR, LRScheduler, SequentialLR

from veritrain.job.schedule import round_rate, round_records, rounded_rates

STEPS = 300


def digest(values: Iterable[object]) -> str:
    return hashlib.sha256(repr(list(values)).encode()).hexdigest()


def decay(optimizer: Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda t: 0.97 ** (t * 0.153))


def sequence(optimizer: Optimizer) -> LRScheduler:
    return SequentialLR(optimizer, [LinearLR(optimizer), decay(optimizer)], [5])


def chain(optimizer: Optimizer) -> LRScheduler:
    return ChainedScheduler([decay(optimizer), LinearLR(optimizer)], optimizer)


def states(compose: Callable[[Optimizer], LRScheduler]) -> list[str]:
    """What a composed scheduler remembers after each step, where its rates are rounded."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with rounded_rates(optimizer):
        scheduler = compose(optimizer)
    round_records(scheduler)
    seen: list[str] = []
    for _ in range(STEPS):
        with rounded_rates(optimizer):
            scheduler.step()
        round_records(scheduler)
        seen.append(str(scheduler.state_dict()))
    return seen


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    powers = [(0.5 + i / 400001) ** (i % 1000) for i in range(1, 100000)]
    found = {
        "powers": digest(powers),
        "rounded powers": digest(map(round_rate, powers)),
        "decay": digest(0.97 ** (t * 0.153) for t in range(STEPS)),
        "sequence": digest(states(sequence)),
        "chain": digest(states(chain)),
    }
    print(json.dumps(found))
