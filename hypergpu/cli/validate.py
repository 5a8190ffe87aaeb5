"""`hypergpu validate`: the simulator against reality."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.cli.running import AsJson
from hypergpu.show import counted, print_json
from hypergpu.simulation.scenario_file import load_scenario
from hypergpu.simulation.validate import validate as run_both


def validate(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="A small one; by default the demo's.")] = "mixed",
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to train.")] = 12,
    policy: Annotated[str | None, typer.Option(help="none, conservative, aggressive, reactive, proactive.")] = None,
    most_error: Annotated[float, typer.Option(min=0, help="Error of the median round time that passes.")] = 0.1,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep both runs there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario by real processes and in virtual time, and compare; the exit code is 1 where they disagree."""
    loaded = load_scenario(scenario).changed(rounds=rounds, **({"policy": policy} if policy else {}))
    if out is not None:
        found = run_both(loaded, out)
    else:
        with tempfile.TemporaryDirectory(prefix="hypergpu-") as directory:
            found = run_both(loaded, Path(directory))
    passed = found.round_time_error <= most_error
    if as_json:
        print_json(found.record() | {"passed": passed})
    else:
        print(f"{counted(found.rounds, 'round')} of {loaded.name}, real and simulated")
        print(f"median round    {found.real_round_seconds:.3f} s and {found.simulated_round_seconds:.3f} s: ", end="")
        print(f"{found.round_time_error:.1%} apart, {'pass' if passed else 'FAIL'} at {most_error:.0%}")
        print(f"single rounds   {found.per_round_error:.1%} apart (median)")
        print(f"who took part   {found.selection_agreement:.0%} agreement")
        print(f"final accuracy  {found.real_accuracy:.4f} and {found.simulated_accuracy:.4f}")
    if not passed:
        raise typer.Exit(1)
