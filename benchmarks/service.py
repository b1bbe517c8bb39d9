"""The service under load: readers who share one server, alone and beside clients who attack it.

The server is a process of its own with its standard bounds. Each reader has an address of its own,
and the attackers share one (Linux gives all of 127.0.0.0/8 to this machine). Every answer is
compared with the file, byte by byte.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from veritrain.encoding import digest
from veritrain.transcript import Header, Signer, TranscriptWriter, state_entries, state_root

READERS = 200
SECONDS = 15.0
COMMITS = 40
VALUES = 32_768  # float32 of which half are new in each commit
ATTACKERS = 25  # of each kind
_ATTACKERS_ADDRESS = "127.0.0.2"

Row = dict[str, Any]
Attack = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Tally:
    """What readers saw."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.bytes = 0
        self.errors = 0  # broken connections, and answers with another status than 200
        self.wrong = 0  # answers with other bytes than the file's


def service(readers: int = READERS, seconds: float = SECONDS) -> list[Row]:
    """Readers alone, and beside attackers."""
    with tempfile.TemporaryDirectory() as folder:
        files = _make_run(Path(folder) / "run")
        with _server(Path(folder) / "run") as port:
            return [
                asyncio.run(_measure(port, files, readers, seconds, attacked=attacked))
                for attacked in (False, True)
            ]


def _make_run(folder: Path) -> dict[str, bytes]:
    """A run of made-up states, and its files by path."""
    signer = Signer.generate()
    header = Header(
        numerics="exact", numerics_version=1, job={"config": {}, "sources": {}}, environment={},
        dataset_root=digest("example", b""), dataset_count=1, public_key=signer.public_key,
    )  # fmt: skip
    writer = TranscriptWriter.create(folder, header, signer)
    frozen = torch.arange(VALUES // 2, dtype=torch.float32)
    for step in range(COMMITS):
        state = {"frozen": frozen, "moving": frozen + step + 1}
        entries = state_entries(state)
        batch = digest("example", b"%d" % step) if step else None
        writer.append(state=state_root(entries), batch=batch, loss=1.0 if step else None)
        writer.commit(state, entries)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@contextmanager
def _server(run: Path) -> Generator[int]:
    words = ["serve", str(run), "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "veritrain.cli", *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        text = "".join(itertools.takewhile(lambda line: line != "}\n", process.stdout)) + "}"
        yield int(json.loads(text)["url"].rpartition(":")[2])
    finally:
        process.terminate()
        process.wait()


async def _measure(
    port: int, files: dict[str, bytes], readers: int, seconds: float, *, attacked: bool
) -> Row:
    tally, end = Tally(), time.perf_counter() + seconds
    attacks: list[asyncio.Task[int]] = []
    if attacked:
        attacks = [
            asyncio.create_task(_attack_until(end, port, attack))
            for attack in (_drip, _garbage, _oversized, _greedy)
            for _ in range(ATTACKERS)
        ]
    start = time.perf_counter()
    await asyncio.gather(*(_read_until(end, port, files, n, tally) for n in range(readers)))
    took = time.perf_counter() - start
    made = sum(await asyncio.gather(*attacks))
    times = sorted(tally.seconds)
    return {
        "readers": readers,
        "attackers": len(attacks),
        "attacks made": made,
        "requests": len(times),
        "requests/s": len(times) / took,
        "MB/s": tally.bytes / took / 1e6,
        "median ms": statistics.median(times) * 1e3,
        "p99 ms": times[int(len(times) * 0.99)] * 1e3,
        "max ms": times[-1] * 1e3,
        "errors": tally.errors,
        "wrong answers": tally.wrong,
    }


async def _read_until(
    end: float, port: int, files: dict[str, bytes], seed: int, tally: Tally
) -> None:
    """One reader: one connection, file after file."""
    address = f"127.0.{1 + seed // 250}.{1 + seed % 250}"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    paths = itertools.cycle(random.Random(seed).sample(sorted(files), len(files)))  # noqa: S311
    try:
        while time.perf_counter() < end:
            path, start = next(paths), time.perf_counter()
            writer.write(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            status, body = await _answer(reader)
            tally.seconds.append(time.perf_counter() - start)
            tally.bytes += len(body)
            tally.errors += status != 200
            tally.wrong += status == 200 and body != files[path]
    except (OSError, EOFError, ValueError):
        tally.errors += 1
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


async def _attack_until(end: float, port: int, attack: Attack) -> int:
    """One attacker: one connection after the other; how many."""
    count = 0
    while (left := end - time.perf_counter()) > 0:
        with suppress(OSError, EOFError, TimeoutError):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(_ATTACKERS_ADDRESS, 0)
            )
            count += 1
            try:
                await asyncio.wait_for(attack(reader, writer), left)
            finally:
                writer.transport.abort()
        await asyncio.sleep(0.05)
    return count


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A header that never ends, a byte at a time."""
    writer.write(b"GET /header HTTP/1.1\r\nHost: ")
    while not reader.at_eof():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.2)


async def _garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes that are not HTTP."""
    writer.write(os.urandom(200) + b"\r\n\r\n")
    await reader.read()


async def _oversized(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A header and a body that are too large."""
    fields = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(100))
    writer.write(b"GET /header HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")
    await reader.read()


async def _greedy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Much that is asked for, and never read."""
    writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(50):
        writer.write(b"GET /files HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        await asyncio.sleep(1)
