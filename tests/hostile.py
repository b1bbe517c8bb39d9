"""What is handed to a parser that must survive it: run apart, with little memory.

A parser that dies by a signal, takes memory out of proportion or raises what nobody catches takes
its process along. So hostile values are read in a child process, whose memory is bounded once
everything is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from veritrain.encoding import Value, encode

MIB = 1 << 20
_ROOT = Path(__file__).parents[1]
_CHILD = """
import json, resource, sys
from veritrain.encoding import decode
from veritrain.errors import VeritrainError
{setup}
def used():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
values = decode(sys.stdin.buffer.read(), where="stdin")
resource.setrlimit(resource.RLIMIT_AS, (used() + {room}, used() + {room}))
for value in values:
    try:
        parse(value)
        found = "value"
    except VeritrainError as error:
        found = type(error).__name__
        assert len(str(error)) < 1000, "an error of a thousand signs helps nobody"
    print(json.dumps(found), flush=True)
"""


def outcomes(setup: str, values: Sequence[Value], *, room: int = 256 * MIB) -> list[str]:
    """What `parse(value)` came to for each value, apart: "value", or the name of its error.

    Args:
        setup: Python that defines `parse`.
        values: what is read.
        room: bytes of memory that the child may take beyond what it has when it begins.

    Raises:
        AssertionError: the child died, or something else was raised.
    """
    code = _CHILD.format(setup=textwrap.dedent(setup), room=room)
    paths = os.pathsep.join([str(_ROOT / "src"), str(_ROOT)])
    child = subprocess.run(
        [sys.executable, "-c", code],
        input=encode(list(values)),
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        check=False,
    )
    found = [json.loads(line) for line in child.stdout.splitlines()]
    assert child.returncode == 0, (found, child.returncode, child.stderr.decode()[-2000:])
    return found


def require_line(error: Exception) -> None:
    """An error of a thousand signs helps nobody."""
    assert len(str(error)) < 1000, str(error)[:1000]
