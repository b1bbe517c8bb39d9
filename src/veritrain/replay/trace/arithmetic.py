"""How the operators of a run are computed: all that is needed of its job to compute one again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from veritrain.encoding import Value
from veritrain.errors import InconclusiveError, UsageError
from veritrain.job.job import SEED_BITS, Job
from veritrain.job.shards import MAX_SHARDS
from veritrain.numerics import resolve
from veritrain.numerics.logged.thresholds import Thresholds
from veritrain.transcript import fields as check
from veritrain.transcript.fields import shown
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.records import Header


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """The settings of a job that decide an operator's bits; see `Job` for what they are."""

    numerics: str
    thresholds: Mapping[str, float]
    seed: int
    shards: int = 1

    @classmethod
    def of(cls, job: Job) -> Arithmetic:
        """The settings of a job."""
        return cls(
            numerics=job.numerics, thresholds=job.thresholds, seed=job.seed, shards=job.shards
        )

    @classmethod
    def from_header(cls, header: Header) -> Arithmetic:
        """Those that a run's header commits to; another party may have written it.

        Raises:
            InconclusiveError: they are not of the form that `Job.settings` has, or of numerics that
                this software does not compute.
        """
        try:
            found = _read(header.job.get("config"))
            version = resolve(found.numerics).version
        except UsageError as error:
            raise InconclusiveError(f"settings in the header: {error}") from None
        if (header.numerics, header.numerics_version) != (found.numerics, version):
            raise InconclusiveError(
                f"settings in the header: expected {found.numerics} numerics of version {version}, "
                f"got {shown(header.numerics)} of version {header.numerics_version}"
            )
        return found


def _read(config: Value) -> Arithmetic:
    """Raises UsageError where it is not of the form."""
    if not isinstance(config, dict):
        raise check.wrong("config", "a map", config)
    numerics, seed, thresholds = (config.get(k) for k in ("numerics", "seed", "thresholds"))
    check.check_text("numerics", numerics, LIMITS.name_chars)
    check.check_bytes("seed", seed, SEED_BITS // 8)
    shards = config.get("shards", 1)
    check.check_integer("shards", shards, 1, MAX_SHARDS)
    if not isinstance(thresholds, dict):
        if "thresholds" in config:
            raise check.wrong("thresholds", "a map", thresholds)
        thresholds = {}
    Thresholds(cast("dict[str, float]", thresholds))
    return Arithmetic(
        numerics=cast(str, numerics),
        thresholds=cast("dict[str, float]", thresholds),
        seed=int.from_bytes(cast(bytes, seed), "big"),
        shards=cast(int, shards),
    )
