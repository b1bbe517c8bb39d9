"""`Job` refuses what it cannot use, `load_job` says where a job file fails, and the commitment
covers the files that define a job."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch.utils.data import IterableDataset, Subset

from tests import jobs
from veritrain import Job, JobError, load_job
from veritrain.job.data import Batches
from veritrain.job.sources import commitment, environment, source_files
from veritrain.job.step import Program

JOB_FILE = """
import veritrain as vt
from torch import nn, optim
import helper

def job():
    return vt.Job(
        model=lambda: nn.Linear(2, 1), dataset=helper.data, loss=lambda m, b: m(b).sum(),
        optimizer=lambda m: optim.SGD(m.parameters(), lr=0.1), batch_size=2, steps=3, seed=1,
    )
"""
HELPER = "import torch\nRATE = 0.1\ndef data():\n    import deep\n    return [torch.ones(2)] * 4\n"


class Stream(IterableDataset):
    def __iter__(self):
        return iter([1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.py").write_text(JOB_FILE)
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "deep.py").write_text("from package.inner import X\n")
    (tmp_path / "unrelated.py").write_text("1 / 0\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("from . import other\n")
    (tmp_path / "package/inner.py").write_text("X = 1\n")
    (tmp_path / "package/other.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", 3, "model: expected a function, got int"),
        ("loss", None, "loss: expected a function, got NoneType"),
        ("optimizer", "sgd", "optimizer: expected a function, got str"),
        ("scheduler", 1, "scheduler: expected a function"),
        ("collate", 1, "collate: expected a function"),
        ("batch_size", 0, "batch_size: expected an integer .* got 0"),
        ("batch_size", True, "batch_size: expected an integer .* got bool"),
        ("steps", 2.0, "steps: expected an integer .* got float"),
        ("seed", -1, "seed: .* got -1"),
        ("seed", 2**256, "seed: expected an integer with 0 <= seed < 2\\*\\*256"),
        ("accumulate", 3, "accumulate: expected a divisor of batch_size 8, got 3"),
        ("shards", 3, r"shards \* accumulate to divide batch_size 8, got 3 \* 2"),
        ("shards", 8, r"shards \* accumulate to divide batch_size 8, got 8 \* 2"),
        ("shards", 0, "shards: expected an integer with 1 <= shards"),
        ("shards", True, "shards: expected an integer"),
        ("shards", 4096, "shards: expected an integer with 1 <= shards"),
        ("checkpoint_every", 0, "checkpoint_every: .* got 0"),
        ("clip_norm", float("nan"), "clip_norm: expected a positive finite number"),
        ("clip_norm", float("inf"), "clip_norm"),
        ("clip_norm", True, "clip_norm"),
        ("numerics", "approximate", "numerics: .*approximate"),
        ("numerics", 1, "numerics: expected a name, got int"),
        ("dataset", 7, "dataset: expected a map-style data set"),
        ("dataset", Stream(), "dataset: .* iterable-style Stream"),
        ("sources", "a.txt", "sources: expected a list of paths, got str"),
        ("sources", [3], "sources: expected paths, got an item of type int"),
    ],
)
def test_refuses_bad_fields(field: str, value: object, message: str) -> None:
    with pytest.raises(JobError, match=message):
        jobs.make(**{field: value})


def test_seed_takes_all_256_bits() -> None:
    assert jobs.make(seed=2**256 - 1).settings["seed"] == b"\xff" * 32


def test_loads_a_job_file(folder: Path) -> None:
    job = load_job(folder / "job.py")
    assert isinstance(job, Job)
    assert job.origin == (folder / "job.py").resolve()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "expected a function `def job"),
        ("def job():\n    return 5", "must return a veritrain.Job, got int"),
        ("def job():\n    y = 2\n    y / 0", "line 3: `y / 0` raised ZeroDivisionError"),
        ("a = 1\nimport nowhere_to_be_found", "line 2: `import nowhere_to_be_found` raised"),
        ("a = 1\ndef job(:", "line 2: invalid syntax"),
        ("class E(BaseException): pass\nraise E(1)", "line 2: `raise E.1.` raised E: 1"),
        ("import sys\nsys.exit(0)", r"line 2: `sys.exit\(0\)` raised SystemExit: 0"),
        ("import sys\ndef job():\n    sys.exit(0)", r"line 3: `sys.exit\(0\)` raised SystemExit"),
        ("\x00", "job_bad.py: source code"),
    ],
)
def test_says_where_a_job_file_fails(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "job_bad.py").write_text(text)
    with pytest.raises(JobError, match=message):
        load_job(tmp_path / "job_bad.py")


def test_missing_job_file(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no such file"):
        load_job(tmp_path / "none.py")


def test_commitment_covers_imports_of_the_folder(folder: Path) -> None:
    sources = commitment(load_job(folder / "job.py"))["sources"]
    assert isinstance(sources, dict)
    assert sorted(sources) == [
        "deep.py", "helper.py", "job.py",
        "package/__init__.py", "package/inner.py", "package/other.py",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["job.py", "helper.py", "deep.py", "package/inner.py"])
def test_one_changed_line_changes_the_commitment(folder: Path, name: str) -> None:
    before = commitment(load_job(folder / "job.py"))
    (folder / name).write_text((folder / name).read_text() + "# other\n")
    after = commitment(load_job(folder / "job.py"))
    pairs = zip(before["sources"].items(), after["sources"].items(), strict=True)
    assert [old[0] for old, new in pairs if old != new] == [name]


def test_commitment_covers_named_sources(folder: Path) -> None:
    (folder / "job.py").write_text(JOB_FILE.replace("seed=1", "seed=1, sources=['words.txt']"))
    with pytest.raises(JobError, match="words.txt"):
        commitment(load_job(folder / "job.py"))
    (folder / "words.txt").write_text("a")
    assert "words.txt" in commitment(load_job(folder / "job.py"))["sources"]  # type: ignore[operator]


def test_commitment_is_the_same_anywhere(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("elsewhere")
    for file in source_files(load_job(folder / "job.py")):
        target = other / file.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    assert commitment(load_job(folder / "job.py")) == commitment(load_job(other / "job.py"))


def test_each_job_runs_the_modules_beside_it(folder: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("second")
    for name in ("job.py", "helper.py"):
        (other / name).write_text((folder / name).read_text())
    (other / "helper.py").write_text("import torch\ndef data():\n    return [torch.zeros(2)] * 4\n")
    first = Batches(load_job(folder / "job.py")).dataset[0]
    second = Batches(load_job(other / "job.py")).dataset[0]
    assert (first[0], second[0]) == (1, 0)
    with pytest.raises(JobError, match="was loaded from"):  # helper is now the second job's
        commitment(replace(load_job(other / "job.py"), origin=(folder / "job.py")))


def test_modules_beside_a_job_in_a_package_are_covered(folder: Path) -> None:
    """At run time the job's own folder comes first, whether or not it is a package."""
    (folder / "__init__.py").write_text("")
    helper = folder / "helper.py"
    before = load_job(folder / "job.py")
    names = set(commitment(before)["sources"])
    assert {"job.py", "helper.py", "deep.py", "package/inner.py"} <= names
    helper.write_text(HELPER.replace("0.1", "0.2"))
    assert load_job(folder / "job.py").dataset.__globals__["RATE"] == 0.2  # not a stale module


