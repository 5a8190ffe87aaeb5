"""Commands that look at links and change them, through the proxy's control service."""

import inspect
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from hypergpu.cli.running import AsJson, changing, on_cluster, take_options
from hypergpu.client import Client
from hypergpu.common.config.whole import LARGEST_COUNT, LARGEST_INTEGER
from hypergpu.common.errors import InvalidInput
from hypergpu.common.files import read_text
from hypergpu.netsim_proxy.config.profile_file import load_profiles
from hypergpu.protos import netsim_pb2 as net
from hypergpu.show import counted, known, milliseconds, new_table, print_json, print_table, say, size
from hypergpu.simulation.scenario_file import find_scenario

_DELAYS = ("recent_delay_ms", "mean_delay_ms")
"""Injected delays of a direction: over its last messages, and over the link's life."""


@on_cluster
async def links(client: Client, as_json: AsJson = False) -> None:
    """Each link: profile, what was injected, what was lost.

    Example: hypergpu links --json
    """
    found = await client.links()
    if as_json:
        print_json(found)
        return
    headings = (
        "node",
        "profile",
        "state",
        ">latency up",
        ">down",
        ">injected lately up",
        ">down",
        ">mean up",
        ">down",
        ">sent",
        ">received",
        ">rpcs",
        ">lost",
    )
    table = new_table(*headings, "events")
    for link in found:
        table.add_row(
            link.node_id,
            link.profile,
            link.state,
            _range(link.up),
            _range(link.down),
            *(milliseconds(known(way, name)) for name in _DELAYS for way in (link.up, link.down)),
            size(link.up.bytes),
            size(link.down.bytes),
            str(link.rpcs),
            str(link.rpcs_lost),
            ", ".join(link.active_events),
        )
    print_table(table)


@changing
async def profile(
    client: Client,
    node: Annotated[str, typer.Argument(metavar="NODE", help="A node's name; '*' is every link, also those to come.")],
    name: Annotated[
        str, typer.Argument(metavar="PROFILE", help="A profile's name, or a file of your own: YAML, or a trace as CSV.")
    ],
    *,
    loss_model: Annotated[str, typer.Option(help="rpc or transport; left as it is by default.")] = "",
    region: Annotated[str, typer.Option(help="Such as eu-west, whose distance comes on top; none by default.")] = "",
    as_json: AsJson = False,
) -> None:
    """Give a link another profile, at once.

    Example: hypergpu profile node_2 poor
    """
    await client.check_nodes([node])
    text = _profile_text(Path(name)) if name.endswith((".yaml", ".yml", ".csv")) else name
    request = net.SetProfileRequest(node_id=node, profile=text, loss_model=loss_model, region=region)
    info = await client.call(client.netsim.SetProfile, request)
    if as_json:
        print_json(info)
    else:
        say(f"{info.node_id}: {info.profile}, {_range(info.up)} up, {_range(info.down)} down")


def _event(
    event: Annotated[
        str,
        typer.Argument(
            metavar="EVENT",
            help="latency_spike, profile_change, disconnect, partition, bandwidth_collapse, flap, limit_data, "
            "limit_time, timeout, slow_close or recovery.",
        ),
    ],
    nodes: Annotated[list[str], typer.Argument(metavar="NODE...", help="Whom it strikes; '*' is every link.")],
    *,
    duration: Annotated[float, typer.Option(min=0, help="Seconds that it lasts; 0: until recovery.")] = 0.0,
    profile: Annotated[str, typer.Option(help="Of profile_change: the new profile.")] = "",
    factor: Annotated[
        float, typer.Option(min=0, help="Of latency_spike and bandwidth_collapse; 0: the default.")
    ] = 0.0,
    added_ms: Annotated[float, typer.Option(min=0, help="Of latency_spike: milliseconds on top.")] = 0.0,
    mode: Annotated[str, typer.Option(help="Of disconnect: reset, black_hole or half_open.")] = "",
    period: Annotated[float, typer.Option(min=0, help="Of flap: seconds between ups and downs.")] = 0.0,
    group_b: Annotated[
        list[str] | None, typer.Option("--from", help="Of partition: cut off from these, not the upstream.")
    ] = None,
    direction: Annotated[
        str, typer.Option(metavar="WAY", help="up (from the node), down (to the node) or both: the paths it acts on.")
    ] = "both",
    limit_bytes: Annotated[
        int,
        typer.Option(
            "--bytes", min=0, max=LARGEST_INTEGER, help="Of limit_data: what a connection carries before it is closed."
        ),
    ] = 0,
    close_after: Annotated[
        float,
        typer.Option(
            min=0,
            help="Of limit_time and timeout: seconds until a connection is closed. Of slow_close: by how much its end "
            "is late.",
        ),
    ] = 0.0,
) -> net.Event:
    return net.Event(
        type=event,
        nodes=nodes,
        duration_seconds=duration,
        profile=profile,
        factor=factor,
        added_ms=added_ms,
        mode=mode,
        period_seconds=period,
        group_b=group_b,
        direction=direction,
        limit_bytes=limit_bytes,
        close_after_seconds=close_after,
    )


