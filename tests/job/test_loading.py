"""What is executed is what is digested: for every module that is not installed, whenever it is
loaded."""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import veritrain as vt
from tests import forks
from veritrain.encoding import digest
from veritrain.job.load import reload
from veritrain.job.loading import gates, installed
from veritrain.job.sources import commitment, environment
from veritrain.job.step import Program
from veritrain.transcript import Transcript

TOP = "import helper\n"
JOB = """
import importlib, sys
from pathlib import Path
import torch, veritrain as vt

{top}
class Data:
    def __len__(self):
        return 8
    def __getitem__(self, i):
        {record}
        return torch.arange(3.0) + i

def loss(model, batch):
    {loss}
    return model(batch).sum() * rate

def job():
    {job}
    return vt.Job(
        model=lambda: torch.nn.Linear(3, 1), dataset=Data(), loss=loss,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
        batch_size=4, steps=4, seed=1, checkpoint_every=2, {more}
    )
"""
KEY = vt.Signer.generate()
GOOD, EVIL = "RATE = 0.25\n", "RATE = 0.75\n"


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Each test leaves the import system as it was."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name in ("helper", "outside", "plugin", "package"):
            del sys.modules[name]


def write(folder: Path, **parts: str) -> Path:
    """A job file in `folder`; the loss is multiplied by `rate`."""
    defaults = {"top": "", "record": "pass", "loss": "rate = 1.0", "job": "pass", "more": ""}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.py").write_text(JOB.format(**{**defaults, **parts}))
    return folder / "job.py"


def ship(folder: Path, *, lazily: bool = False) -> Path:
    """A job whose rate is that of an honest `helper.py`."""
    (folder / "helper.py").parent.mkdir(parents=True, exist_ok=True)
    (folder / "helper.py").write_text(GOOD)
    if lazily:
        return write(folder, loss="import helper; rate = helper.RATE")
    return write(folder, top=TOP, loss="rate = helper.RATE")