def test_packages_may_be_named_in_full_and_relatively(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "some_package"
    (package / "parts").mkdir(parents=True)
    for place in (package, package / "parts"):
        (place / "__init__.py").write_text("")
    (package / "job.py").write_text("import some_package.parts.one\n" + JOB_FILE)
    (package / "helper.py").write_text(HELPER.replace("import deep", "pass"))
    (package / "parts/one.py").write_text("from . import two\nfrom ..three import X\n")
    (package / "parts/two.py").write_text("")
    (package / "three.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = set(commitment(load_job(package / "job.py"))["sources"])
    found = {"helper.py", "three.py", "parts/__init__.py", "parts/one.py", "parts/two.py"}
    assert names == {"__init__.py", "job.py", *found}
    (package / "three.py").write_text("X = 2\n")
    load_job(package / "job.py")
    assert sys.modules["some_package.three"].X == 2


def test_a_local_file_may_not_hide_an_installed_module(folder: Path) -> None:
    (folder / "numpy.py").write_text("")
    (folder / "deep.py").write_text("import numpy\n")
    with pytest.raises(JobError, match=r"numpy\.py: has the name of the installed module"):
        load_job(folder / "job.py")
    assert str(folder.resolve()) not in sys.path


def test_a_job_of_a_script_commits_to_the_files_that_define_it() -> None:
    names = [file.name for file in source_files(jobs.make())]
    assert names == ["jobs.py"]
    names = [file.name for file in source_files(jobs.make(loss=lambda m, b: jobs.loss(m, b)))]
    assert sorted(names) == ["jobs.py", "test_job.py"]


def test_wrapped_data_sets_are_followed_and_cycles_end() -> None:
    class Local(jobs.Points):
        def __init__(self) -> None:
            super().__init__()
            self.me = [self] * 100

    wrapped = Subset(Local(), range(30))  # type: ignore[arg-type]
    names = [file.name for file in source_files(jobs.make(dataset=wrapped))]
    assert sorted(names) == ["jobs.py", "test_job.py"]


def test_a_job_without_files_asks_for_sources(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from tests import jobs\n"
        "from veritrain.job.sources import commitment\n"
        "build = lambda: jobs.Net()\n"
        "try: commitment(jobs.make(model=build))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, root], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("JobError sources: '<lambda>' is not defined in a file")
    assert "pass sources=" in done.stdout


def test_environment_names_versions() -> None:
    job = jobs.make()
    record = environment(Program.build(job), job.dataset)
    assert {"python", "torch", "numpy", "numba", "veritrain"} <= record.keys()


def test_import_loads_no_torch() -> None:
    code = "import sys, veritrain; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists() -> None:
    import veritrain

    assert all(getattr(veritrain, name) is not None for name in veritrain.__all__)
    with pytest.raises(AttributeError):
        _ = veritrain.no_such_name
