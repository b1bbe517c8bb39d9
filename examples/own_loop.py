"""Recording in a loop of your own: `python examples/own_loop.py [RUN]`.

The loop, logging and evaluation stay yours; `step.train()` does the step and records it.
"""

from __future__ import annotations

import sys

import digits  # the job beside this file

import veritrain as vt


def main(out: str = "runs/own-loop") -> None:
    job = digits.job()
    with vt.Recorder(job, out) as run:
        for step in run:
            loss = step.train()
            if step.number % 50 == 0:
                right = digits.accuracy(run.model)  # looking is free, changing the model is refused
                print(f"step {step.number}: loss {loss:.4f}, held out {right:.1%}")
    print(f"final digest {run.digest.hex()}")

    report = vt.audit(out, job)
    report.require_accepted()  # raises; a report has no truth value on purpose
    print(f"{report.verdict.name}: {report.reason}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