def plant_bytecode(file: Path, text: str) -> None:
    """Bytecode of another program, of the kind that Python never compares with the source."""
    other = file.with_name(f"other_{file.name}")
    other.write_text(text)
    py_compile.compile(
        str(other),
        cfile=importlib.util.cache_from_source(str(file)),
        dfile=str(file),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    other.unlink()


def plant_stale(file: Path, text: str) -> None:
    """Bytecode of a file of the same size and time as the one that lies there."""
    honest, times = file.read_text(), file.stat()
    assert len(honest) == len(text)
    file.write_text(text)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    py_compile.compile(str(file), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    file.write_text(honest)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def plant_library(file: Path, _: str) -> None:
    """Python takes this file for a compiled module, and prefers it."""
    file.with_suffix(".so").write_bytes(b"no library at all")


def plant_package(file: Path, text: str) -> None:
    """A package of the same name comes first, and its initialisation need not be a source."""
    (file.parent / file.stem).mkdir()
    other = file.parent / f"other_{file.name}"
    other.write_text(text)
    py_compile.compile(str(other), cfile=str(file.parent / file.stem / "__init__.pyc"))
    other.unlink()


PLANTS = [plant_bytecode, plant_stale, plant_library, plant_package]
# Processes take seconds to start, and how they read a module does not depend on what is planted.
FEW_PLANTS = [
    plant_bytecode,
    plant_package,
    pytest.param(plant_stale, marks=pytest.mark.long),
    pytest.param(plant_library, marks=pytest.mark.long),
]


def rate_of(job: vt.Job) -> float:
    """The rate that a job's loss computes with."""

    def model(x: torch.Tensor) -> torch.Tensor:
        return x

    return float(job.loss(model, torch.ones(1)))  # type: ignore[arg-type]


@pytest.mark.parametrize("lazily", [False, True], ids=["at the top", "in the loss"])
@pytest.mark.parametrize("plant", PLANTS)
def test_only_the_source_is_executed(plant, lazily: bool, tmp_path: Path) -> None:
    file = ship(tmp_path, lazily=lazily)
    plant(tmp_path / "helper.py", EVIL)
    job = vt.load_job(file)
    assert rate_of(job) == 0.25
    sources = commitment(job)["sources"]
    assert sources == {
        "helper.py": digest("source", GOOD.encode()),
        "job.py": digest("source", file.read_bytes()),
    }


def test_worker_processes_execute_the_source(tmp_path: Path) -> None:
    """The module is imported for the first time in the process that makes the records."""
    record = "import helper; return torch.arange(3.0) + i + helper.RATE"
    digests = set()
    for name in ("clean", "planted"):
        file = write(tmp_path / name, record=record)
        (tmp_path / name / "helper.py").write_text(GOOD)
        if name == "planted":
            plant_bytecode(tmp_path / name / "helper.py", EVIL)
        for workers in (0, 1):
            out = tmp_path / f"{name}{workers}"
            digests.add(vt.train(vt.load_job(file), out, signer=KEY, processes=workers))
    assert len(digests) == 1


def train_falsely(folder: Path) -> Path:
    """A run of another program than the job file beside it, whose sources it claims: the job
    file."""
    file = ship(folder / "job", lazily=True)
    evil = replace(vt.load_job(file), loss=lambda model, batch: model(batch).sum() * 0.75)
    vt.train(evil, folder / "run", signer=KEY)
    return file


@pytest.mark.parametrize("plant", PLANTS)
def test_an_audit_of_a_shipped_folder_is_not_fooled(plant, tmp_path: Path) -> None:
    """The trainer trained something else, claims the honest sources, and ships what computes it."""
    file = train_falsely(tmp_path)
    plant(tmp_path / "job/helper.py", EVIL)
    report = vt.audit(tmp_path / "run", vt.load_job(file))
    assert report.verdict is vt.Verdict.REJECTED
    assert report.findings[0].step == 1


@pytest.mark.parametrize("plant", FEW_PLANTS)
def test_processes_of_an_audit_are_not_fooled(plant, tmp_path: Path) -> None:
    """Each of them imports the module by itself."""
    file = train_falsely(tmp_path)
    plant(tmp_path / "job/helper.py", EVIL)
    command = ["audit", str(tmp_path / "run"), "--job", str(file), "--processes", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "veritrain", *command], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["verdict"] == "rejected"


def test_stale_bytecode_rejects_no_honest_run(tmp_path: Path) -> None:
    file = ship(tmp_path / "job")
    vt.train(vt.load_job(file), tmp_path / "run", signer=KEY)
    plant_stale(tmp_path / "job/helper.py", EVIL)
    vt.audit(tmp_path / "run", vt.load_job(file)).require_accepted()


# -- modules that the text does not show


@pytest.mark.parametrize("place", ["job", "loss"])
def test_a_computed_import_has_to_be_named(place: str, tmp_path: Path) -> None:
    code = 'rate = importlib.import_module("plug" + "in").RATE'
    (tmp_path / "plugin.py").write_text(GOOD)
    parts = {"loss": "rate = 1.0", "more": "", place: code}
    file = write(tmp_path, **parts)
    message = r"imports plugin, which is .*plugin\.py.*sources=\['plugin\.py'\]"
    with pytest.raises(vt.JobError, match=message):
        rate_of(vt.load_job(file))
    file = write(tmp_path, **{**parts, "more": "sources=['plugin.py']"})
    plant_bytecode(tmp_path / "plugin.py", EVIL)
    job = vt.load_job(file)
    assert rate_of(job) == (0.25 if place == "loss" else 1.0)
    assert "plugin.py" in commitment(job)["sources"]  # type: ignore[operator]


def test_installed_code_imports_for_the_job(tmp_path: Path) -> None:
    """Registries import under names that they are given."""
    (tmp_path / "plugin.py").write_text(GOOD)
    loss = 'import pkgutil; rate = pkgutil.resolve_name("plugin:RATE")'
    with pytest.raises(vt.JobError, match="imports plugin"):
        rate_of(vt.load_job(write(tmp_path, loss=loss)))
    job = vt.load_job(write(tmp_path, loss=loss, more="sources=['plugin.py']"))
    plant_bytecode(tmp_path / "plugin.py", EVIL)
    assert rate_of(job) == 0.25


def test_a_thread_imports_for_the_job(tmp_path: Path) -> None:
    """None of its calls is of the job's own code."""
    (tmp_path / "plugin.py").write_text(GOOD)
    loss = (
        "from concurrent.futures import ThreadPoolExecutor as P; "
        "rate = P(1).submit(importlib.import_module, 'plugin').result().RATE"
    )
    with pytest.raises(vt.JobError, match="imports plugin"):
        rate_of(vt.load_job(write(tmp_path, top=f"sys.path.append({str(tmp_path)!r})", loss=loss)))


def test_a_module_that_nobody_names_is_not_found_by_installed_code(
    tmp_path: Path, monkeypatch
) -> None:
    """A file beside the job with the name of something that a package imports when it is there."""
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    (tmp_path / "colorsys.py").write_text("raise SystemExit('planted')\n")
    loss = 'import pkgutil; rate = pkgutil.resolve_name("colorsys:ONE_THIRD")'
    assert rate_of(vt.load_job(write(tmp_path, loss=loss))) == pytest.approx(1 / 3)


def test_what_a_named_source_imports_is_covered(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/__init__.py").write_text("")
    (tmp_path / "plugins/one.py").write_text("from .two import RATE\n")
    (tmp_path / "plugins/two.py").write_text(GOOD)
    loss = 'rate = importlib.import_module("plugins.one").RATE'
    job = vt.load_job(write(tmp_path, loss=loss, more="sources=['plugins/one.py']"))
    assert rate_of(job) == 0.25
    names = {"job.py", "plugins/__init__.py", "plugins/one.py", "plugins/two.py"}
    assert set(commitment(job)["sources"]) == names  # type: ignore[arg-type]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A module in a folder of its own, away from the job."""
    (tmp_path / "common").mkdir()
    (tmp_path / "common/outside.py").write_text(GOOD)
    return tmp_path / "common"


@pytest.mark.parametrize("place", ["top", "loss"])
def test_modules_outside_are_refused_or_named(place: str, outside: Path, tmp_path: Path) -> None:
    code = f"sys.path.insert(0, {str(outside)!r}); import outside; rate = outside.RATE"
    parts = {"top": "", "loss": "import outside; rate = outside.RATE", place: code}
    file = write(tmp_path / "job", **parts)
    with pytest.raises(vt.JobError, match="imports outside, .* outside of the job's folder"):
        rate_of(vt.load_job(file))
    file = write(tmp_path / "job", **parts, more="sources=['../common/outside.py']")
    plant_bytecode(outside / "outside.py", EVIL)
    plant_library(outside / "outside.py", "")
    job = vt.load_job(file)
    assert rate_of(job) == 0.25
    sources = commitment(job)["sources"]
    assert sources["../common/outside.py"] == digest("source", GOOD.encode())  # type: ignore[index,call-overload]


def test_modules_outside_that_are_loaded_already(outside: Path, tmp_path: Path) -> None:
    """What the program around the job loaded, from wherever, is not what the job is given."""
    sys.path.insert(0, str(outside))
    programs = importlib.import_module("outside")
    programs.RATE = 0.75
    parts = {"top": "import outside\n", "loss": "rate = outside.RATE"}
    with pytest.raises(vt.JobError, match="imports outside"):
        vt.load_job(write(tmp_path / "job", **parts))
    assert importlib.import_module("outside") is programs  # the program has what it had
    by_table = {"top": "outside = sys.modules['outside']\n", "loss": "rate = outside.RATE"}
    with pytest.raises(vt.JobError, match="imports outside"):
        vt.load_job(write(tmp_path / "job", **by_table))
    named = write(tmp_path / "job", **parts, more="sources=['../common']")
    assert rate_of(vt.load_job(named)) == 0.25
    assert programs.RATE == 0.75


def test_a_module_of_the_program_with_the_name_of_the_jobs(outside: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(outside))
    (outside / "helper.py").write_text(EVIL)
    importlib.import_module("helper")
    assert rate_of(vt.load_job(ship(tmp_path / "job", lazily=True))) == 0.25


def test_the_program_around_a_job_imports_what_it_likes(outside: Path, tmp_path: Path) -> None:
    vt.load_job(ship(tmp_path / "job"))
    sys.path.insert(0, str(outside))
    plant_bytecode(outside / "outside.py", EVIL)
    import outside as found  # type: ignore[import-not-found]

    assert found.RATE == 0.75


@pytest.mark.parametrize(
    "loss",
    [
        (
            "spec = importlib.util.spec_from_file_location('x', FILE); "
            "m = importlib.util.module_from_spec(spec); spec.loader.exec_module(m); rate = m.RATE"
        ),
        (
            "from importlib.machinery import SourceFileLoader as S; rate = S('x',"
            " FILE).load_module().RATE"
        ),
        (
            "from importlib.machinery import SourcelessFileLoader as S; "
            "rate = S('x', FILE + 'c').load_module().RATE"
        ),
        (
            "from importlib.machinery import ExtensionFileLoader as E, ModuleSpec; "
            "rate = E('x', FILE).create_module(ModuleSpec('x', None, origin=FILE))"
        ),
        "sys.path.insert(0, str(Path(FILE).parent / 'a.zip')); import zipped; rate = zipped.RATE",
        (
            "import zipimport; rate = zipimport.zipimporter("
            "str(Path(FILE).parent / 'a.zip')).load_module('zipped').RATE"
        ),
        "import ctypes; rate = ctypes.CDLL(FILE)",
        "import _ctypes; rate = _ctypes.dlopen(FILE, 2)",
        "import cffi; rate = cffi.FFI().dlopen(FILE)",
        "import llvmlite.binding as b; rate = b.load_library_permanently(FILE)",
        "import site; site.addsitedir(str(Path(FILE).parent)); rate = sys.planted",
        "rate = torch.ops.load_library(FILE)",
        "rate = vt.load_job(Path(FILE).parent / 'other.py').steps",
    ],
)
def test_other_ways_to_load_code(loss: str, outside: Path, tmp_path: Path) -> None:
    file = outside / "outside.py"
    py_compile.compile(str(file), cfile=f"{file}c")
    with zipfile.ZipFile(outside / "a.zip", "w") as archive:
        archive.writestr("zipped.py", GOOD)
    (outside / "lines.pth").write_text("import sys; sys.planted = 0.75\n")
    write(outside).rename(outside / "other.py")
    job = vt.load_job(write(tmp_path / "job", top=f"FILE = {str(file)!r}\n", loss=loss))
    with pytest.raises((vt.JobError, OSError)) as caught:
        rate_of(job)
    error = caught.value.__cause__ if isinstance(caught.value, OSError) else caught.value
    assert isinstance(error, vt.JobError)
    assert re.search(r"nothing (would commit|commits) to", str(error))


@pytest.fixture
def site_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that counts as one of those where Python keeps packages."""
    site = tmp_path / "lib"
    site.mkdir()
    monkeypatch.setattr(installed, "_FOLDERS", (*installed._FOLDERS, f"{site}{os.sep}"))
    installed._is_within.cache_clear()
    monkeypatch.syspath_prepend(str(site))
    yield site
    installed._is_within.cache_clear()


LAUNCHER = """
import importlib.util
def launcher(file):
    spec = importlib.util.spec_from_file_location("_bisect", file)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
"""


@pytest.mark.parametrize(
    ("package", "place", "is_loaded"),
    [("triton", "cache", True), ("triton", "elsewhere", False), ("other", "cache", False)],
)
def test_launchers_that_triton_compiles(
    package: str, place: str, is_loaded: bool, site_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    """Triton compiles a module for each kernel, keeps it in a folder of the user's and loads it."""
    monkeypatch.setattr(gates, "_TRITON_CACHE", f"{tmp_path / 'cache'}{os.sep}")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "elsewhere"))  # as a job may set it
    (site_folder / package / "runtime").mkdir(parents=True)
    (site_folder / package / "__init__.py").write_text("")
    (site_folder / package / "runtime/build.py").write_text(LAUNCHER)
    file = tmp_path / place / "abc/launcher.so"
    file.parent.mkdir(parents=True)
    shutil.copy(importlib.import_module("_bisect").__file__ or "", file)
    loss = (
        f"import {package}.runtime.build as b; rate ="
        f" b.launcher({str(file)!r}).bisect_right([1], 2)"
    )
    job = vt.load_job(write(tmp_path / "job", loss=loss))
    try:
        if is_loaded:
            assert rate_of(job) == 1.0
        else:
            with pytest.raises(vt.JobError, match="imports _bisect, which is .*launcher"):
                rate_of(job)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]


