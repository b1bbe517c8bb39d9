"""Recomputing segments on a Ray cluster, which machines that trust each other make.

Ray moves values between machines by pickle, so a person who reaches a cluster's ports runs code on
it: it is for machines of one owner, in a network of their own. What Veritrain gives it and takes
from it are plain values (text, bytes, numbers, lists), and each node loads the job file and opens
the run by itself, at the path that the auditor has.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from veritrain.errors import InconclusiveError, UsageError
from veritrain.job.job import Job
from veritrain.numerics.logged.tally import Tally
from veritrain.replay.report import Finding
from veritrain.replay.segments import Segment, SegmentResult, Shared, replay_shared, share
from veritrain.transcript import Leaf, Transcript

Plain = dict[str, Any]


def replay_on_cluster(
    job: Job,
    transcript: Transcript,
    segments: Sequence[Segment],
    processes: int,
    *,
    measure_gap: bool,
    device: str,
) -> Generator[SegmentResult]:
    """Results in the order of the segments, computed by `processes` tasks of Ray at a time.

    It joins the cluster that Ray finds: at $RAY_ADDRESS, else on this machine, else a new one here.

    Raises:
        UsageError: Ray is not installed, or other processes cannot load the job or read the run.
        InconclusiveError: the cluster lost a task.
    """
    ray = require_ray()
    shared = asdict(
        replace(
            share(job, transcript, processes, measure_gap=measure_gap, device=device), threads=1
        )
    )
    shared["job_file"] = str(shared["job_file"])
    if "://" not in shared["url"] and "::" not in shared["url"]:
        shared["url"] = os.path.abspath(shared["url"])  # a node has a working folder of its own
    was_joined = ray.is_initialized()
    if not was_joined:
        # As the command line has it: the order of a set of text is the same in every process.
        ray.init(runtime_env={"env_vars": {"PYTHONHASHSEED": "0"}}, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=1, max_retries=0)(_work)
        waiting: deque[Any] = deque()
        for segment in segments:
            if len(waiting) >= processes:
                yield result_of(ray.get(waiting.popleft()))
            waiting.append(task.remote(shared, _segment_values(segment)))
        while waiting:
            yield result_of(ray.get(waiting.popleft()))
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[:1]
        raise InconclusiveError(f"the Ray cluster lost a replay: {''.join(first)}") from error
    finally:
        if not was_joined:
            ray.shutdown()


def require_ray() -> Any:
    """The module `ray`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module("ray")
    except ImportError as error:
        raise UsageError(
            "engine ray: Ray is not installed here; pip install 'veritrain[ray]', on every node"
        ) from error


def _work(shared: Plain, segment: Plain) -> Plain:
    """Runs on a node of the cluster."""
    known: Plain = {**shared, "job_file": Path(shared["job_file"])}
    leaves = tuple(Leaf.from_bytes(data, where="a leaf") for data in segment["leaves"])
    result = replay_shared(
        Shared(**known), Segment(start=segment["start"], stop=segment["stop"], leaves=leaves)
    )
    return values_of(result)


def _segment_values(segment: Segment) -> Plain:
    leaves = [leaf.to_bytes() for leaf in segment.leaves]
    return {"start": segment.start, "stop": segment.stop, "leaves": leaves}


def values_of(result: SegmentResult) -> Plain:
    """A result as plain values."""
    return asdict(result)


def result_of(values: Plain) -> SegmentResult:
    """The result that `values_of` took apart."""
    roundings = {name: Tally(**tally) for name, tally in values["roundings"].items()}
    findings = tuple(Finding(**finding) for finding in values["findings"])
    whole: Plain = {**values, "findings": findings, "roundings": roundings}
    return SegmentResult(**whole)
