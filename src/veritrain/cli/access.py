"""Options of commands that read a run at an HTTP address: a token, and trusted certificates."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)


def options(command: _Command) -> _Command:
    """Add `--token-file` and `--ca`. Their values go into the environment while the command runs:
    the processes that it starts need them too."""
    return _options("--token-file")(command)


def run_options(command: _Command) -> _Command:
    """The same for a command whose `--token-file` is another one: `--run-token-file` and `--ca`."""
    return _options("--run-token-file")(command)


def _options(name: str) -> Callable[[_Command], _Command]:
    token = click.option(
        name,
        "run_token_file",
        type=_FILE,
        expose_value=False,
        callback=_take_token,
        help="File with the bearer token of an HTTP address; default $VERITRAIN_TOKEN.",
    )
    ca = click.option(
        "--ca",
        type=_FILE,
        expose_value=False,
        callback=_take_ca,
        help=(
            "PEM file of the authority to trust for an HTTPS address; default $VERITRAIN_CA, "
            "or those of the system."
        ),
    )
    return lambda command: token(ca(command))


def _take_token(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        from veritrain.transcript.download import TOKEN_VARIABLE, read_token

        _set(context, TOKEN_VARIABLE, read_token(path))


def _take_ca(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        from veritrain.transcript.download import CA_VARIABLE

        _set(context, CA_VARIABLE, str(path))


def _set(context: click.Context, name: str, value: str) -> None:
    """Set a variable of the environment until the command ends."""
    before = os.environ.get(name)

    def restore() -> None:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before

    context.call_on_close(restore)
    os.environ[name] = value
