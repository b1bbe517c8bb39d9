"""`veritrain completion`: a script by which a shell completes commands, options and paths.

The script asks this program at each press of the key, by the variable `VARIABLE`: `answer` is what
the program then does in the place of a command.
"""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class, shell_complete

PROGRAM = "veritrain"
VARIABLE = "_VERITRAIN_COMPLETE"
_SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    short_help="Print a script for completion in a shell.",
    epilog="""\b
Examples:
  echo 'eval "$(veritrain completion bash)"' >> ~/.bashrc
  echo 'eval "$(veritrain completion zsh)"' >> ~/.zshrc
  veritrain completion fish > ~/.config/fish/completions/veritrain.fish

Bash needs version 4.4 or newer.""",
)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> int:
    """Print the script by which SHELL completes commands, options and paths."""
    completion = get_completion_class(shell)
    if completion is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    made = completion(context.find_root().command, {}, PROGRAM, VARIABLE)
    click.echo(made.source_template % made.source_vars())
    return 0


def answer(commands: click.Command) -> int | None:
    """Complete what the shell asks for; None where no shell asks."""
    instruction = os.environ.get(VARIABLE)
    if not instruction:
        return None
    return shell_complete(commands, {}, PROGRAM, VARIABLE, instruction)
