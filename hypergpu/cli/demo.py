"""`hypergpu demo`: run the whole system on this machine, in a minute."""

import asyncio
import math
import signal
import time
import webbrowser
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import structlog
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from hypergpu.cli.demo_progress import Level, progress_of_run, steps
from hypergpu.common import strict_json
from hypergpu.common.config import SystemConfig
from hypergpu.common.config.loading import load_config
from hypergpu.common.errors import InvalidInput
from hypergpu.common.latest import RUNS
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.metric import ACCURACY, LOSS, MetricSpec
from hypergpu.common.options import FLAG, AsJson, Open, Seed, Settings
from hypergpu.common.task_names import choices
from hypergpu.common.text import UNKNOWN, counted, duration, figure, milliseconds, number
from hypergpu.console import QUALITY_STYLE, PlainConsole, new_table, print_table, say, styled
from hypergpu.demo import demo_changes, demo_nodes, run_demo, without_adaptation
from hypergpu.local_run import Progress, read_summary
from hypergpu.report import Report, write_report
from hypergpu.report.model import Run
from hypergpu.simulation.comparison import Comparison

log = structlog.get_logger()
_ROUNDS = 25
"""Default number of rounds, enough for the three network events."""
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
    settings: Settings = None,
    stay: Annotated[
        bool, typer.Option("--stay", metavar=FLAG, help="Keep the cluster until Ctrl-C, to inspect and control it.")
    ] = False,
    opens: Open = False,
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
    further = _checked(settings or [])
    run_dir = _made(out or RUNS / time.strftime("%Y-%m-%d-%H%M%S"))
    planned = rounds or (0 if stay else _ROUNDS)
    shown = _Demo(PlainConsole(stderr=as_json), level, run_dir, nodes, planned, as_json, opens)
    summary = shown.train(task, seed, further, stay=stay)
    if summary is None:
        shown.report_stayed()
    else:
        shown.report(summary, compare=bool(summary.get("rounds")) and not stay)


def _made(run_dir: Path) -> Path:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"cannot write to {run_dir}: {error.strerror}") from error
    return run_dir


def _checked(settings: Sequence[str]) -> dict[str, str]:
    """Return settings by key.

    Raises:
        ConfigError: one is not valid; nothing has started yet.
    """
    load_config(SystemConfig, overrides=settings)
    return {key: value for key, _, value in (item.partition("=") for item in settings)}


