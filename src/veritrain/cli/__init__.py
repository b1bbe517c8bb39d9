"""The command line: `veritrain init`, `train`, `audit` and the others of `_SECTIONS`.

Results go to stdout and everything else to stderr. Exit codes: 0 done or accepted, 1 rejected or
(by `check`) refused or (by `doctor`) unwell, 2 bad usage or unreadable input, 3 inconclusive, 130
interrupted, 141 the reader of stdout went away. With `--json` stdout holds exactly one JSON object,
for errors too; that of a referee one for each verdict.

Modules of commands import click only; what is heavy (PyTorch, rich) loads inside the command that
needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from veritrain import __version__
from veritrain.cli import (
    audit,
    calibrate,
    check,
    completion,
    diff,
    dispute,
    doctor,
    export,
    init,
    key,
    keygen,
    output,
    referee,
    serve,
    show,
    train,
    verify_verdict,
    warmup,
)
from veritrain.cli.error_lines import describe
from veritrain.errors import UsageError, VeritrainError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
READER_GONE = 141  # 128 + SIGPIPE; neither "accepted" nor "rejected"

_HASH_SEED = "PYTHONHASHSEED"
_RUN_JOBS = frozenset(
    "calibrate check train audit diff export serve dispute referee verify-verdict warmup".split()
)
_SECTIONS = {
    "Before a run": (init, check, calibrate, keygen, key),
    "Train and audit": (train, audit, show, diff, export),
    "Over a network": (serve, dispute, referee, verify_verdict),
    "This program": (doctor, warmup, completion),
}


class _Sections(click.Group):
    """A group whose help lists commands by section."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list for each section, with columns of one width."""
        width = max(map(len, self.commands))
        limit = formatter.width - width - 6
        for title, modules in _SECTIONS.items():
            rows = [
                (str(module.command.name).ljust(width), module.command.get_short_help_str(limit))
                for module in modules
            ]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(
    cls=_Sections,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  veritrain init job.py
  veritrain check job.py
  veritrain train job.py --out runs/a
  veritrain audit runs/a --job job.py
  veritrain show runs/a

A job is an ordinary Python file with `def job() -> veritrain.Job`.
`veritrain COMMAND --help` shows a command's options and examples.""",
)
@click.version_option(__version__, message="veritrain %(version)s")
def commands() -> None:
    """Train PyTorch models so that others can check every step, bit for bit."""


for _modules in _SECTIONS.values():
    for _module in _modules:
        commands.add_command(_module.command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the only place where errors become messages and exit codes."""
    if arguments is None:
        if (answered := completion.answer(commands)) is not None:
            return answered
        _fix_hashes(sys.argv[1:])
    given = list(sys.argv[1:] if arguments is None else arguments)
    output.tolerate_any_text()
    try:
        code = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more as it ends; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    return code


def _fix_hashes(arguments: list[str]) -> None:
    """Start anew with PYTHONHASHSEED=0 where a job will run: the order of a set of text must be the
    same for the trainer, for every auditor and after --resume. It is fixed when Python starts."""
    runs_job = bool(_RUN_JOBS.intersection(arguments[:1])) and not {"-h", "--help"} & set(arguments)
    is_fixed = os.environ.get(_HASH_SEED) == "0" or sys.flags.ignore_environment
    if runs_job and not is_fixed and os.name == "posix" and sys.executable:
        words = [sys.executable, *sys.orig_argv[1:]]
        os.execve(words[0], words, {**os.environ, _HASH_SEED: "0"})  # noqa: S606 - ourselves


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        with commands.make_context("veritrain", list(arguments)) as context:
            return commands.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return UsageError.exit_code
    except click.ClickException as error:
        return output.fail(_usage(error), "UsageError", UsageError.exit_code, as_json=as_json)
    except (KeyboardInterrupt, click.Abort):
        return output.fail("interrupted", "Interrupted", INTERRUPTED, as_json=as_json)
    except BrokenPipeError:
        raise
    except VeritrainError as error:
        kind = type(error).__name__
        return output.fail(describe(error), kind, error.exit_code, as_json=as_json)
    except BaseException as error:  # whatever a job may raise must not look like a verdict
        kind = type(error).__name__
        return output.fail(describe(error), kind, UsageError.exit_code, as_json=as_json)


def _usage(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{message}; see {error.ctx.command_path} --help"
    return message
