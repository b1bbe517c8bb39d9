"""Run by the long matrix tests on each machine: train a full-size model, print digests of its
states.

python -m tests.full_size_digests NUMERICS STEPS MODEL
"""

from __future__ import annotations

import json
import sys

from benchmarks.large import MODELS
from tests.train_digests import job_digests

if __name__ == "__main__":
    numerics, steps, model = sys.argv[1:]
    print(json.dumps(job_digests(MODELS[model].job(numerics, int(steps)), int(steps))))