def _on_event(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """Make a function of a client and an event into one of a client and the options of `_event`."""
    of_event = inspect.signature(_event).parameters
    client, _, *own = inspect.signature(command).parameters.values()

    @wraps(command)
    async def run(client: Client, **options: Any) -> None:
        event = _event(**{name: options.pop(name) for name in of_event})
        await client.check_nodes([*event.nodes, *event.group_b])
        await command(client, event, **options)

    take_options(run, (client, *of_event.values(), *own))
    return run


@changing
@_on_event
async def inject(client: Client, event: net.Event, as_json: AsJson = False) -> None:
    """Let something happen to links now.

    Example: hypergpu inject latency_spike node_1 node_2 --duration 10 --factor 5
    """
    _say(await client.call(client.netsim.Inject, event), as_json)


@changing
@_on_event
async def schedule(
    client: Client,
    event: net.Event,
    *,
    at_round: Annotated[
        int | None, typer.Option("--round", min=1, max=LARGEST_COUNT, help="When this round begins.")
    ] = None,
    after: Annotated[float | None, typer.Option(min=0, help="So many seconds from now.")] = None,
    as_json: AsJson = False,
) -> None:
    """Let something happen to links later, by time or by round.

    Example: hypergpu schedule profile_change node_2 --profile poor --round 15
    """
    if (at_round is None) == (after is None):
        raise InvalidInput("say when: either --round N or --after SECONDS")
    request = net.ScheduleRequest(event=event, after_seconds=after, round=at_round)
    _say(await client.call(client.netsim.Schedule, request), as_json)


@on_cluster
async def scheduled(client: Client, as_json: AsJson = False) -> None:
    """The events to come, those that run, and the last that are over.

    Example: hypergpu scheduled
    """
    _list(await client.call(client.netsim.ListScheduled, net.ListScheduledRequest()), as_json)


@changing
async def clear(
    client: Client,
    node: Annotated[str, typer.Argument(metavar="NODE", help="Only of this node's link; of all where left out.")] = "",
    as_json: AsJson = False,
) -> None:
    """End the events that run, and forget those to come.

    Example: hypergpu clear node_2
    """
    if node:
        await client.check_nodes([node])
    reply = await client.call(client.netsim.Clear, net.ClearRequest(node_id=node))
    if as_json:
        print_json(reply)
    else:
        say(f"{counted(reply.cleared, 'event')} ended or forgotten")


@changing
async def scenario(
    client: Client,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SCENARIO", help="A YAML file, or the name of a shipped scenario (see `hypergpu simulate --list`)."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Set links as a scenario says, and schedule all of its events; the training in it is left aside.

    Example: hypergpu scenario degrading
    """
    file = find_scenario(source)
    request = net.LoadScenarioRequest(yaml=read_text(file), name=str(file))
    _list(await client.call(client.netsim.LoadScenario, request), as_json)


@changing
async def reload(client: Client, as_json: AsJson = False) -> None:
    """Let the proxy reread the files that it was started with: profiles, scenario, link map, certificates.

    Example: hypergpu reload
    """
    reply = await client.call(client.netsim.Reload, net.ReloadRequest())
    if as_json:
        print_json(reply)
    else:
        say(f"reloaded: {', '.join(reply.changed) or 'nothing has changed'}")


def _list(found: net.ScheduleList, as_json: bool) -> None:
    if as_json:
        print_json(found.events)
        return
    table = new_table("id", "state", "when", "event")
    for item in found.events:
        when = f"round {item.round}" if item.round else f"in {item.in_seconds:.1f} s" if item.in_seconds else ""
        nodes = ", ".join(item.event.nodes)
        table.add_row(item.event_id, item.state, when, f"{item.event.type} on {nodes}" if nodes else item.event.type)
    print_table(table)


def _say(reply: net.EventReply, as_json: bool) -> None:
    if as_json:
        print_json(reply)
    else:
        say(f"{reply.event_id}: {reply.summary}")


def _range(direction: net.DirectionInfo) -> str:
    return f"{direction.latency_low_ms:g}–{direction.latency_high_ms:g} ms"


def _profile_text(file: Path) -> str:
    """What the proxy understands: YAML, with a trace inside where it is one. Faults are told with the file's name."""
    load_profiles(file)
    text = read_text(file)
    return yaml.safe_dump({"profiles": {file.stem: {"trace": text}}}) if file.suffix == ".csv" else text
