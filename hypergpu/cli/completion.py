"""`hypergpu completion`: print the script of a shell's completion."""

from enum import StrEnum
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]  # as in its own `--show-completion`

from hypergpu.console import say


class Shell(StrEnum):
    """Shell that can complete commands."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="Shell that reads the script.")]) -> None:
    r"""Print the script with which a shell completes commands, options and values.

    For bash, put `eval "$(hypergpu completion bash)"` into ~/.bashrc; for zsh, the same with zsh into ~/.zshrc, after
    compinit; for fish, write the script to ~/.config/fish/completions/hypergpu.fish.

    Example: hypergpu completion bash
    """
    say(get_completion_script(prog_name="hypergpu", complete_var="_HYPERGPU_COMPLETE", shell=shell))
