"""`hypergpu simulate`: run a scenario in virtual time."""

from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer

from hypergpu.api import scenario_of
from hypergpu.cli.scenario_argument import PolicyName, ScenarioName
from hypergpu.common.command_line import PREFIX
from hypergpu.common.errors import InvalidInput
from hypergpu.common.latest import point_latest
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.metric import LOSS
from hypergpu.common.options import FLAG, SEED, AsJson
from hypergpu.common.text import counted, duration, figure, natural_key, size
from hypergpu.console import new_table, print_json, print_table, progress_bar, say
from hypergpu.simulation.rehearsal.inline import simulate_with_rehearsals as run_scenario
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario_file import shipped

_MOST_NODES = 20
_MOST_EVENTS = 5


def simulate(
    scenario: ScenarioName = "",
    *,
    listing: Annotated[bool, typer.Option("--list", metavar=FLAG, help="List the shipped scenarios and exit.")] = False,
    policy: PolicyName = None,
    seed: Annotated[int | None, SEED] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=LARGEST_COUNT, metavar="N", help="Rounds to train.")] = None,
    learning: Annotated[
        str | None, typer.Option(metavar="KIND", help="real: compute gradients. model: a model of convergence.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run directory; by default the run is not kept.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario in virtual time: the same file and seed give the same result, to the byte.

    Example: hypergpu simulate mixed --policy none
    """
    if listing:
        _show_shipped(as_json)
        return
    if not scenario:
        raise InvalidInput("give a SCENARIO: a YAML file, or a name from `hypergpu simulate --list`")
    loaded = scenario_of(scenario, policy=policy, seed=seed, rounds=rounds, learning=learning)
    total = loaded.config.training.rounds
    with progress_bar("rounds") as tell:
        outcome = run_scenario(loaded, out, progress=lambda number: tell(number - 1, total))
    if out is not None:
        point_latest(out)
    if as_json:
        print_json(outcome.to_dict())
    else:
        say("\n".join(in_words(outcome)))
        _show_nodes(outcome)
        if out is not None:
            say(f"the run is in {out}; run `hypergpu report {out}` to render it")
    if outcome.given_up:
        say(f"{PREFIX}the run was aborted: {outcome.given_up}", error=True)
        raise typer.Exit(1)


def in_words(outcome: Outcome) -> list[str]:
    """Return the result of a run as lines of text."""
    nothing = "no round completed; nothing was measured"
    metric, loss = outcome.metric, f"loss {figure(outcome.final_loss)}"
    measured = loss if metric == LOSS else f"{metric.label(outcome.final_metric)}, {loss}"
    lines = [
        f"{outcome.scenario}, policy {outcome.policy}, seed {outcome.seed}: {counted(outcome.rounds, 'round')} in "
        f"{duration(outcome.seconds)} of virtual time ({outcome.reason or outcome.state})",
        f"{measured if outcome.rounds else nothing}; {size(outcome.bytes)} transferred in "
        f"{counted(outcome.messages, 'message')}",
    ]
    target, reached = outcome.target, outcome.time_to_target_seconds
    if target is not None and reached is not None:
        lines.append(f"{metric.label(target)} after {duration(reached)}")
    elif target is not None:
        lines.append(f"{metric.label(target)} was not reached; the best was {metric.text(outcome.best_metric)}")
    if outcome.metric_fault:
        lines.append(f"{outcome.metric_fault}: its values are undefined")
    for node, reasons in sorted(outcome.quarantined.items(), key=lambda item: natural_key(item[0])):
        lines.append(f"quarantine of {node}: {', '.join(reasons)}")
    missed = (shorten(event, 100, placeholder=" …") for event in outcome.events_missed[:_MOST_EVENTS])
    return [*lines, *(f"the run ended before {event}" for event in missed)]


def _show_shipped(as_json: bool) -> None:
    found = shipped()
    if as_json:
        print_json(found)
        return
    table = new_table("scenario", "description")
    table.columns[1].no_wrap = False
    for name, description in found.items():
        table.add_row(name, description)
    print_table(table)


def _show_nodes(outcome: Outcome) -> None:
    table = new_table("node", ">selected", ">contributed", ">late", ">retries", ">RPCs", ">lost", ">up", ">down")
    for row in outcome.nodes[:_MOST_NODES]:
        counts = (row.rounds_selected, row.rounds_contributed, row.late, row.retries, row.rpcs, row.rpcs_lost)
        table.add_row(row.node_id, *map(str, counts), size(row.bytes_up), size(row.bytes_down))
    print_table(table)
    if len(outcome.nodes) > _MOST_NODES:
        say(f"… and {counted(len(outcome.nodes) - _MOST_NODES, 'more node')}")