@dataclass(frozen=True, slots=True)
class _Demo:
    """One demo and its output."""

    console: Console
    level: Level
    run_dir: Path
    nodes: int
    rounds: int
    as_json: bool
    opens: bool = False

    def train(self, task: str, seed: int, further: Mapping[str, str], *, stay: bool) -> dict[str, Any] | None:
        """Run the cluster and return its summary; None if it stayed until Ctrl-C."""
        started = f"starting a coordinator, a netsim proxy and {counted(self.nodes, 'node')}"
        if self.level is not Level.QUIET:
            self.say(f"{started}; the run is in {self.run_dir}")
        nodes = demo_nodes(self.nodes)
        changes = [change for change in demo_changes(nodes) if change.round <= (self.rounds or math.inf)]
        run = partial(run_demo, self.run_dir, nodes, self.rounds, seed, task=task, stay=stay, further=further)
        if stay:
            self.say(_STAYING)
        try:
            with progress_of_run(self.console, self.level, changes) as progress:
                progress.page = self._show_page
                return asyncio.run(_until_signalled(run, progress))
        except (KeyboardInterrupt, asyncio.CancelledError):
            if stay:
                return None
            hint = f"run `hypergpu report {self.run_dir}` to render it"
            self.say(f"interrupted: all processes have ended, the run is kept in {self.run_dir}; {hint}")
            raise typer.Exit(130) from None

    def report(self, summary: dict[str, Any], *, compare: bool) -> None:
        """Write the report, print the result, and compare it with a run without adaptation."""
        written = write_report(self.run_dir)  # before the comparison, which may take long and may fail
        if not self.as_json:
            _print_summary(self.console, summary, written.run, self.run_dir, self.level)
        comparison = self.compare() if compare else None
        if comparison is not None:
            written = write_report(self.run_dir)
        verdict = "" if written.against is None else written.against.sentence(written.run)
        if self.as_json:
            record = None if comparison is None else comparison.to_dict() | {"verdict": verdict}
            self.print_json(summary, record, written)
            return
        if comparison is not None:
            _print_comparison(self.console, comparison, self.level)
            self.say(verdict)
        self.say(f"report: {written.path}")

    def report_stayed(self) -> None:
        """Write the report of a cluster that ran until Ctrl-C, and print its result."""
        written = write_report(self.run_dir)
        summary = read_summary(self.run_dir)
        if self.as_json:
            self.print_json(summary, None, written)
            return
        if "state" in summary:
            _print_summary(self.console, summary, written.run, self.run_dir, self.level)
        self.say(f"report: {written.path}")

    def compare(self) -> Comparison | None:
        """Simulate the run with and without adaptation; print why and return None if that fails."""
        try:
            with steps(self.console, self.level, "comparing with and without adaptation in virtual time") as tell:
                return without_adaptation(self.run_dir, demo_nodes(self.nodes), self.rounds, tell)
        except KeyboardInterrupt:
            self.say(f"interrupted: the run and its report are in {self.run_dir}, without the comparison")
            raise typer.Exit(130) from None
        except Exception as error:  # the user's task may raise anything; the run and its report are complete
            log.debug("the comparison failed", exc_info=True)
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say(f"no comparison with and without adaptation: {reason}")
            return None

    def _show_page(self, address: str) -> None:
        if self.level is not Level.QUIET:
            self.say(f"live page: {address}")
        if self.opens:
            webbrowser.open(address)

    def say(self, text: str) -> None:
        """Print a line."""
        _say(self.console, text)

    def print_json(self, summary: dict[str, Any], comparison: dict[str, Any] | None, written: Report) -> None:
        """Print the result as JSON on standard output."""
        say(strict_json.dumps(summary | {"comparison": comparison, "report": str(written.path)}, indent=2))


async def _until_signalled(
    run: Callable[[Progress], Coroutine[Any, Any, dict[str, Any]]], progress: Progress
) -> dict[str, Any]:
    running = asyncio.current_task()
    assert running is not None
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signal_number, running.cancel)
    return await run(progress)


def _print_comparison(console: Console, comparison: Comparison, level: Level) -> None:
    """Print the two simulated runs side by side."""
    if level is Level.QUIET:
        return
    console.print(Text("\nEffect of adaptation, simulated", "bold"))
    _say(
        console,
        "this run repeated in virtual time, with and without adaptation, on the same links, events, data and seed, with"
        " the measured compute times",
    )
    metric = comparison.metric
    headings = (
        f">to {comparison.timed_by.label(comparison.target)}",
        ">rounds",
        f">{metric.name}",
        ">round (median)",
        ">total",
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
    # From the beginning of the first round, as in the report.
    seconds = run.ended_at if run.rounds else summary["duration_seconds"]
    took = f"after {counted(summary['rounds'], 'round')} in {duration(seconds)}"
    _say(console, f"{summary['state']}: {_figures(summary)} {took}; the run is kept in {run_dir}")


def _figures(summary: dict[str, Any]) -> str:
    """Return the last evaluation as text: test accuracy 97.7 %, loss 0.09."""
    try:
        metric = MetricSpec.model_validate(summary.get("metric", {}))
    except ValidationError:
        metric = ACCURACY
    loss = f"loss {figure(summary.get('final_loss'))}"
    return f"test {loss}" if metric == LOSS else f"test {metric.label(summary.get(f'final_{metric.name}'))}, {loss}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
