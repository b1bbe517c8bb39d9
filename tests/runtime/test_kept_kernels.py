"""Compiled code: once for all processes, never stale, in a folder that can be written, found whole
or not."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import veritrain as vt
from veritrain.runtime import kernels, progress
from veritrain.runtime.kernels import kernel
from veritrain.runtime.started import ENVIRONMENT, as_started

SCRIPT = """
import torch
from veritrain.runtime import kernels
from veritrain.numerics.cpu import elementary
bits = elementary.apply("softplus", torch.linspace(-3, 3, 100)).view(torch.int32).tolist()
print(kernels.number_compiled(), hash(tuple(bits)))
"""


def started(folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def result_of(process: subprocess.Popen[str]) -> tuple[int, int]:
    """How many kernels the process compiled, and what it computed."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    compiled, value = map(int, out.split())
    return compiled, value


def test_processes_at_once_compile_each_kernel_once_and_the_next_none(tmp_path):
    at_once = [result_of(process) for process in [started(tmp_path), started(tmp_path)]]
    after = result_of(started(tmp_path))
    kept = len(list(tmp_path.rglob("*.code")))
    assert sum(compiled for compiled, _ in at_once) == kept > 0
    assert after[0] == 0
    assert {value for _, value in [*at_once, after]} == {after[1]}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names a processor")
def test_kinds_of_processors_share_a_folder(tmp_path):
    old = {"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": ""}
    here, there = result_of(started(tmp_path)), result_of(started(tmp_path, **old))
    assert here == there  # each compiled its own, and the bits are the same
    assert here[0] > 0
    assert result_of(started(tmp_path))[0] == result_of(started(tmp_path, **old))[0] == 0


MODULE = """
from veritrain.runtime.kernels import kernel
{imports}
@kernel()
def inner(x):
    return x + ADDED

@kernel()
def outer(x):
    return inner(x) * 2
"""


