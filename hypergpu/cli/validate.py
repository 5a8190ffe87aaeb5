"""`hypergpu validate`: compare the simulator with real processes."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.cli.kernel_transfers import compare_transfers
from hypergpu.cli.scenario_argument import PolicyName
from hypergpu.cli.verdict import conclude
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.options import FLAG, AsJson
from hypergpu.common.text import counted
from hypergpu.console import say
from hypergpu.simulation.scenario_file import load_scenario
from hypergpu.simulation.validate import Agreement, Limits, RoundTimes
from hypergpu.simulation.validate import validate as run_both

ScenarioName = Annotated[str, typer.Argument(metavar="SCENARIO", help="A small scenario; by default the demo's.")]
Rounds = Annotated[int, typer.Option(min=1, max=LARGEST_COUNT, metavar="N", help="Rounds to train.")]
MostError = Annotated[float, typer.Option(min=0, metavar="SHARE", help="Maximum relative round-time error.")]
MostOwnError = Annotated[
    float, typer.Option(min=0, metavar="SHARE", help="The same of the median round with decisions of its own.")
]
LeastAgreement = Annotated[
    float, typer.Option(min=0, max=1, metavar="SHARE", help="Minimum mean share of matching selections.")
]
RunsDirectory = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Directory for the runs; by default they are not kept.")
]
KernelTcp = Annotated[
    bool, typer.Option("--kernel-tcp", metavar=FLAG, help="Compare transfers with the kernel's TCP instead.")
]
Samples = Annotated[
    int, typer.Option(min=2, max=1000, metavar="N", help="Connections by line and size, for --kernel-tcp.")
]


def validate(
    scenario: ScenarioName = "mixed",
    *,
    rounds: Rounds = 12,
    policy: PolicyName = None,
    most_error: MostError = 0.1,
    most_own_error: MostOwnError = 0.2,
    least_agreement: LeastAgreement = 0.75,
    out: RunsDirectory = None,
    kernel_tcp: KernelTcp = False,
    samples: Samples = 24,
    as_json: AsJson = False,
) -> None:
    """Run a scenario with real processes and in virtual time, and compare; the exit code is 1 if they differ.

    The exit code depends on the times of rounds when the simulator replays the real run's decisions, on the median
    time and the selected nodes when it makes its own, and on whether it beats predictors that know nothing of the
    network. Run this on an otherwise idle machine: whatever slows the real processes counts as the simulator's error.

    With --kernel-tcp, messages of three sizes travel over eight lines between two network namespaces, and a delay line
    takes the place of the proxy. The exit code is 1 if the link model is no closer than formulas. Needs Linux, and root
    or a user namespace with /dev/net/tun.

    Example: hypergpu validate mixed --rounds 12
    """
    if kernel_tcp:
        compare_transfers(samples, as_json=as_json)
        return
    loaded = load_scenario(scenario).changed(rounds=rounds, **({"policy": policy} if policy else {}))
    if out is not None:
        found = run_both(loaded, out)
    else:
        with tempfile.TemporaryDirectory(prefix="hypergpu-") as directory:
            found = run_both(loaded, Path(directory))
    limits = Limits(most_error, most_own_error, least_agreement)
    record = found.to_dict() | {"limits": asdict(limits)}
    conclude(record, found.failures(limits), lambda: _print(found), as_json=as_json)


def _print(found: Agreement) -> None:
    replayed, own, trivial = found.replayed, found.simulated, found.trivial
    say(f"{found.scenario}, policy {found.policy}: {counted(replayed.rounds, 'round')}, real and simulated\n")
    say("the real run's decisions, replayed")
    _print_times(replayed)
    say(f"  single rounds   {replayed.median_error:.1%} apart in the median, {replayed.worst_error:.0%} the worst")
    say(f"  for comparison  {trivial.mean_time_error:.1%} if every round took the mean time,", end="")
    say(f" {trivial.previous_time_error:.1%} if each took as long as the one before\n")
    say("the simulator's own decisions")
    _print_times(own)
    say(f"  single rounds   {own.median_error:.1%} apart in the median, {own.worst_error:.0%} the worst")
    say(f"  selected nodes  {found.selection_agreement:.1%} agreement;", end="")
    say(f" {trivial.everybody_agreement:.1%} if everybody were selected")
    say(f"  batch sizes     {found.batch_size_ratio:.2f} times the real ones in the median")
    text = found.metric.text
    say(f"  final {found.metric.name:9} {text(found.real_metric)} and {text(found.simulated_metric)}\n")
    say("taken from the real run: start times of its processes, times of computing and evaluating,")
    say(f"and {1000 * found.handling_seconds:.0f} ms of overhead per work unit (fitted)\n")


def _print_times(times: RoundTimes) -> None:
    say(f"  median round    {times.real_median_seconds:.3f} s and {times.simulated_median_seconds:.3f} s", end="")
    say(f": {times.error_of_median:.1%} apart")
