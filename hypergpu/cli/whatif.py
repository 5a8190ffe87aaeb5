"""`hypergpu whatif`: predict what another policy or setting would change in a run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hypergpu.cli.estimates import interval
from hypergpu.cli.scenario_argument import PolicyName
from hypergpu.common.config import SystemConfig, load_config
from hypergpu.common.errors import InvalidInput
from hypergpu.common.latest import LATEST, RUNS, find_run
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.options import AsJson, Settings
from hypergpu.common.text import UNKNOWN, counted, duration, figure, percent, size
from hypergpu.console import new_table, print_json, print_table, progress_bar, say
from hypergpu.simulation.fork.fork import fork
from hypergpu.simulation.fork.state import read_state
from hypergpu.simulation.fork.whatif import Prediction, WhatIf, what_if
from hypergpu.simulation.statistics import Estimate

_POOR_FIT = 0.25
"""Error of a fork above which its predictions are worth little."""

RunDir = Annotated[
    Path, typer.Argument(metavar="RUN_DIR", help="Run directory, finished or not; by default the newest.")
]
Rounds = Annotated[int, typer.Option(min=2, max=10_000, metavar="N", help="Rounds to look ahead.")]
Window = Annotated[
    int,
    typer.Option(min=2, max=10_000, metavar="N", help="Last rounds of the run by which links and nodes are measured."),
]
At = Annotated[
    int, typer.Option("--at", min=0, max=LARGEST_COUNT, metavar="ROUND", help="Round to fork after; 0 = the last one.")
]
Seeds = Annotated[
    int, typer.Option(min=1, max=1000, metavar="N", help="Runs of each way; runs of one seed form a pair.")
]


def whatif(
    run_dir: RunDir = RUNS / LATEST,
    *,
    policy: PolicyName = None,
    setting: Settings = None,
    rounds: Rounds = 30,
    window: Window = 20,
    at: At = 0,
    seeds: Seeds = 3,
    as_json: AsJson = False,
) -> None:
    """Predict what another policy or setting would change in a run, and say what is not known.

    The run is forked into virtual time: its links and step times as its last rounds show them, and its place on the
    learning curve. It goes on there as it is and with the change; the run itself is left alone.

    Example: hypergpu whatif runs/first --policy none --set training.local_steps=40
    """
    if policy is None and not setting:
        raise InvalidInput("nothing to change: give --policy NAME or --set KEY=VALUE")
    found = find_run(run_dir)
    state = read_state(found, window, at)
    options = {} if policy is None else {"orchestrator.policy": policy}
    config = load_config(SystemConfig, found / "config.yaml", {}, setting or [], options)
    with progress_bar("runs") as progress:
        answer = what_if(fork(state), config, rounds=rounds, seeds=seeds, progress=progress)
    changes = [*([f"policy {policy}"] if policy else []), *(setting or [])]
    if as_json:
        print_json(_record(answer, changes))
    else:
        _show(answer, changes)


def _record(answer: WhatIf, changes: list[str]) -> dict[str, Any]:
    state = answer.fork.state
    measured = state.figures
    return {
        "run": state.name,
        "round": state.round,
        "changes": changes,
        "measured": {
            "seconds_per_round": measured.seconds_per_round,
            "bytes_per_round": measured.bytes_per_round,
            "samples_per_second": measured.samples_per_second,
        },
        "now": answer.now.to_dict(),
        "then": answer.then.to_dict(),
        "ratio": answer.ratio.to_dict(),
        "seconds_ahead": answer.seconds,
        "error_of_fork": answer.error,
        "unknown": _unknown(answer),
    }


def _show(answer: WhatIf, changes: list[str]) -> None:
    state = answer.fork.state
    after = f">after {duration(answer.seconds)}"
    table = new_table(
        state.name, ">seconds per round", ">bytes per round", ">samples per second", after,
        title=f"after round {state.round}, by its last {counted(len(state.rows), 'round')}; intervals at 95 %",
    )  # fmt: skip
    table.add_row("as it is", *_cells(answer, answer.now))
    table.add_row(", ".join(changes), *_cells(answer, answer.then))
    print_table(table)
    say(f"a round would take {interval(answer.ratio)} times as long: {_verdict(answer.ratio)}")
    for line in _unknown(answer):
        say(f"not known: {line}")


def _cells(answer: WhatIf, each: Prediction) -> list[str]:
    metric = UNKNOWN if each.metric.mean is None else answer.fork.metric.label(each.metric.mean)
    samples = figure(each.samples_per_second.mean, 3)
    return [interval(each.seconds_per_round), size(each.bytes_per_round.mean), samples, metric]


def _verdict(ratio: Estimate) -> str:
    if ratio.ci_low is None or ratio.ci_high is None:
        return "one pair says nothing about the noise"
    if ratio.ci_low <= 1 <= ratio.ci_high:
        return "within the noise"
    return "longer" if ratio.ci_low > 1 else "shorter"


def _unknown(answer: WhatIf) -> list[str]:
    found = answer.unknown
    if answer.error > _POOR_FIT:
        found.insert(0, f"the fork as it is was {percent(answer.error)} off the measured rounds: take this as a hint")
    return found
