"""`hypergpu simulate`: a scenario in virtual time."""

from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer

from hypergpu.cli.running import AsJson
from hypergpu.common.config.whole import LARGEST_COUNT, LARGEST_INTEGER
from hypergpu.common.errors import InvalidInput
from hypergpu.common.latest import point_latest
from hypergpu.common.metric import LOSS, plain_number
from hypergpu.report.model import natural
from hypergpu.show import counted, duration, new_table, print_json, print_table, progress_bar, say, size
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.run import simulate as run_scenario
from hypergpu.simulation.scenario_file import load_scenario, shipped

ScenarioFile = Annotated[
    str,
    typer.Argument(
        metavar="SCENARIO", help="A YAML file, or the name of a shipped scenario (see `hypergpu simulate --list`)."
    ),
]
_MOST_NODES = 20
_MOST_EVENTS = 5


def simulate(
    scenario: Annotated[
        str, typer.Argument(metavar="SCENARIO", help="A YAML file, or the name of a shipped scenario.")
    ] = "",
    *,
    listing: Annotated[bool, typer.Option("--list", help="Only list the shipped scenarios.")] = False,
    policy: Annotated[str | None, typer.Option(help="none, conservative, aggressive, reactive, proactive.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=LARGEST_INTEGER, help="Of links, data and parameters.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=LARGEST_COUNT, help="Rounds to train.")] = None,
    learning: Annotated[str | None, typer.Option(help="real: gradients; model: a model of convergence.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the run's files there, for a report.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario in virtual time: the same file and seed give the same result, to the byte.

    Example: hypergpu simulate mixed --policy none
    """
    if listing:
        _show_shipped(as_json)
        return
    if not scenario:
        raise InvalidInput("say which SCENARIO: a YAML file, or the name of one that `hypergpu simulate --list` shows")
    given: dict[str, Any] = {"policy": policy, "seed": seed, "rounds": rounds, "learning": learning}
    loaded = load_scenario(scenario).changed(**{k: v for k, v in given.items() if v is not None})
    total = loaded.config.training.rounds
    with progress_bar("rounds") as tell:
        outcome = run_scenario(loaded, out, progress=lambda number: tell(number - 1, total))
    if out is not None:
        point_latest(out)
    if as_json:
        print_json(outcome.record())
    else:
        say("\n".join(in_words(outcome)))
        _show_nodes(outcome)
        if out is not None:
            say(f"the run is in {out}; `hypergpu report {out}` makes a page of it")
    if outcome.given_up:
        say(f"hypergpu: the run was given up: {outcome.given_up}", error=True)
        raise typer.Exit(1)


def in_words(outcome: Outcome) -> list[str]:
    """What came of a run, one line for each thing to know."""
    nothing = "no round was closed, so that nothing was measured"
    metric, loss = outcome.metric, f"loss {plain_number(outcome.final_loss)}"
    measured = loss if metric == LOSS else f"{metric.label(outcome.final_metric)}, {loss}"
    lines = [
        f"{outcome.scenario}, policy {outcome.policy}, seed {outcome.seed}: {counted(outcome.rounds, 'round')} in "
        f"{duration(outcome.seconds)} of virtual time ({outcome.reason or outcome.state})",
        f"{measured if outcome.rounds else nothing}; {size(outcome.bytes)} moved in "
        f"{counted(outcome.messages, 'message')}",
    ]
    target, reached = outcome.target, outcome.time_to_target_seconds
    if target is not None and reached is not None:
        lines.append(f"{metric.label(target)} after {duration(reached)}")
    elif target is not None:
        lines.append(f"{metric.label(target)} was not reached; the best was {metric.text(outcome.best_metric)}")
    if outcome.metric_fault:
        lines.append(f"{outcome.metric_fault}: its values are undefined")
    for node, reasons in sorted(outcome.quarantined.items(), key=lambda item: natural(item[0])):
        lines.append(f"quarantine of {node}: {', '.join(reasons)}")
    missed = (shorten(event, 100, placeholder=" …") for event in outcome.events_missed[:_MOST_EVENTS])
    return [*lines, *(f"the run was over before {event}" for event in missed)]


def _show_shipped(as_json: bool) -> None:
    found = shipped()
    if as_json:
        print_json(found)
        return
    table = new_table("scenario", "what it shows")
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
