"""`veritrain export`: the weights of a run as a file for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from veritrain.cli import access, keys, output, params

if TYPE_CHECKING:
    from veritrain.models.exports import Export


@click.command(
    "export",
    short_help="Write the weights of a run to a file.",
    epilog="""\b
Examples:
  veritrain export runs/a -o model.safetensors
  veritrain export runs/a -o model.safetensors --step 200
  veritrain export https://host:8470 -o model.safetensors --key 0b9c...e1
  veritrain export runs/a -o folder --format hf --job job.py

Exit status: 0 written, 1 the run is not what its key signed,
2 bad usage or a folder that is not a readable run.""",
)
@click.argument("run", type=params.Run())
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    help="File to make; with --format hf, folder.",
)
@click.option(
    "--step",
    type=click.IntRange(0),
    metavar="N",
    help="Of a stored state. [default: the last one]",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["safetensors", "hf"]),
    default="safetensors",
    show_default=True,
    help="One file, or a folder for from_pretrained of transformers.",
)
@click.option(
    "--job",
    type=click.Path(path_type=Path),
    help="The job file of the run, which is executed; hf needs it.",
)
@click.option("--key", metavar="HEX", help="Public key or fingerprint of the trainer you expect.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@access.options
@output.json_option
def command(
    run: str,
    out: Path,
    step: int | None,
    kind: Literal["safetensors", "hf"],
    job: Path | None,
    key: str | None,
    force: bool,
    as_json: bool,
) -> int:
    """Write the weights of RUN, a folder, HTTP address or fsspec URL, to a file for others.

    They are verified as they are read: signatures, chain, and the digest of each tensor. Whether
    the job was followed is for `veritrain audit` to say. Without --job nothing is executed.
    """
    from veritrain.job.load import load_job
    from veritrain.models.exports import export

    trusted = None if key is None else keys.trusted(key)
    with output.only_results_on_stdout():
        made = export(
            run,
            out,
            step=step,
            format=kind,
            job=None if job is None else load_job(job),
            force=force,
            trusted_key=trusted,
        )
    output.emit(_data(made), _lines(made), as_json=as_json)
    return 0


def _data(made: Export) -> dict[str, object]:
    return {
        "path": str(made.path),
        "step": made.step,
        "tensors": made.tensors,
        "bytes": made.bytes,
        "run": made.run,
        "digest": made.root,
        "key": made.key,
    }


def _lines(made: Export) -> list[output.Line]:
    return [
        f"file    {output.escape(str(made.path))}, {made.bytes:,} bytes",
        f"step    {made.step}, {made.tensors} tensors",
        f"run     {made.run.hex()}",
        f"digest  {made.root.hex()}",
        f"key     {made.key}",
    ]
