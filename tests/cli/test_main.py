"""The shell around all commands: help, errors as one line, exit codes, JSON, pipes, Ctrl-C."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys

import pytest

from veritrain import errors
from veritrain.cli import commands, main, output, show
from veritrain.cli.error_lines import describe


def test_help_of_every_command_has_examples(call):
    for words in ([], ["key", "show"], *([name] for name in commands.commands)):
        code, out, _ = call(*words, "--help")
        assert code == 0
        assert "Examples:" in out
        assert call(*words, "-h")[1] == out


def test_no_arguments_show_the_help(call):
    code, out, err = call()
    assert (code, out) == (2, "")
    assert "Before a run:" in err


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["check"],
        ["check", "no-such-job.py"],
        ["check", "job.py", "--records", "0"],
        ["check", "job.py", "--records", "all"],
        ["train"],
        ["train", "job.py"],
        ["train", "job.py", "--out", "x", "--processes", "-1"],
        ["train", "no-such-job.py", "--out", "x"],
        ["audit", "no-such-run"],
        ["audit", "no-such-run", "--job", "no-such-job.py"],
        ["audit", "x", "--job", "job.py", "--steps", "5"],
        ["audit", "x", "--job", "job.py", "--sample", "0"],
        ["show", "no-such-run"],
        ["show", "nonsense://run"],
        ["show", "x", "--colour"],
        ["show", "http://127.0.0.1:1/run"],
        ["show", "http://user@host/run"],
        ["serve"],
        ["serve", "no-such-run"],
        ["serve", ".", "--port", "-1"],
        ["serve", ".", "--job", "job.py"],
        ["serve", ".", "--key", "trainer.key"],
        ["serve", ".", "--referee", "0" * 32],
        ["referee"],
        ["referee", "runs/a", "--job", "job.py", "--key", "no.key"],
        ["referee", "http://127.0.0.1:1", "--job", "job.py"],
        ["referee", "http://127.0.0.1:1", "--key", "no.key"],
        ["referee", "http://127.0.0.1:1", "--job", "x", "--key", "y", "--deadline-answer", "0"],
        ["dispute", "."],
        ["dispute", ".", "--referee", "http://127.0.0.1:1", "--job", "job.py"],
        ["dispute", ".", "--referee", "http://127.0.0.1:1", "--job", "x", "--key", "no.key"],
        ["dispute", "no-such-run", "--referee", "http://h", "--job", "x", "--key", "y"],
        ["dispute", ".", "--referee", "http://h", "--job", "x", "--key", "y", "--step", "-1"],
        ["verify-verdict"],
        ["show", "x" * 300],
        ["check", "x" * 300],
        ["audit", ".", "--job", "x" * 300],
        ["train", "x" * 300, "--out", "y"],
        ["key", "show", "x" * 300],
        ["key", "show", "no-such-key"],
        ["key", "shwo"],
        ["export", "x" * 300, "-o", "y"],
        ["export", "no-such-run", "-o", "y"],
        ["export", ".", "-o", "y"],
        ["export", ".", "-o", "y", "--format", "onnx"],
        ["export", ".", "-o", "y", "--step", "last"],
        ["init", "x" * 300],
        ["init", "job.txt"],
        ["verify-verdict", "no-such-file"],
        ["verify-verdict", "x", "--key", "0" * 64],
        ["verify-verdict", "x", "--referee", "word"],
        ["verify-verdict", "--equivocation", "x", "y"],
        ["verify-verdict", "--equivocation", "x", "y", "--key", "0" * 32],
        ["verify-verdict", "--equivocation", "x", "y", "--key", "0" * 64],
        ["verify-verdict", "--equivocation", "x", "y", "--key", "0" * 64, "--run", "0" * 64],
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(call, call_json, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert err.startswith("veritrain: ")
    assert err.count("\n") == 1
    code, data = call_json(*words)
    assert code == data["exit_code"] == 2
    assert data["error"]["message"] in err


def test_version(call):
    assert call("--version")[1] == "veritrain 0.2.0\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.VeritrainError("x"), 2),
        (errors.TranscriptError("header", "x"), 2),
        (errors.VerificationError("x"), 1),
        (errors.InconclusiveError("x"), 3),
        (RuntimeError("two\nlines \x1b[31m"), 2),
        (SystemExit(0), 2),
        (SystemExit(), 2),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
    ],
)
def test_every_error_has_its_exit_code(monkeypatch, capfd, error, code):
    def raise_error(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(show.command, "callback", raise_error)
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # of a broken pipe: stdout is the test's
    assert main(["show", "."]) == code
    err = capfd.readouterr().err
    assert err.count("\n") == (0 if code == 141 else 1)
    assert "\x1b" not in err


def test_an_error_of_the_users_code_shows_the_users_line(call, tmp_path, folder):
    text = (folder / "job.py").read_text()
    job = tmp_path / "job.py"
    job.write_text(text.replace("model(batch[0])", "model(batch[7])"))
    code, _, err = call("train", job, "--out", tmp_path / "run", "--key", folder / "trainer.key")
    assert code == 2
    assert "IndexError" in err
    assert f"{job}, line 17: return F.cross_entropy(model(batch[7]), batch[1])" in err


REFUSED_PARTS = """

class Fft(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).abs()


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return torch.special.i0(grad)


class Descent(torch.optim.SGD):
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.data.sub_(torch.special.i0(parameter.grad))


def loss_in_square(model, batch):
    return Square.apply(model(batch[0])).sum()
