"""`hypergpu demo`: the whole system on this machine, in a minute."""

import asyncio
import json
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from common.errors import InvalidInput
from hypergpu.dashboard import History, Snapshot, dashboard
from hypergpu.demo import SIMULATED, Progress, demo_nodes, run_demo, without_adaptation
from hypergpu.report import write_report
from hypergpu.show import QUALITY_STYLE, counted, duration, new_table, styled
from hypergpu.simulation.compare import BASELINE, Comparison
from protos import coordinator_pb2 as pb

_DETAIL_EVERY = 5
"""Rounds between detailed statuses where there is no terminal for the dashboard."""


def demo(  # noqa: PLR0917  (one per option)
    nodes: Annotated[int, typer.Option(min=1, max=64, help="How many; links and cards are taken in turn.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="The network turns at 10, 15 and 20.")] = 25,
    task: Annotated[
        str, typer.Option(metavar="NAME", help="digits, mnist5k, chars, or your own as package.module:factory.")
    ] = "digits",
    seed: Annotated[int, typer.Option(min=0, help="Of parameters, samples and network.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the run is kept; runs/TIME by default.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, progress on standard error.")
    ] = False,
) -> None:
    """Train real handwritten digits on five unlike nodes behind five unlike links, all on this machine.

    Example: hypergpu demo --rounds 25 --out runs/first
    """
    run_dir = out or Path("runs") / time.strftime("%Y-%m-%d-%H%M%S")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"cannot write to {run_dir}: {error.strerror}") from error
    console = Console(stderr=as_json)
    console.print(
        f"starting a coordinator, a netsim proxy and {counted(nodes, 'node')}; the run is kept in {run_dir}",
        highlight=False,
        soft_wrap=True,
    )
    try:
        run = partial(run_demo, run_dir, demo_nodes(nodes), rounds, seed, task=task)
        summary = asyncio.run(_until_signalled(run, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print(
            f"interrupted: every process has ended, the run is kept in {run_dir}; `hypergpu report {run_dir}` makes a "
            "page of it",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    if not as_json:
        _print_summary(console, summary, run_dir)
    comparison = without_adaptation(run_dir, demo_nodes(nodes), rounds) if summary.get("rounds") else None
    baseline = run_dir / SIMULATED / BASELINE if comparison else None
    written = write_report(run_dir, baseline=baseline)
    if as_json:
        told = comparison.record() if comparison else None
        print(json.dumps(summary | {"comparison": told, "report": str(written.path)}, indent=2))
        return
    if comparison is not None:
        _print_comparison(console, comparison)
    console.print(f"report: {written.path}", highlight=False, soft_wrap=True)


async def _until_signalled(
    run: Callable[[Progress], Coroutine[Any, Any, dict[str, Any]]], console: Console
) -> dict[str, Any]:
    running = asyncio.current_task()
    assert running is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    if not console.is_terminal:
        return await run(_plain(console))
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(snapshot: Snapshot, history: History) -> None:
            live.update(dashboard(snapshot, history, min(console.height, 32)), refresh=True)

        return await run(Progress(snapshot=show))


def _plain(console: Console) -> Progress:
    detailed = 0

    def event(record: pb.RunEvent) -> None:
        console.print(f"{duration(record.seconds):>8}  {record.text}", markup=False, highlight=False, soft_wrap=True)

    def snapshot(now: Snapshot, _: History) -> None:
        nonlocal detailed
        if now.status.round // _DETAIL_EVERY > detailed:
            detailed = now.status.round // _DETAIL_EVERY
            for node in now.nodes:
                console.print(
                    f"          {node.node_id}: {node.state}, {node.quality} ({node.score:.0f}), {node.latency_ms:.0f}"
                    f" ms, loss {node.loss_rate:.0%}, batch {node.batch_size}, "
                    f"{counted(node.rounds_contributed, 'round')}",
                    highlight=False,
                    soft_wrap=True,
                )

    return Progress(event, snapshot)


def _print_comparison(console: Console, comparison: Comparison) -> None:
    """The run with and without adaptation, and how that is known."""
    console.print(
        "\n[b]What adaptation was worth:[/] this run once more in virtual time, with and without it, on the same"
        " links, events, data and seed, with the compute times that were measured",
        highlight=False,
        soft_wrap=True,
    )
    table = new_table("policy", f">to {comparison.target:.1%}", ">rounds", ">accuracy", ">round (median)", ">whole run")
    (candidate,) = comparison.candidates
    for result in (comparison.baseline, candidate.result):
        (outcome,) = result.outcomes
        reached = outcome.time_to_target_seconds
        table.add_row(
            "none (fixed baseline)" if result is comparison.baseline else outcome.policy,
            "never" if reached is None else duration(reached),
            str(outcome.rounds),
            f"{outcome.final_accuracy:.1%}",
            f"{1000 * median(outcome.round_seconds):.0f} ms",
            duration(outcome.seconds),
        )
    console.print(table)
    speedup = candidate.speedup.mean
    if speedup is not None:
        factor = max(speedup, 1 / speedup)
        word = "as soon" if factor < 1.005 else f"{factor:.2f} times {'sooner' if speedup > 1 else 'later'}"
        bound = " (at least: one of them never was)" if candidate.bounds else ""
        console.print(
            f"with adaptation, {comparison.target:.1%} accuracy is there [b]{word}[/]{bound}", highlight=False
        )


def _print_summary(console: Console, summary: dict[str, Any], run_dir: Path) -> None:
    table = new_table("node", "link", "card", "quality", ">seen", ">batch", ">rounds", ">retries", ">lost")
    for node in summary["nodes"].values():
        table.add_row(
            node["node_id"],
            node["profile"],
            node["gpu"],
            styled(node["quality"], QUALITY_STYLE),
            f"{node['latency_ms']:.0f} ms",
            str(node.get("batch_size", "")),
            str(node["rounds_contributed"]),
            str(node["retries"]),
            str(node["rpcs_lost"]),
        )
    console.print()
    console.print(table)
    for line in summary["network_events"]:
        console.print(f"  {line}", highlight=False)
    console.print(
        f"\n[b]{summary['state']}[/]: test accuracy [b]{summary['final_accuracy']:.1%}[/]"
        f" after {counted(summary['rounds'], 'round')} in {duration(summary['duration_seconds'])};"
        f" the run is kept in {run_dir}",
        highlight=False,
        soft_wrap=True,
    )
