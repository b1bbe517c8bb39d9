"""The sum over ranks beside gloo's all-reduce, and a step of two ranks beside one process.

The kernel counts the bytes that a rank sends, on all its TCP connections, for both alike. gloo's
all-reduce adds float32 in an order of its own; the sum over ranks adds by the tree of a step in
shards, to the same bits for any number of ranks.

python -m benchmarks.distributed sum RANK N PORT PARAMETERS    one rank of the first
python -m benchmarks.distributed step RANK N PORT              one rank of the second
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import nn
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous

from benchmarks.measure import interleaved, milliseconds, ratio
from benchmarks.models import WORKLOADS
from veritrain.job.data import Batches
from veritrain.job.shards import ALONE, BlockSum, Reduction
from veritrain.job.step import Program, run_step
from veritrain.training.distributed.ranks import Place, Ranks
from veritrain.training.distributed.reduction import RankReduction

SIZES = (1_000_000, 8_000_000, 32_000_000, 124_000_000)  # parameters
RANKS = (2, 4)
# Parameters of the tensors, in turn: two layers of a transformer with their biases.
_TENSORS = (589_824, 768, 2_359_296, 3_072)
_RUNS = 7
_STEPS = 9
_ACKNOWLEDGED = slice(120, 128)  # tcpi_bytes_acked in Linux's struct tcp_info

Row = dict[str, Any]


def distributed() -> list[Row]:
    """Time and bytes of a sum over ranks, by size."""
    return [_row(size, count) for size in SIZES for count in RANKS]


def distributed_step() -> list[Row]:
    """A step in two shards: two ranks with a thread each, beside one process with two threads."""
    alone = _ranks("step", 1, threads=2)[0]
    two = _ranks("step", 2, threads=1)[0]
    return [
        {
            "model": name,
            "one process, 2 threads, ms": alone[name],
            "two ranks, 1 thread each, ms": two[name],
            "two / one": two[name] / alone[name],
        }
        for name in alone
    ]


def _row(size: int, count: int) -> Row:
    found = _ranks("sum", count, size, threads=1)
    ring = 2 * (count - 1) / count * 4 * size
    first = found[0]
    return {
        "parameters": size,
        "ranks": count,
        "sum ms": first["sum ms"],
        "all-reduce ms": first["all-reduce ms"],
        "sum / all-reduce": first["ratio"],
        "sent / ring": max(rank["sum sent"] for rank in found) / ring,
        "all-reduce sent / ring": max(rank["all-reduce sent"] for rank in found) / ring,
    }


def _ranks(what: str, count: int, *more: int, threads: int) -> list[dict[str, float]]:
    """Start ranks; what each one measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.distributed", what]
            + [str(number) for number in (rank, count, port, *more)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    texts = [process.communicate()[0] for process in processes]
    return [json.loads(text.splitlines()[-1]) for text in texts]


def measure_sum(ranks: Ranks, gloo: Any, size: int) -> dict[str, float]:
    """Both sums, in turn, on each rank at once; each rank holds the sum of two shards."""
    model, start = nn.Module(), 0
    for length in cycle(_TENSORS):
        values = torch.empty(min(length, size - start))
        model.register_parameter(f"p{start}", nn.Parameter(values, requires_grad=False))
        start += len(values)
        if start == size:
            break
    reduction = RankReduction(ranks, model)
    gradients = {name: torch.full_like(p, 1e-3) for name, p in model.named_parameters()}
    flat = torch.full((size,), 1e-3)
    sent = {"sum": 0, "all-reduce": 0}

    def tree() -> None:
        own = BlockSum(
            shards=range(2 * ranks.rank, 2 * ranks.rank + 2), loss=0.0, gradients=dict(gradients),
            buffers={}, changed=frozenset(),
        )  # fmt: skip
        gradients.update(reduction.total([own], 2 * ranks.size).gradients)

    def ring() -> None:
        gloo.allreduce([flat]).wait()

    def counted(name: str, act: Any) -> Any:
        def run() -> None:
            before = _sent()
            act()
            sent[name] = _sent() - before

        return run

    both = {"sum": counted("sum", tree), "all-reduce": counted("all-reduce", ring)}
    times = interleaved(both, warmup=2, runs=_RUNS)
    return {
        "sum ms": milliseconds(times["sum"]),
        "all-reduce ms": milliseconds(times["all-reduce"]),
        "ratio": ratio(times, "sum", "all-reduce")["median"],
        **{f"{name} sent": count for name, count in sent.items()},
    }


def measure_steps(ranks: Ranks | None) -> dict[str, float]:
    """Milliseconds of a step, by model."""
    found: dict[str, float] = {}
    for name, workload in WORKLOADS.items():
        job = replace(workload.job("exact", 1000), shards=2)
        program = Program.build(job)
        reduction: Reduction = ALONE if ranks is None else RankReduction(ranks, program.model)
        batch = Batches(job, shards=reduction.mine(2))[1]
        step = partial(run_step, program, 1, batch, reduction=reduction)
        found[name] = milliseconds(interleaved({"step": step}, warmup=3, runs=_STEPS)["step"])
    return found


def _sent() -> int:
    """Bytes that this process has sent and that have arrived, over all its TCP connections."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it is closed by now, or not of TCP
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as found:
                    info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack("<Q", info[_ACKNOWLEDGED])[0]
    return total


def _main(what: str, rank: int, count: int, port: int, size: int = 0) -> None:
    if count == 1:
        print(json.dumps(measure_steps(None)))
        return
    address = f"tcp://127.0.0.1:{port}?rank={rank}&world_size={count}"
    store, _, _ = next(iter(rendezvous(address, timeout=timedelta(minutes=5))))
    place = Place(rank=rank, size=count, local_rank=rank, local_size=count)
    with Ranks(place, store, 60.0, torch.device("cpu")) as ranks:
        if what == "step":
            print(json.dumps(measure_steps(ranks)))
            return
        gloo = c10d.ProcessGroupGloo(
            c10d.PrefixStore("beside", store), rank, count, timedelta(hours=1)
        )
        print(json.dumps(measure_sum(ranks, gloo, size)))


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:]))
