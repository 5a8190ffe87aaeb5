"""Arguments that name a scenario and the policy that runs it."""

from typing import Annotated, Final

import typer

from hypergpu.common.strategies import AdaptationPolicy

SCENARIO: Final = typer.Argument(
    metavar="SCENARIO", help="YAML file, or name of a shipped scenario (see `hypergpu simulate --list`)."
)
ScenarioName = Annotated[str, SCENARIO]
PolicyName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"Policy, instead of the scenario's: {', '.join(AdaptationPolicy)}."),
]
