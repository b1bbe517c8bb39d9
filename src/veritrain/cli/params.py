"""Kinds of arguments that several commands take."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import click

from veritrain.cli import output

_OLD_NAME = "veritrain.workers"  # of a value that was given under it, in click's context


def processes(least: int, help: str) -> Callable[[Any], Any]:
    """The option `--processes`, with `least` as default; its old name `--workers` works too."""

    def renamed(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
        if value is not None:
            output.warn("--workers has a new name: --processes")
            ctx.meta[_OLD_NAME] = value

    def default() -> int:
        return click.get_current_context().meta.get(_OLD_NAME, least)

    def decorate(command: Any) -> Any:
        number = click.IntRange(least)
        command = click.option("--processes", type=number, default=default, help=help)(command)
        return click.option(
            "--workers",
            type=number,
            hidden=True,
            is_eager=True,
            expose_value=False,
            callback=renamed,
        )(command)

    return decorate


class Run(click.ParamType[str]):
    """The folder, HTTP address or fsspec URL of a run that should exist."""

    name = "run"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        text = str(value)
        if "://" not in text and "::" not in text and not os.path.isdir(text):
            self.fail(f"{text!r} is not a folder")
        return text


class StepRange(click.ParamType[tuple[int, int]]):
    """`a:b`, the first and the last step."""

    name = "a:b"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,15}):(\d{1,15})", str(value), re.ASCII)
        if match is None:
            self.fail(f"expected the first and the last step, 100:200 for example, got {value!r}")
        return int(match[1]), int(match[2])