"""


@pytest.mark.parametrize(
    ("old", "new", "place", "line"),
    [
        (
            "nn.ReLU()",
            "nn.Sequential(nn.ReLU(), Fft())",
            "in module 2.1 of Sequential",
            "return torch.fft.fft(x).abs()",
        ),
        (
            "nn.ReLU()",
            "nn.Hardshrink()",
            "in module 2 of Sequential",
            "return F.cross_entropy(model(batch[0]), batch[1])",
        ),
        ("loss=loss", "loss=loss_in_square", "in the backward pass", "torch.special.i0(grad)"),
        (
            "torch.optim.SGD(model",
            "Descent(model",
            "in the step of Descent",
            "parameter.data.sub_(",
        ),
    ],
)
def test_a_refused_operator_is_found_in_the_users_code(
    call, tmp_path, folder, old, new, place, line
):
    job = tmp_path / "job.py"
    job.write_text((folder / "job.py").read_text().replace(old, new) + REFUSED_PARTS)
    number = next(n for n, text in enumerate(job.read_text().splitlines(), 1) if line in text)
    code, _, err = call("train", job, "--out", tmp_path / "run", "--key", folder / "trainer.key")
    assert code == 2
    assert "has no rule under exact numerics" in err
    assert place in err
    assert f"{job}, line {number}: " in err
    assert line in err


def test_an_error_of_our_own_says_so():
    with pytest.raises(ValueError) as caught:
        json.loads("{")
    error = caught.value
    error.__traceback__ = error.__traceback__.tb_next  # as if no frame were the user's
    assert "please report it" in describe(error)


def test_stdout_is_for_results(capfd):
    with output.only_results_on_stdout():
        print("from Python")
        subprocess.run(["echo", "from a process"], check=True)
    print("result")
    out, err = capfd.readouterr()
    assert out == "result\n"
    assert "from Python" in err
    assert "from a process" in err


def test_a_reader_that_goes_away_is_not_a_verdict(folder):
    words = shlex.join([sys.executable, "-m", "veritrain.cli", "show", f"{folder}/run"])
    script = f"{{ {words}; echo $? >&2; }} | true"
    for _ in range(3):  # the reader usually ends first
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        if done.stderr != "0\n":
            break
    assert done.stderr == "141\n"


def test_ctrl_c_says_how_to_go_on_and_loses_nothing(call_json, folder, tmp_path):
    """The job itself sends the signal, in its third step and only once."""
    text = (folder / "job.py").read_text()
    once = (
        "    if not marker.exists() and next(calls) == 2:\n"
        "        marker.touch()\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
    )
    head = (
        "import itertools, os, pathlib, signal\n"
        f"marker, calls = pathlib.Path({str(tmp_path / 'marker')!r}), itertools.count()\n"
    )
    job, key, run = tmp_path / "job.py", folder / "trainer.key", tmp_path / "run"
    start = "def loss(model, batch):\n"
    job.write_text(head + text.replace(start, start + once))
    words = [sys.executable, "-m", "veritrain.cli", "train", job, "--out", run, "--key", key]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "interrupted, recorded up to step 3; go on with" in done.stderr
    advice = shlex.split(done.stderr.rpartition("go on with: ")[2])
    code, resumed = call_json(*advice[1:])
    assert code == 0
    code, again = call_json("train", job, "--out", tmp_path / "again", "--key", key)
    assert (code, resumed["digest"]) == (0, again["digest"])


@pytest.mark.parametrize("place", ["top", "job", "loss", "model"])
def test_a_job_that_exits_is_an_error(call, tmp_path, folder, place):
    text = (folder / "job.py").read_text()
    if place == "top":
        text += "\nimport sys; sys.exit(0)\n"
    else:
        text = text.replace(
            f"def {place}(", f"def {place}(*_):\n    raise SystemExit\ndef _{place}("
        )
    (tmp_path / "job.py").write_text(text)
    key = folder / "trainer.key"
    code, out, err = call("train", tmp_path / "job.py", "--out", tmp_path / "run", "--key", key)
    assert (code, out) == (2, "")
    assert "raised SystemExit" in err
    assert "please report" not in err


SET_ORDER = """
print("order:", [*{*"abcdefghijklmnop"}], "seed:", __import__("os").environ["PYTHONHASHSEED"])
"""


SEEDS, COMMANDS = (None, "random", "5"), ("check", "train", "audit")
PAIRS = list(zip(COMMANDS, SEEDS, strict=True))  # each command and each seed once


@pytest.mark.parametrize(
    ("command", "seed"),
    [
        pytest.param(*pair, marks=[] if pair in PAIRS else [pytest.mark.long])
        for pair in itertools.product(COMMANDS, SEEDS)
    ],
)
def test_the_order_of_sets_is_fixed_before_a_job_runs(folder, tmp_path, command, seed):
    job = tmp_path / "job.py"
    job.write_text((folder / "job.py").read_text() + SET_ORDER + "\nraise SystemExit\n")
    words = {
        "check": ["check", job],
        "train": ["train", job, "--out", "x"],
        "audit": ["audit", folder / "run", "--job", job],
    }[command]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"}
    environment |= {"VERITRAIN_KEY": str(folder / "trainer.key")}
    environment |= {} if seed is None else {"PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, "-m", "veritrain.cli", *words],
        env=environment,
        capture_output=True,
        text=True,
    )
    fixed = subprocess.run(
        [sys.executable, "-c", SET_ORDER],
        env={**environment, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert fixed.stdout in done.stderr
    assert fixed.stdout.endswith("seed: 0\n")


@pytest.mark.parametrize(
    "words", [["show", "x"], ["keygen", "-h"], ["train", "--help"], [], ["-h"]]
)
def test_other_commands_do_not_start_anew(monkeypatch, words):
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started anew"))
    monkeypatch.setenv("PYTHONHASHSEED", "5")
    monkeypatch.setattr(sys, "argv", ["veritrain", *words])
    main()