def test_code_that_numba_keeps_is_not_executed(tmp_path: Path, monkeypatch) -> None:
    """Numba takes compiled functions from beside a source of the same size and time."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    text = "import numba\n@numba.njit(cache=True)\ndef rate():\n    return 0.25\n"
    helper = tmp_path / "helper.py"
    helper.write_text(text)
    file = write(tmp_path, loss="import helper; rate = helper.rate()")
    assert rate_of(vt.load_job(file)) == 0.25
    times = helper.stat()
    helper.write_text(text.replace("0.25", "0.75"))
    os.utime(helper, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert rate_of(vt.load_job(file)) == 0.75


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages/inner"])
def test_a_folders_name_installs_nothing(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "plugin.py").write_text(EVIL)
    loss = f"sys.path.insert(0, {str(tmp_path / folder)!r}); import plugin; rate = plugin.RATE"
    job = vt.load_job(write(tmp_path / "job", loss=loss))
    with pytest.raises(vt.JobError, match="imports plugin"):
        rate_of(job)
    inside = ship(tmp_path / folder, lazily=True)
    plant_bytecode(tmp_path / folder / "helper.py", EVIL)
    job = vt.load_job(inside)
    assert rate_of(job) == 0.25
    assert "helper.py" in commitment(job)["sources"]  # type: ignore[operator]


def test_links_do_not_install_what_lies_beside_them(tmp_path: Path) -> None:
    (tmp_path / "linked.py").symlink_to(Path(json.__file__))
    (tmp_path / "linked").symlink_to(Path(json.__file__).parent)
    assert not installed.is_installed(tmp_path / "linked.py")
    assert installed.is_installed(tmp_path / "linked/decoder.py")  # in a folder of Python's own


# -- the snapshot


def test_a_source_that_is_edited_while_the_run_begins(tmp_path: Path) -> None:
    """The header claims the code that ran."""
    edit = "Path(__file__).with_name('helper.py').write_text('RATE = 0.75')"
    file = write(tmp_path / "job", record=edit, loss="import helper; rate = helper.RATE")
    (tmp_path / "job/helper.py").write_text(GOOD)
    vt.train(vt.load_job(file), tmp_path / "run", signer=KEY)
    assert (tmp_path / "job/helper.py").read_text() == "RATE = 0.75"
    claimed = Transcript.open(tmp_path / "run").header.job["sources"]
    assert claimed["helper.py"] == digest("source", GOOD.encode())  # type: ignore[index,call-overload]
    (tmp_path / "job/helper.py").write_text(GOOD)
    vt.audit(tmp_path / "run", vt.load_job(file)).require_accepted()


def test_two_jobs_with_modules_of_one_name(tmp_path: Path) -> None:
    jobs = {}
    for name, text in (("first", GOOD), ("second", EVIL)):
        file = ship(tmp_path / name, lazily=True)
        (tmp_path / name / "helper.py").write_text(text)
        jobs[name] = vt.load_job(file)
    computed = write(tmp_path / "third", loss='rate = importlib.import_module("helper").RATE')
    (tmp_path / "third/helper.py").write_text("RATE = 0.5\n")
    computed.write_text(computed.read_text().replace("seed=1", "seed=1, sources=['helper.py']"))
    jobs["third"] = vt.load_job(computed)
    for _ in range(2):
        assert [rate_of(job) for job in jobs.values()] == [0.25, 0.75, 0.5]
    assert commitment(jobs["first"]) != commitment(jobs["second"])


def test_reload_gives_fresh_modules(tmp_path: Path) -> None:
    count = "helper.CALLS.append(1); rate = float(len(helper.CALLS))"
    (tmp_path / "helper.py").write_text("CALLS = []\n")
    job = vt.load_job(write(tmp_path, top=TOP, loss=count))
    job = replace(job, steps=3, collate=torch.stack)
    assert [rate_of(job), rate_of(job)] == [1.0, 2.0]
    shutil.rmtree(tmp_path)  # nothing is read again
    again = reload(job)
    assert [rate_of(again), rate_of(job), rate_of(again)] == [1.0, 3.0, 2.0]
    assert (again.steps, again.collate, again.origin) == (3, torch.stack, job.origin)
    assert again.dataset is not job.dataset
    assert commitment(again) == commitment(job)
    assert rate_of(reload(again)) == 1.0


def test_reload_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("class Part: pass\n")
    file = write(tmp_path, loss="import helper; rate = 1.0; loss.part = helper.Part()")
    job = vt.load_job(file)
    rate_of(job)
    loaded, before = set(sys.modules), weakref.ref(job.loss)
    for _ in range(20):
        job = reload(job)
        rate_of(job)
    assert set(sys.modules) == loaded
    gc.collect()
    assert before() is None


def test_a_job_of_a_script_is_not_reloaded() -> None:
    from tests import jobs

    job = jobs.make()
    assert reload(job) is job


# -- jobs that are made in a script


SCRIPT = """
import sys
import torch, veritrain as vt
import helper
from veritrain.job.sources import commitment
{more}
job = vt.Job(
    model=lambda: torch.nn.Linear(1, 1), dataset=[torch.ones(1)] * 4, loss=helper.loss,
    optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1), batch_size=1, steps=1, seed=1,
)
try:
    print(sorted(commitment(job)["sources"]))
