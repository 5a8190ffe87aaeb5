"""`hypergpu init`: make a project with a task, its settings and its test."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.common.files import shown
from hypergpu.common.options import AsJson
from hypergpu.console import print_json, say
from hypergpu.project import COMMANDS, make_project


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the project: a new or an empty one.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Make a project: a task that trains, its settings, and a test. Replace its model and data with your own.

    Example: hypergpu init my-project
    """
    made = make_project(directory)
    if as_json:
        print_json({"files": [str(file) for file in made], "commands": [command for command, _ in COMMANDS]})
        return
    say(f"made {', '.join(file.name for file in made)} in {shown(directory)}; next:")
    width = max(len(command) for command, _ in COMMANDS)
    say(f"  cd {shlex.quote(str(directory))}")
    for command, text in COMMANDS:
        say(f"  {command:{width}}   # {text}")
