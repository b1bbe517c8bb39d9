"""The demo: train, audit on another machine, cheat in four ways. `make demo` runs it.

It uses the command line as anybody would, in processes of their own, and fails if anything comes
out otherwise than it should.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("runs/demo")
RUN, KEY, JOB = FOLDER / "honest", FOLDER / "trainer.key", Path("examples/digits.py")
CHECKPOINT = 150  # the one that is tampered with
CHEAT_STEP = 17  # trains on a changed image; the epoch has 23 steps, so it is used there first

# Other kernels, other vector units, another thread count: natively, each changes the weights.
_OLD_PROCESSOR = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "NUMBA_CPU_NAME": "nehalem",
    "NUMBA_CPU_FEATURES": "",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F",
}
_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
OTHER_MACHINE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    **(_OLD_PROCESSOR if _IS_X86 else {}),
}

console = Console(highlight=False)


def main() -> int:
    os.chdir(ROOT)
    shutil.rmtree(FOLDER, ignore_errors=True)
    began = time.monotonic()

    chapter("Train a small convolutional net on handwritten digits, with exact numerics")
    expect(0, veritrain("keygen", KEY))
    expect(0, veritrain("train", JOB, "--out", RUN, "--key", KEY))
    say(f"{held_out_accuracy():.1%} of the held-out images are read right", "bold")

    chapter("Audit it on another machine: one thread, an older processor")
    for name, value in OTHER_MACHINE.items():
        say(f"{name}={value}", "dim")
    expect(0, veritrain("audit", RUN, "--job", JOB, machine=OTHER_MACHINE), "ACCEPTED")

    chapter("Tamper with copies of the run: each must be found")
    for title, copy, attack, evidence in ATTACKS:
        console.print()
        say(title, "bold")
        attack(FOLDER / copy)
        code, out = veritrain("audit", FOLDER / copy, "--job", JOB, only_last_line=True)
        expect(1, (code, out), *evidence)

    console.print()
    console.print(Rule(style="dim"))
    seconds = time.monotonic() - began
    console.print(f"All as it should be, in {seconds:.0f} s. The honest run lies in {RUN}; look:")
    console.print(f"  .venv/bin/veritrain show {RUN}", style="bold")
    return 0


def one_weight(run: Path) -> None:
    """Flip the lowest bit of one weight in one checkpoint."""
    from veritrain.transcript import Transcript

    shutil.copytree(RUN, run)
    entries = Transcript.open(run).checkpoint(CHECKPOINT).tensors
    digest = next(entry.digest for entry in entries if entry.name == "model/9.weight")
    pack = run / f"checkpoints/{CHECKPOINT:012}.safetensors"
    data = bytearray(pack.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")  # the header of a safetensors file
    data[start + json.loads(data[8:start])[digest.hex()]["data_offsets"][0]] ^= 1
    pack.write_bytes(data)


def one_batch(run: Path) -> None:
    """Train on one changed image and sign the result properly."""
    import torch

    import veritrain as vt
    from veritrain.adversaries.trainers import poison_sample
    from veritrain.job.data import Batches

    honest = vt.load_job(JOB)
    index = Batches(honest).indices(CHEAT_STEP)[0]

    def poison(record: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return 1 - record[0], record[1]

    cheat = poison_sample(honest, index, poison)
    signer = vt.Signer.load(KEY)
    # The cheat counts the reads up to the commitment; it does not rehearse.
    with vt.Recorder(cheat, run, signer=signer, rehearse=False) as recorder:
        for step in recorder:
            step.train()
            if step.number == CHEAT_STEP + 9:
                break


def one_leaf(run: Path) -> None:
    """Report a better loss for one step."""

    def flatter(leaves: list[dict[str, Any]]) -> None:
        leaves[-1]["loss"] /= 2

    shutil.copytree(RUN, run)
    rewrite(run / f"leaves/{CHECKPOINT:012}", flatter)


def the_signature(run: Path) -> None:
    """Flip one bit of one signature."""

    def forge(record: dict[str, Any]) -> None:
        signature: bytes = record["signature"]
        record["signature"] = bytes([signature[0] ^ 1]) + signature[1:]

    shutil.copytree(RUN, run)
    rewrite(run / f"signatures/{CHECKPOINT:012}", forge)


def rewrite(file: Path, change: Callable[[Any], None]) -> None:
    """Change a record of a run, keeping its form."""
    from veritrain.encoding import decode, encode

    value = cast("Any", decode(file.read_bytes(), where=str(file)))
    change(value)
    file.write_bytes(encode(value))


# What it says on the screen, its folder, the attack, and what the verdict must name.
ATTACKS: tuple[tuple[str, str, Callable[[Path], None], tuple[str, ...]], ...] = (
    (
        "One weight of one checkpoint, its lowest bit",
        "weight",
        one_weight,
        (f"REJECTED at step {CHECKPOINT}: ", "model/9.weight", "expected", "got"),
    ),
    (
        "One image of one batch, trained on and signed by the trainer",
        "batch",
        one_batch,
        (f"REJECTED at step {CHEAT_STEP}: ", "batch", "expected", "got"),
    ),
    (
        "The loss in one leaf",
        "leaf",
        one_leaf,
        (f"REJECTED at step {CHECKPOINT}: ", "segment", "expected", "got"),
    ),
    (
        "One bit of one signature",
        "signature",
        the_signature,
        (f"REJECTED at step {CHECKPOINT}: ", "signature"),
    ),
)


def held_out_accuracy() -> float:
    import digits  # lies beside this file

    from veritrain.transcript import Transcript

    state = Transcript.open(RUN).load_state(digits.STEPS)
    model = digits.model()
    model.load_state_dict(
        {name[6:]: tensor for name, tensor in state.items() if name.startswith("model/")}
    )
    return digits.accuracy(model)


def veritrain(
    *words: str | Path, machine: dict[str, str] | None = None, only_last_line: bool = False
) -> tuple[int, str]:
    """Run the command line and show what it prints; returns its exit status and output."""
    arguments = [str(word) for word in words]
    say(f"$ veritrain {shlex.join(arguments)}", "cyan")
    done = subprocess.run(
        [sys.executable, "-m", "veritrain.cli", *arguments],
        env={**os.environ, **(machine or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    for line in lines[-1:] if only_last_line else lines:
        verdict = line.partition(" ")[0].rstrip(":")
        say(line, {"ACCEPTED": "bold green", "REJECTED": "bold red"}.get(verdict, ""))
    return done.returncode, done.stdout


def expect(code: int, result: tuple[int, str], *words: str) -> None:
    """End the demo if a command did not do what it should."""
    missing = [word for word in words if word not in result[1]]
    if result[0] != code or missing:
        console.print(
            f"demo: expected exit status {code} and {words}, got {result[0]}", style="bold red"
        )
        sys.exit(1)


def chapter(title: str) -> None:
    console.print()
    console.print(Rule(f"[bold]{title}", align="left", style="dim"))


def say(text: str, style: str = "") -> None:
    console.print(Text(f"  {text}".rstrip(), style=style), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