except vt.JobError as error:
    print(error)
"""
LOSS = "RATE = {}\ndef loss(model, batch):\n    return model(batch).sum() * {}\n"


def script(folder: Path, more: str = "") -> str:
    (folder / "helper.py").write_text(LOSS.format("0.25", "0.25"))
    (folder / "script.py").write_text(SCRIPT.format(more=more))
    if more.startswith("# planted"):
        plant_bytecode(folder / "helper.py", LOSS.format(*more.split()[2:]))
    return run_script(folder, (folder / "script.py").read_text())


def run_script(folder: Path, text: str) -> str:
    """What a script in `folder` prints."""
    (folder / "script.py").write_text(text)
    done = forks.run(["script.py"], cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_script_commits_to_what_ran(tmp_path: Path) -> None:
    assert script(tmp_path) == "['helper.py', 'script.py']"
    assert script(tmp_path) == "['helper.py', 'script.py']"  # with the bytecode of the first time


@pytest.mark.parametrize("rates", ["0.75 0.25", "0.25 0.75"], ids=["constant", "function"])
def test_a_script_that_ran_other_bytecode_is_refused(rates: str, tmp_path: Path) -> None:
    said = script(tmp_path, f"# planted {rates}")
    assert "helper.py: Python executes bytecode in its place that is not of this text" in said


def test_a_script_whose_files_were_edited_is_refused(tmp_path: Path) -> None:
    edit = "open(helper.__file__, 'w').write('def loss(model, batch):\\n    return 0\\n')"
    assert "helper.py: loss is not what ran; the file has changed" in script(tmp_path, edit)


ELSEWHERE = {
    "on the path": "sys.path.insert(0, {folder!r}); import outside",
    "in a folder without code": "sys.path.insert(0, {parent!r}); from common import outside",
    "under a computed name": "sys.path.insert(0, {folder!r}); outside = __import__('out' + 'side')",
    "in a package that was extended": (
        "import helper as outside; helper.__path__ = [{folder!r}]; import helper.outside"
    ),
}
NAMED = "    sources=['../common/outside.py'],\n)\ntry:"


def import_from(way: str, outside: Path, folder: Path) -> str:
    """What a script in a new folder prints that imports a module of `outside` in this way."""
    folder.mkdir()
    return script(folder, ELSEWHERE[way].format(folder=str(outside), parent=str(outside.parent)))


@pytest.mark.parametrize("way", ELSEWHERE)
def test_a_script_that_imports_from_elsewhere_is_refused(
    way: str, outside: Path, tmp_path: Path
) -> None:
    said = import_from(way, outside, tmp_path / "job")
    assert re.search(r"imports \S*outside, which is .*common/outside\.py: .*sources=\[", said), said


WAYS = ["on the path", *(pytest.param(way, marks=pytest.mark.long) for way in [*ELSEWHERE][1:])]


@pytest.mark.parametrize("way", WAYS)
def test_a_script_names_what_it_imports_from_elsewhere(
    way: str, outside: Path, tmp_path: Path
) -> None:
    import_from(way, outside, tmp_path / "job")
    told = (tmp_path / "job/script.py").read_text().replace(")\ntry:", NAMED)
    assert (
        run_script(tmp_path / "job", told)
        == "['common/outside.py', 'job/helper.py', 'job/script.py']"
    )
    plant_bytecode(outside / "outside.py", EVIL)
    assert "outside.py: Python executes bytecode" in run_script(tmp_path / "job", told)


LAZY = """
import sys, veritrain as vt
from job import job
key = vt.Signer.generate()
try:
    {act}
