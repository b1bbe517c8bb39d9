"""Kinds of arguments that several commands take."""

from __future__ import annotations

import os
import re

import click


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
