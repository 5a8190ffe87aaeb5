"""Commands that look at the training run."""

import asyncio
from typing import Annotated

import typer
from rich.live import Live

from hypergpu.cli.running import AsJson, on_cluster
from hypergpu.client import Client
from hypergpu.dashboard import ENDED, History, dashboard, take_snapshot
from hypergpu.show import (
    QUALITY_STYLE,
    STATE_STYLE,
    as_dict,
    duration,
    new_console,
    new_table,
    print_json,
    print_table,
    styled,
)
from protos import coordinator_pb2 as pb


@on_cluster
async def nodes(client: Client, as_json: AsJson = False) -> None:
    """Each node: state, link quality, batch size, what it contributed.

    Example: hypergpu nodes --json
    """
    found = await client.nodes()
    if as_json:
        print_json(found)
        return
    headings = (
        "node",
        "state",
        "gpu",
        "quality",
        ">score",
        ">latency",
        ">loss",
        ">batch",
        ">contributed",
        ">late",
        ">retries",
    )
    table = new_table(*headings, "why")
    for node in found:
        table.add_row(
            node.node_id,
            styled(node.state, STATE_STYLE),
            node.gpu,
            styled(node.quality, QUALITY_STYLE),
            f"{node.score:.0f}",
            f"{node.latency_ms:.0f} ms",
            f"{node.loss_rate:.1%}",
            str(node.batch_size),
            f"{node.rounds_contributed} of {node.rounds_selected}",
            str(node.late),
            str(node.retries),
            node.reason,
        )
    print_table(table)


@on_cluster
async def status(
    client: Client,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="A live dashboard, until Ctrl-C or the end.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """How the run is doing, and what was decided with which reasons.

    Example: hypergpu status --watch
    """
    if watch and not as_json:
        await _watch(client, interval)
        return
    now = await take_snapshot(client)
    if as_json:
        print_json({**as_dict(now.status), "nodes": now.nodes})
        return
    new_console().print(dashboard(now, await _past(client), height=40))


@on_cluster
async def logs(
    client: Client,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="How many events of the past.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Rounds, decisions and membership as they happened.

    Example: hypergpu logs --follow
    """
    idle = None if follow else 1.0
    request = pb.WatchEventsRequest(replay=last)
    async for event in client.stream(client.control.WatchEvents, request, idle_seconds=idle):
        print(
            event.json if as_json else f"{duration(event.seconds):>8}  round {event.round:<4} {event.text}", flush=True
        )


async def _watch(client: Client, interval: float) -> None:
    console = new_console()
    history = await _past(client)
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            now = await take_snapshot(client)
            history.add(now.status)
            live.update(dashboard(now, history, console.height), refresh=True)
            if now.status.state in ENDED:
                break
            await asyncio.sleep(interval)
    console.print(dashboard(now, history, console.height))


async def _past(client: Client) -> History:
    """The rounds before now, so that the dashboard's curves do not begin when it is opened."""
    history = History()
    request = pb.WatchEventsRequest(replay=1000)
    async for event in client.stream(client.control.WatchEvents, request, idle_seconds=0.3):
        history.replay(event)
    return history