except vt.JobError as error:
    print(error)
"""


@pytest.mark.parametrize("rehearses", [True, False])
def test_what_a_script_imports_in_its_loss(rehearses: bool, tmp_path: Path) -> None:
    """Before the first step nothing says what will be executed."""
    act = f"vt.train(job(), 'run', signer=key, rehearse={rehearses}); print('trained')"
    ship(tmp_path, lazily=True)
    assert run_script(tmp_path, LAZY.format(act=act)).splitlines()[-1] == "trained"
    check = LAZY.format(act="print(vt.audit('run', job()).verdict.value)")
    assert run_script(tmp_path, check) == "accepted"
    shutil.rmtree(tmp_path / "run")
    plant_bytecode(tmp_path / "helper.py", EVIL)
    refused = "helper.py: Python executes bytecode in its place that is not of this text"
    said = run_script(tmp_path, LAZY.format(act=act))
    if rehearses:
        assert refused in said
    else:
        assert said.splitlines()[-1] == "trained"
        assert refused in run_script(tmp_path, check)


# -- the environment


def test_the_environment_names_what_the_sources_import(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def load():\n    import safetensors.torch, fsspec\n")
    job = vt.load_job(write(tmp_path, top=TOP))
    record = environment(Program.build(job), job.dataset)
    versions = {name: importlib.metadata.version(name) for name in ("safetensors", "fsspec")}
    assert {name: record.get(name) for name in versions} == versions
    assert not {"helper", "sys", "importlib"} & record.keys()


def test_the_environment_names_what_is_imported_by_computed_names(tmp_path: Path) -> None:
    top = 'importlib.import_module("safe" + "tensors.torch")'
    loss = 'rate = 1.0; __import__("fs" + "spec")'
    vt.train(vt.load_job(write(tmp_path / "job", top=top, loss=loss)), tmp_path / "run", signer=KEY)
    record = Transcript.open(tmp_path / "run").header.environment
    versions = {name: importlib.metadata.version(name) for name in ("safetensors", "fsspec")}
    assert {name: record.get(name) for name in versions} == versions
    vt.audit(tmp_path / "run", vt.load_job(tmp_path / "job/job.py")).require_accepted()


def test_versions_of_what_an_audit_did_not_come_to(tmp_path: Path, monkeypatch) -> None:
    """Other records end the audit before its own steps import what the header names."""
    record = 'return torch.full((3,), float(sys.modules["os"].environ.get("SHIFT", 0)) + i)'
    file = write(tmp_path / "job", record=record, loss='rate = 1.0; __import__("fs" + "spec")')
    vt.train(vt.load_job(file), tmp_path / "run", signer=KEY)
    monkeypatch.setenv("SHIFT", "1")
    report = vt.audit(tmp_path / "run", vt.load_job(file))
    assert report.verdict is vt.Verdict.REJECTED, report.verdict_line()


def test_a_package_without_metadata_is_named_by_its_files(
    site_folder: Path, tmp_path: Path
) -> None:
    """A folder that somebody copied to where Python keeps packages."""
    (site_folder / "package").mkdir()
    (site_folder / "package/__init__.py").write_text(GOOD)
    file = write(tmp_path / "job", top="import package\n", loss="rate = package.RATE")
    records = []
    for text in (GOOD, EVIL):
        (site_folder / "package/__init__.py").write_text(text)
        job = vt.load_job(file)
        records.append(environment(Program.build(job), job.dataset)["package"])
    assert all(record.startswith("files ") for record in records)
    assert records[0] != records[1]


# -- what people are told


def test_a_relative_import_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text(GOOD)
    with pytest.raises(vt.JobError, match=r"line 6: `from \.helper import RATE` .*leading dots"):
        vt.load_job(write(tmp_path, top="from .helper import RATE\n"))
    either = (
        "try:\n    from .helper import RATE\nexcept ImportError:\n    from helper import RATE\n"
    )
    assert rate_of(vt.load_job(write(tmp_path, top=either, loss="rate = RATE"))) == 0.25


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(vt.JobError, match="is a folder, and no file in it has `def job"):
        vt.load_job(tmp_path)
    write(tmp_path)
    (tmp_path / "unrelated.py").write_text("def other(): pass\n")
    (tmp_path / "broken.py").write_text("def job(:\n")
    with pytest.raises(vt.JobError, match=r"is a folder; name the job file in it: `.*/job\.py`$"):
        vt.load_job(tmp_path)
    (tmp_path / "second.py").write_text("def job(): pass\n")
    with pytest.raises(vt.JobError, match=r"name one job file in it: `.*job\.py`, `.*second\.py`"):
        vt.load_job(tmp_path)


def test_the_command_line_given_a_folder(tmp_path: Path) -> None:
    write(tmp_path)
    words = [sys.executable, "-m", "veritrain", "train", ".", "--out", "run"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "is a folder; name the job file in it: `job.py`" in " ".join(done.stderr.split())


@pytest.mark.parametrize(("name", "told"), [("job.txt", "'.txt'; rename it"), ("job", "'nothing'")])
def test_another_ending_of_the_name(name: str, told: str, tmp_path: Path) -> None:
    write(tmp_path).rename(tmp_path / name)
    with pytest.raises(vt.JobError, match=f"its name ends in {told}"):
        vt.load_job(tmp_path / name)


def test_a_syntax_error_in_a_module_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("x = 1\ndef broken(:\n")
    with pytest.raises(vt.JobError, match=r"helper\.py, line 2: invalid syntax"):
        vt.load_job(write(tmp_path, top=TOP))


def test_a_module_with_the_name_of_one_of_pythons(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text(GOOD)
    with pytest.raises(vt.JobError, match=r"colorsys\.py: has the name of the installed module"):
        vt.load_job(write(tmp_path, top="import colorsys\n"))


@pytest.mark.parametrize(
    ("source", "message"),
    [("none.txt", "got nothing of this name"), ("empty", "is a folder without Python files")],
)
def test_sources_that_are_none(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(vt.JobError, match=message):
        vt.load_job(write(tmp_path, more=f"sources=[{source!r}]"))


# -- hostile and unusual sources


DEEP = {
    "attributes": "x = a" + ".b" * 50_000 + "\n",
    "operators": "x = " + "-" * 50_000 + "1\n",
    "parentheses": "x = " + "(" * 50_000 + "\n",
    "sums": "x = 1" + " + 1" * 50_000 + "\n",
    "a zero byte": "x = 1\0\n",
}


@pytest.mark.parametrize("place", ["job", "helper"])
@pytest.mark.parametrize("case", DEEP)
def test_text_that_python_cannot_compile(case: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text(DEEP[case] if place == "helper" else GOOD)
    file = write(tmp_path, top=DEEP[case] if place == "job" else TOP)
    with pytest.raises(vt.JobError, match=rf"{place}\.py") as caught:
        vt.load_job(file)
    assert len(str(caught.value)) < 500
    file.rename(tmp_path / "other.py")
    with pytest.raises(vt.JobError, match="is a folder"):
        vt.load_job(tmp_path)


def test_an_import_of_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    long = "a" * 300
    file = write(tmp_path, loss=f"rate = 1.0\n    if not rate:\n        import {long}")
    assert set(commitment(vt.load_job(file))["sources"]) == {"job.py"}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a\0b", "a" * 300])
def test_sources_that_no_file_can_be_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(vt.JobError, match="sources: "):
        vt.load_job(write(tmp_path, more=f"sources=[{name!r}]"))


@pytest.mark.parametrize("other", ["data", "a\0b"])
def test_one_literal_that_names_no_code_leaves_the_others(other: str, tmp_path: Path) -> None:
    """The job imports what it names before it is known what it names indeed."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/words.txt").write_text("words")
    (tmp_path / "plugin.py").write_text(GOOD)
    code = f'dict(sources=[{other!r}]); importlib.import_module("plug" + "in")'
    job = vt.load_job(write(tmp_path, job=code, more="sources=['plugin.py']"))
    assert set(commitment(job)["sources"]) == {"job.py", "plugin.py"}  # type: ignore[arg-type]


