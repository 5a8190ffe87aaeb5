"""`hypergpu demo`: the whole system on this machine, in a minute."""

import asyncio
import json
import math
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import structlog
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from hypergpu.cli.demo_progress import Level, shown, steps
from hypergpu.common import strict_json
from hypergpu.common.errors import InvalidInput
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.metric import ACCURACY, LOSS, MetricSpec
from hypergpu.common.options import FLAG, AsJson, Seed
from hypergpu.common.task_names import choices
from hypergpu.common.text import UNKNOWN, counted, duration, figure, milliseconds, number
from hypergpu.console import QUALITY_STYLE, PlainConsole, new_table, print_table, say, styled
from hypergpu.demo import Progress, demo_nodes, demo_turns, run_demo, without_adaptation
from hypergpu.report import Report, write_report
from hypergpu.report.model import Run
from hypergpu.simulation.compare import Comparison

log = structlog.get_logger()
_ROUNDS = 25
"""Rounds of a demo: enough for its three network events."""
_STAYING = (
    "the cluster trains until Ctrl-C; in another terminal, `hypergpu status --watch` shows it and "
    "`hypergpu --help` lists the commands that inspect and control it"
)


def demo(  # noqa: PLR0917  (one per option)
    nodes: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Number of nodes; GPUs and links repeat in order.")
    ] = 5,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=LARGEST_COUNT,
            metavar="N",
            help="Rounds to train; by default 25, with --stay no limit. Network events occur at rounds 10, 15 and 20.",
        ),
    ] = None,
    task: Annotated[str, typer.Option(metavar="NAME", help=f"Task to train: {choices()}.")] = "digits",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory; by default runs/TIME.")] = None,
    stay: Annotated[
        bool, typer.Option("--stay", metavar=FLAG, help="Keep the cluster until Ctrl-C, to inspect and control it.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", metavar=FLAG, help="Print only the result.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", metavar=FLAG, help="Print every event and decision.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train real handwritten digits on five different simulated GPUs on five different links, all on this machine.

    Example: hypergpu demo --rounds 25 --out runs/first
    """
    if quiet and verbose:
        raise InvalidInput("give either --quiet or --verbose")
    level = Level.QUIET if quiet else Level.VERBOSE if verbose else Level.NORMAL
    run_dir = out or Path("runs") / time.strftime("%Y-%m-%d-%H%M%S")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"cannot write to {run_dir}: {error.strerror}") from error
    console = PlainConsole(stderr=as_json)
    planned = rounds or (0 if stay else _ROUNDS)
    if level is not Level.QUIET:
        _say(console, f"starting a coordinator, a netsim proxy and {counted(nodes, 'node')}; the run is in {run_dir}")
    try:
        run = partial(run_demo, run_dir, demo_nodes(nodes), planned, seed, task=task, stay=stay)
        turns = [turn for turn in demo_turns(demo_nodes(nodes)) if turn.round <= (planned or math.inf)]
        if stay:
            _say(console, _STAYING)
        with shown(console, level, turns) as progress:
            summary = asyncio.run(_until_signalled(run, progress))
    except (KeyboardInterrupt, asyncio.CancelledError):
        if stay:
            _print_stayed(console, run_dir, level, as_json)
            return
        how = f"every process has ended, the run is kept in {run_dir}; `hypergpu report {run_dir}` makes a page of it"
        _say(console, f"interrupted: {how}")
        raise typer.Exit(130) from None
    written = write_report(run_dir)  # before the comparison, which may take long and may fail
    if not as_json:
        _print_summary(console, summary, written.run, run_dir, level)
    compares = summary.get("rounds") and not stay
    comparison = _compared(console, level, run_dir, nodes, planned) if compares else None
    if comparison is not None:
        written = write_report(run_dir)
    verdict = _verdict(written)
    if as_json:
        told = None if comparison is None else comparison.record() | {"verdict": verdict}
        say(strict_json.dumps(summary | {"comparison": told, "report": str(written.path)}, indent=2))
        return
    if comparison is not None:
        _print_comparison(console, comparison, level)
        _say(console, verdict)
    _say(console, f"report: {written.path}")


async def _until_signalled(
    run: Callable[[Progress], Coroutine[Any, Any, dict[str, Any]]], progress: Progress
) -> dict[str, Any]:
    running = asyncio.current_task()
    assert running is not None
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signal_number, running.cancel)
    return await run(progress)


def _print_stayed(console: Console, run_dir: Path, level: Level, as_json: bool) -> None:
    """Print the result of a cluster that ran until Ctrl-C."""
    written = write_report(run_dir)
    file = run_dir / "summary.json"
    summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if as_json:
        say(strict_json.dumps(summary | {"comparison": None, "report": str(written.path)}, indent=2))
        return
    if "state" in summary:
        _print_summary(console, summary, written.run, run_dir, level)
    _say(console, f"report: {written.path}")


def _compared(console: Console, level: Level, run_dir: Path, nodes: int, rounds: int) -> Comparison | None:
    """The run with and without adaptation in virtual time; None, with a word on why, if that does not work."""
    try:
        with steps(console, level, "comparing with and without adaptation in virtual time") as tell:
            return without_adaptation(run_dir, demo_nodes(nodes), rounds, tell)
    except KeyboardInterrupt:
        _say(console, f"interrupted: the run and its report are in {run_dir}, without the comparison")
        raise typer.Exit(130) from None
    except Exception as error:  # runs the user's task; the run itself is over and its report is written
        log.debug("the comparison failed", exc_info=True)
        what = " ".join(str(error).split()) or type(error).__name__
        _say(console, f"no comparison with and without adaptation: {what}")
        return None


def _verdict(written: Report) -> str:
    """What the report says of the comparison; empty if there is none."""
    return "" if written.against is None else written.against.sentence(written.run)


def _print_comparison(console: Console, comparison: Comparison, level: Level) -> None:
    """The run with and without adaptation, and how that is known."""
    if level is Level.QUIET:
        return
    console.print(Text("\nWhat adaptation was worth, simulated", "bold"))
    _say(
        console,
        "this run once more in virtual time, with and without adaptation, on the same links, events, data and seed,"
        " with the compute times that were measured",
    )
    metric = comparison.metric
    headings = (
        f">to {comparison.timed_by.label(comparison.target)}",
        ">rounds",
        f">{metric.name}",
        ">round (median)",
        ">whole run",
    )
    table = new_table("policy (simulated)", *headings)
    (candidate,) = comparison.candidates
    for result in (comparison.baseline, candidate.result):
        (outcome,) = result.outcomes
        reached = outcome.time_to_target_seconds
        table.add_row(
            "none (fixed baseline)" if result is comparison.baseline else outcome.policy,
            "never" if reached is None else duration(reached),
            str(outcome.rounds),
            metric.text(outcome.final_metric),
            f"{1000 * median(outcome.round_seconds):.0f} ms" if outcome.round_seconds else UNKNOWN,
            duration(outcome.seconds),
        )
    print_table(table, console)


def _print_summary(console: Console, summary: dict[str, Any], run: Run, run_dir: Path, level: Level) -> None:
    if level is not Level.QUIET:
        table = new_table("node", "link", "card", "quality", ">seen", ">batch", ">rounds", ">retries", ">lost")
        for node in summary["nodes"].values():
            table.add_row(
                node["node_id"],
                node["profile"],
                node["gpu"],
                styled(node["quality"], QUALITY_STYLE),
                milliseconds(node["latency_ms"]),
                number(node.get("batch_size")),
                str(node["rounds_contributed"]),
                str(node["retries"]),
                str(node["rpcs_lost"]),
            )
        console.print()
        print_table(table, console)
        for line in summary["network_events"]:
            _say(console, f"  {line}")
        console.print()
    # As in the report: from the beginning of the first round, without the wait for the nodes.
    seconds = run.ended_at if run.rounds else summary["duration_seconds"]
    took = f"after {counted(summary['rounds'], 'round')} in {duration(seconds)}"
    _say(console, f"{summary['state']}: {_figures(summary)} {took}; the run is kept in {run_dir}")


def _figures(summary: dict[str, Any]) -> str:
    """The last evaluation: test accuracy 97.7 %, loss 0.09."""
    try:
        metric = MetricSpec.model_validate(summary.get("metric", {}))
    except ValidationError:
        metric = ACCURACY
    loss = f"loss {figure(summary.get('final_loss'))}"
    return f"test {loss}" if metric == LOSS else f"test {metric.label(summary.get(f'final_{metric.name}'))}, {loss}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
