"""The argument that names a scenario."""

from typing import Annotated, Final

import typer

SCENARIO: Final = typer.Argument(
    metavar="SCENARIO", help="YAML file, or name of a shipped scenario (see `hypergpu simulate --list`)."
)
ScenarioName = Annotated[str, SCENARIO]
