"""`veritrain doctor`: what this machine is for Veritrain, whether it computes rightly, what would
be slow."""

from __future__ import annotations

import os
import platform
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from veritrain.cli import output
from veritrain.runtime.progress import Stage, tell

if TYPE_CHECKING:
    from veritrain.training.selftest import Answer

UNWELL = 1
_PACKAGES = ("python", "veritrain", "torch", "numpy", "numba")
_INSTRUCTIONS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
)


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was found.

    Attributes:
        facts: what there is, by name.
        faults: what makes results wrong, or kernels impossible to keep; each a sentence.
        slow: what costs time and changes no bit.
        answers: of the self-test.
    """

    facts: dict[str, str]
    faults: tuple[str, ...]
    slow: tuple[str, ...]
    answers: tuple[Answer, ...]

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults and all(answer.error is None for answer in self.answers)


@click.command(
    "doctor",
    short_help="Test this installation, and say what would be slow.",
    epilog="""\b
Examples:
  veritrain doctor
  veritrain doctor --json

Exit status: 0 all is well, 1 something is wrong.
What is merely slow changes no bit.""",
)
@output.json_option
def command(as_json: bool) -> int:
    """Say what this installation and machine are, and test them against known answers.

    The self-test computes a few cases of each family of kernels, whose bits are known. It compiles
    what is not compiled yet.
    """
    with output.only_results_on_stdout(), output.progress():
        found = examine()
    data = {
        "ok": found.is_well,
        "facts": found.facts,
        "faults": list(found.faults),
        "slow": list(found.slow),
        "selftest": [vars(answer) for answer in found.answers],
    }
    output.emit(data, _lines(found), as_json=as_json)
    return 0 if found.is_well else UNWELL


def examine() -> Examination:
    """Look at everything. It starts nothing and writes nothing but kernels."""
    from veritrain.runtime import kernels
    from veritrain.training import selftest

    faults, slow = list(_key_faults()), list(_slow())
    if _flushes_subnormals():
        faults.append(
            "subnormal numbers are flushed to zero (by torch.set_flush_denormal or a library):"
            " results would be wrong"
        )
    if kernels.writable_folder() is None:
        slow.append("kernels cannot be kept: no folder can be written, each process compiles anew")
    answers: list[Answer] = []
    for family in selftest.families():
        tell(Stage(doing=f"computing known answers: {family}"))
        answers += selftest.run(family)
    return Examination(
        facts=_facts(),  # after the self-test, which compiles
        faults=tuple(faults),
        slow=tuple(slow),
        answers=tuple(answers),
    )


def _facts() -> dict[str, str]:
    import torch

    from veritrain.job.loading.installed import version
    from veritrain.numerics.cpu import products
    from veritrain.runtime import kernels
    from veritrain.transcript.signing import default_key_path

    folder = kernels.writable_folder()
    kept = {
        file.name.rpartition("-")[0] for place in kernels.folders() for file in place.glob("*.code")
    }
    key = default_key_path()
    byte_products = "yes" if products.bytes_are_exact() else "no, by float64"
    return {
        **{name: version(name) for name in _PACKAGES},
        "processor": f"{_processor()} ({platform.machine()})",
        "instructions": " ".join(_instructions()) or "unknown",
        "PyTorch uses": torch.backends.cpu.get_cpu_capability(),
        "byte products": byte_products,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "kernels": f"{len(kept)} compiled, in {folder if folder is not None else 'no folder'}",
        "key": f"{key}, {_mode(key)}" if key.exists() else f"none yet; it would be {key}",
    }


def _key_faults() -> list[str]:
    from veritrain.transcript.signing import default_key_path

    key = default_key_path()
    if not key.exists():
        return []
    if not stat.S_ISREG(key.stat().st_mode):
        return [f"the key {key} is not a regular file"]
    if os.name == "posix" and key.stat().st_mode & 0o077:
        return [f"others may read the key {key} ({_mode(key)}): chmod 600 it, and make a new one"]
    return []


def _mode(file: Path) -> str:
    return stat.filemode(file.stat().st_mode)


def _slow() -> list[str]:
    import torch

    from veritrain.numerics.cpu import products

    found: list[str] = []
    instructions, processors = _instructions(), os.cpu_count() or 1
    is_intel = platform.machine().lower() in ("x86_64", "amd64")
    if is_intel and instructions and "avx2" not in instructions:
        found.append("no AVX2: kernels have narrow vectors")
    if is_intel and "avx2" in instructions and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        found.append("PyTorch does not use AVX2, which is there: unset ATEN_CPU_CAPABILITY")
    if not products.bytes_are_exact():
        found.append(
            "no products of bytes (VNNI): matrix products run in float64, at half the speed"
        )
    threads = torch.get_num_threads()
    if threads < processors:
        names = [n for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if n in os.environ]
        by = f", by {' and '.join(names)}" if names else ""
        found.append(f"{threads} threads on {processors} processors{by}")
    if threads > processors:
        found.append(f"more threads ({threads}) than processors ({processors})")
    for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT"):
        if name in os.environ:
            found.append(f"{name}={os.environ[name]}: threads may wait by spinning")
    return found


def _flushes_subnormals() -> bool:
    import torch

    smallest = torch.full((1024,), 2.0**-126)
    return bool((smallest * 0.5 == 0).any())


def _instructions() -> list[str]:
    """Those that matter here and that the processor says it has; none where it cannot be asked."""
    info = _processor_info()
    words = {w for line in info if line.startswith(("flags", "Features")) for w in line.split()}
    return [name for name in _INSTRUCTIONS if name in words]


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in _processor_info()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or "unknown"


def _processor_info() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if sys.platform == "linux" and file.exists() else []


def _lines(found: Examination) -> list[output.Line]:
    width = max(map(len, found.facts))
    lines: list[output.Line] = [
        f"{name:<{width}}  {output.escape(text)}" for name, text in found.facts.items()
    ]
    lines.append("")
    for family in dict.fromkeys(answer.family for answer in found.answers):
        cases = [answer for answer in found.answers if answer.family == family]
        wrong = [answer for answer in cases if answer.error is not None]
        lines.append(
            (f"{family:<{width}}  FAILED", "red")
            if wrong
            else f"{family:<{width}}  ok, {len(cases)} cases, bits equal"
        )
        lines += [
            (f"  {answer.case}: {output.one_line(answer.error or '')}", "red") for answer in wrong
        ]
    lines.append("")
    lines += [(f"wrong: {output.one_line(text)}", "red") for text in found.faults]
    lines += [(f"slow: {output.one_line(text)}", "yellow") for text in found.slow]
    verdict = ("WELL: all bits are as they should be", "bold green")
    return [*lines, verdict if found.is_well else ("UNWELL: see above", "bold red")]