def test_the_advice_says_that_sources_are_literal(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(GOOD)
    code = 'importlib.import_module("plugin"); names = ["plug" + "in.py"]'
    with pytest.raises(vt.JobError, match="written out as text in the job file"):
        vt.load_job(write(tmp_path, job=code, more="sources=names"))


def test_a_folder_stands_for_no_environment_and_no_copies(tmp_path: Path) -> None:
    others = [".venv/lib", ".ipynb_checkpoints", "lib/__pycache__", "env/lib", "lib/.git/hooks"]
    for folder in others:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "outside.py").write_text(EVIL)
    (tmp_path / "env/pyvenv.cfg").write_text("home = /usr\n")
    (tmp_path / "lib/.#helper.py").symlink_to("somebody@somewhere")  # an editor's lock
    (tmp_path / "lib/helper.py").write_text(GOOD)
    job = vt.load_job(write(tmp_path, more="sources=['.']"))
    assert set(commitment(job)["sources"]) == {"job.py", "lib/helper.py"}  # type: ignore[arg-type]
    job = vt.load_job(write(tmp_path, more="sources=['.venv']"))
    assert ".venv/lib/outside.py" in commitment(job)["sources"]  # type: ignore[operator]


def test_a_typed_job_whose_sources_are_a_folder(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/one.py").write_text("import two\n")
    (tmp_path / "lib/two.py").write_text(GOOD)
    code = (
        "import torch, veritrain as vt; from veritrain.job.sources import commitment\n"
        "job = vt.Job(model=lambda: torch.nn.Linear(1, 1), dataset=[torch.ones(1)] * 4,\n"
        "    loss=lambda model, batch: model(batch).sum(), batch_size=1, steps=1, seed=1,\n"
        "    optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1), sources=['lib'])\n"
        "print(sorted(commitment(job)['sources']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "['one.py', 'two.py']", done.stderr
