"""Commands that show the training run."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live

from hypergpu.cli.cluster_command import client_of
from hypergpu.client import Client
from hypergpu.common.errors import HyperGPUError, Unavailable
from hypergpu.common.options import FLAG, AsJson
from hypergpu.common.text import UNKNOWN, duration, figure, mbit, milliseconds, number, percent
from hypergpu.console import (
    QUALITY_STYLE,
    STATE_STYLE,
    as_dict,
    known,
    new_console,
    new_table,
    print_json,
    print_table,
    progress,
    styled,
)
from hypergpu.dashboard import ENDED, History, Snapshot, connections_of, dashboard, figures_of, take_snapshot
from hypergpu.protos import coordinator_pb2 as pb

Show = Callable[[Snapshot, History], None]


_NODE_HEADINGS: Final = (
    "node",
    "state",
    "gpu",
    "quality",
    ">score",
    ">latency",
    ">loss",
    ">down Mbit/s",
    ">up Mbit/s",
    ">batch",
    "codecs",
    ">connections",
    ">computing",
    ">contributed",
    ">useful",
    ">samples",
    ">spent",
    ">late",
    ">retries",
    "why",
)


async def nodes(context: typer.Context, as_json: AsJson = False) -> None:
    """List the nodes: state, link quality, batch size, contributions.

    Example: hypergpu nodes --json
    """
    found = await client_of(context).nodes()
    if as_json:
        print_json(found)
        return
    table = new_table(*_NODE_HEADINGS)
    for node in found:
        table.add_row(
            node.node_id,
            styled(node.state, STATE_STYLE),
            node.gpu,
            styled(node.quality, QUALITY_STYLE),
            number(known(node, "score")),
            milliseconds(known(node, "latency_ms")),
            percent(known(node, "loss_rate")),
            mbit(known(node, "down_mbit"), known(node, "down_least_mbit")),
            mbit(known(node, "up_mbit"), known(node, "up_least_mbit")),
            number(known(node, "batch_size")),
            node.codecs or UNKNOWN,
            connections_of(node),
            percent(known(node, "compute_utilisation"), digits=0),
            f"{node.rounds_contributed} of {node.rounds_selected}",
            _usefulness(node),
            _samples(node),
            figure(node.spent) if node.terms.price_per_hour else UNKNOWN,
            str(node.late) + (f" + {node.merged_late} merged" if node.merged_late else ""),
            str(node.retries),
            node.reason,
        )
    print_table(table)


def _usefulness(node: pb.NodeInfo) -> str:
    """Return the share of a node in what was learned, with half its confidence interval."""
    error = known(node, "usefulness_error")
    return percent(known(node, "usefulness")) + ("" if error is None else f" ± {100 * error:.1f}")


def _samples(node: pb.NodeInfo) -> str:
    """Return how many of its own samples a node has used, and holds as far as it reports that."""
    used = known(node, "samples_used")
    held = f" of {node.data.samples:,}" if node.HasField("data") else ""
    return UNKNOWN if used is None else f"{used:,}{held}"


async def status(
    context: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", metavar=FLAG, help="Show a live dashboard until Ctrl-C or the end.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Refresh interval of --watch.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Show the run's progress, and its latest decisions with their reasons.

    In the JSON, the value of the main metric is under its own name, and its description under `metric`.

    Example: hypergpu status --watch
    """
    client = client_of(context)
    if watch and not as_json:
        await _watch(client, interval)
        return
    now = await take_snapshot(client)
    if as_json:
        told = as_dict(now.status)
        told.setdefault(now.status.metric.name or "metric", known(now.status.metric, "value"))
        print_json({**told, "nodes": now.nodes})
        return
    new_console().print(dashboard(now, await _past(client, now.status), height=40))


async def _watch(client: Client, interval: float) -> None:
    """Follow the run to its end; the last view stays on the screen."""
    console = new_console()
    now = await take_snapshot(client)
    history = await _past(client, now.status)
    view = _screen(console) if console.is_terminal else _lines(console)
    ending = asyncio.create_task(_ending(client))
    told = ""
    try:
        with view as show:
            while True:
                history.add(now.status)
                show(now, history)
                if now.status.state in ENDED or told:
                    break
                if ending.done():  # the stream of events has ended
                    await asyncio.sleep(interval)
                else:
                    await asyncio.wait([ending], timeout=interval)
                told = ending.result() if ending.done() else ""
                now = await take_snapshot(client)
    except Unavailable:
        with suppress(TimeoutError):  # it may have said how the run ended, and have left before it was asked
            told = told or await asyncio.wait_for(ending, 1.0)
        if not told:
            raise
    finally:
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
    if told:
        console.print(told, markup=False, highlight=False, soft_wrap=True)


async def _ending(client: Client) -> str:
    """Return the coordinator's message at the end of the run; empty if the connection ends before."""
    with suppress(HyperGPUError):
        async for event in client.stream(client.control.WatchEvents, pb.WatchEventsRequest(replay=1)):
            if event.kind in ENDED:
                return str(event.text)
    return ""


@contextmanager
def _screen(console: Console) -> Iterator[Show]:
    """Return the dashboard on the terminal's alternate screen; its last frame is printed at the end."""
    last: tuple[Snapshot, History] | None = None
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:

            def show(now: Snapshot, history: History) -> None:
                nonlocal last
                last = now, history
                live.update(dashboard(now, history, console.height), refresh=True)

            yield show
    finally:
        if last is not None:
            console.print(dashboard(*last, console.height))


@contextmanager
def _lines(console: Console) -> Iterator[Show]:
    """Return a line whenever the round or the state changes, for a pipe."""
    last = ""

    def show(now: Snapshot, _: History) -> None:
        nonlocal last
        status = now.status
        where = f"{status.state}, {progress(status)}"
        if where != last:
            last = where
            text = f"{duration(status.elapsed_seconds):>11}  {where}: {figures_of(status)}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    yield show


async def _past(client: Client, status: pb.Status) -> History:
    """Return the past rounds, so that the dashboard's curves begin with the run."""
    history = History(status.metric.name)
    request = pb.WatchEventsRequest(replay=1000)
    async for event in client.stream(client.control.WatchEvents, request, idle_seconds=0.3):
        history.replay(event)
    return history