def made(tmp_path: Path, name: str, added: int, text: str = MODULE) -> ModuleType:
    """A module of kernels whose constant comes from elsewhere."""
    file = tmp_path / f"{name}.py"
    file.write_text(text.format(imports=""))
    module = ModuleType("made")
    module.__dict__["ADDED"] = added
    exec(compile(file.read_text(), str(file), "exec"), module.__dict__)  # noqa: S102
    return module


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where kernels of this test are kept."""
    monkeypatch.setattr(kernels, "folders", lambda: (tmp_path / "kept",))
    return tmp_path / "kept"


def compiled_by(call, *arguments):
    """What a call returns, and how many kernels it compiled."""
    before = kernels.number_compiled()
    result = call(*arguments)
    return result, kernels.number_compiled() - before


def test_what_is_kept_is_found_again(folder, tmp_path):
    assert compiled_by(made(tmp_path, "a", 3).outer, 4) == (14, 1)  # the inner one is a part of it
    assert compiled_by(made(tmp_path, "a", 3).outer, 4) == (14, 0)
    assert compiled_by(made(tmp_path, "a", 3).inner, 4) == (7, 1)
    assert len(list(folder.glob("*.code"))) == 2


def test_another_constant_or_another_part_is_other_code(folder, tmp_path):
    assert compiled_by(made(tmp_path, "a", 3).outer, 4) == (14, 1)
    assert compiled_by(made(tmp_path, "a", 5).outer, 4) == (18, 1)
    text = MODULE.replace("x + ADDED", "x - ADDED")
    assert compiled_by(made(tmp_path, "a", 3, text).outer, 4) == (2, 1)
    assert compiled_by(made(tmp_path, "a", 3).outer, np.float32(4)) == (14.0, 1)


def test_a_constant_in_a_module_of_kernels_counts(monkeypatch):
    from veritrain.numerics.cpu import elementary_quick, softmax

    name = softmax._log_softmax_kernel
    reached = [part.name for part in kernels._reached(name)]
    assert "numerics.cpu.elementary_kernels.exp_loop" in reached  # as `kernels.exp_loop`
    assert "numerics.cpu.exact_sums.integer_sum" in reached
    kernels.source_digest.cache_clear()
    before = kernels.source_digest(name)
    monkeypatch.setattr(elementary_quick, "QUICK_UNITS", 1 << 16)
    kernels.source_digest.cache_clear()
    assert kernels.source_digest(name) != before
    kernels.source_digest.cache_clear()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:40] + b"x" + data[41:]]
)
def test_damaged_code_is_compiled_again(folder, tmp_path, damage):
    made(tmp_path, "a", 3).outer(4)
    (file,) = folder.glob("*.code")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert compiled_by(made(tmp_path, "a", 3).outer, 4) == (14, 1)
    assert compiled_by(made(tmp_path, "a", 3).outer, 4) == (14, 0)


def test_the_users_folder_where_the_sources_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    places = (tmp_path / "file" / "kernels", tmp_path / "user" / "kernels")
    monkeypatch.setattr(kernels, "folders", lambda: places)
    assert compiled_by(made(tmp_path, "a", 3).outer, 4) == (14, 1)
    assert compiled_by(made(tmp_path, "a", 3).outer, 4) == (14, 0)
    assert [file.parent for file in tmp_path.rglob("*.code")] == [places[1]]
    assert places[1].stat().st_mode & 0o777 == 0o700


def test_no_folder_at_all_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(kernels, "folders", lambda: (tmp_path / "file" / "kernels",))
    assert kernels.writable_folder() is None
    assert compiled_by(made(tmp_path, "a", 3).outer, 4) == (14, 1)


def test_a_folder_that_others_can_write_is_not_read(folder, tmp_path):
    made(tmp_path, "a", 3).outer(4)
    folder.chmod(0o777)
    assert compiled_by(made(tmp_path, "a", 3).outer, 4) == (14, 1)


def test_a_kernel_that_cannot_be_compiled_holds_no_lock(folder, tmp_path):
    @kernel()
    def wrong(x):
        return x + "text"

    for _ in range(2):
        with pytest.raises(Exception, match="No implementation of function"):
            wrong(1)
    assert wrong._cache._lock is None


def test_listeners_hear_what_is_compiled(folder, tmp_path):
    heard: list[progress.Event] = []
    with progress.told_to(heard.append):
        made(tmp_path, "a", 3).outer(4)
        made(tmp_path, "a", 3).outer(4)
    number = kernels.number_compiled()
    assert heard == [
        progress.Compiling(kernel="made.outer", number=number),
        progress.Compiling(kernel=None, number=number),
    ]


@pytest.mark.parametrize("variable", ["NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"])
def test_a_job_does_not_choose_where_machine_code_comes_from(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do processes that start afterwards look there."""
    monkeypatch.delenv(variable, raising=False)  # it is put back when the test ends
    (tmp_path / "job.py").write_text(
        f"import os\nos.environ[{variable!r}] = {str(tmp_path / 'planted')!r}\n"
        "from tests import jobs\ndef job(): return jobs.make(sources=[jobs.__file__])\n"
    )
    before = kernels.folders()
    with suppress(vt.JobError):  # the job reaches a module of the tests: refused, and executed
        vt.load_job(tmp_path / "job.py")
    assert os.environ[variable] == str(tmp_path / "planted")
    assert kernels.folders() == before
    with as_started():
        assert os.environ.get(variable) == ENVIRONMENT.get(variable)
    assert os.environ[variable] == str(tmp_path / "planted")


@pytest.mark.parametrize(
    "steer",
    ["os.environ['PYTHONPATH'] = {}", "import sys; sys.path.insert(0, {})", "os.chdir({})"],
)
def test_processes_of_an_audit_start_as_this_one_did(steer: str, tmp_path: Path) -> None:
    """A folder of modules that the job puts on the path, or goes to, is not theirs."""
    planted = tmp_path / "planted"
    planted.mkdir()
    for name in ("sitecustomize", "pickle", "veritrain", "llvmlite"):
        (planted / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (tmp_path / "job.py").write_text(
        "import os\nimport torch\nfrom torch import nn\nimport veritrain as vt\n"
        f"{steer.format(repr(str(planted)))}\n"
        "def loss(m, b): return m(b[0]).mean()\n"
        "def sgd(m): return torch.optim.SGD(m.parameters(), lr=0.1)\n"
        "def data(): return torch.utils.data.TensorDataset(torch.randn(8, 4))\n"
        "def job(): return vt.Job(model=lambda: nn.Linear(4, 2), dataset=data, loss=loss,\n"
        "    optimizer=sgd, batch_size=4, steps=4, seed=1, checkpoint_every=2)\n"
    )
    script = (
        "import sys, veritrain as vt\n"
        "if __name__ == '__main__':\n"
        f"    job = vt.load_job({str(tmp_path / 'job.py')!r})\n"
        f"    vt.train(job, {str(tmp_path / 'run')!r}, signer=vt.Signer.generate())\n"
        f"    print(vt.audit({str(tmp_path / 'run')!r}, job, processes=2).verdict)\n"
    )
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False
    )
    assert "ACCEPTED" in done.stdout, done.stderr
    assert not (tmp_path / "ran").exists()
