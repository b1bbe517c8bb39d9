"""Ranks for tests: as threads of this process, where only bytes matter, and as real processes.

`as_ranks(n, act)` calls `act` with each of n connected `Ranks`, in n threads, and gives back what
each one returned or raised. `start(n, ...)` starts `veritrain train` as n processes that meet on
loopback, without torchrun; `torchrun(...)` starts it as users do.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch.distributed import HashStore

from tests import machines
from veritrain.training.distributed.ranks import Place, Ranks

T = TypeVar("T")
PLAIN = machines.Machine(name="as it is, 1 thread", threads=1)


def as_ranks(
    size: int, act: Callable[[Ranks], T], deadline: float = 30.0
) -> list[T | BaseException]:
    """What `act` returned or raised on each rank."""
    store = HashStore()
    results: list[T | BaseException] = [RuntimeError("did not end")] * size

    def work(rank: int) -> None:
        place = Place(rank=rank, size=size, local_rank=rank, local_size=size)
        try:
            with Ranks(place, store, deadline, torch.device("cpu")) as ranks:
                results[rank] = act(ranks)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_module(
    size: int, module: str, arguments: Sequence[object], on: Sequence[machines.Machine]
) -> list[subprocess.Popen[str]]:
    """Start `python -m module arguments` as ranks, one after another on these machines."""
    port = str(free_port())
    processes: list[subprocess.Popen[str]] = []
    for rank in range(size):
        machine = on[rank % len(on)]
        variables = {
            "RANK": f"{rank}", "WORLD_SIZE": f"{size}", "LOCAL_RANK": f"{rank}",
            "LOCAL_WORLD_SIZE": f"{size}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        machine = replace(machine, environment={**machine.environment, **variables})
        processes.append(machines.start(machine, module, *map(str, arguments)))
    return processes


def start(
    size: int,
    *arguments: object,
    on: Sequence[machines.Machine] = (PLAIN,),
    module: str = "veritrain",
) -> list[subprocess.Popen[str]]:
    """Start `veritrain train ARGUMENTS` as ranks."""
    return start_module(size, module, ["train", *arguments], on)


def torchrun(arguments: Sequence[object], *options: str) -> subprocess.Popen[str]:
    """Start `torchrun OPTIONS -m veritrain train ARGUMENTS`."""
    words = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "veritrain", "train"]
    return subprocess.Popen(
        [*words, *map(str, arguments)],
        env={**machines.environment(PLAIN), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_commit(run: Path, step: int, *processes: subprocess.Popen[str]) -> None:
    """Wait until a run has committed to a step."""
    path = run / "signatures" / f"{step:012d}"
    end = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not appear"
        assert all(p.poll() is None for p in processes), processes[0].communicate()[1]
        time.sleep(0.02)


def ended(processes: Sequence[subprocess.Popen[str]], timeout: float = 300) -> list[str]:
    """Wait for processes; what each one wrote to stderr."""
    try:
        return [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.kill(process.pid, 9)
