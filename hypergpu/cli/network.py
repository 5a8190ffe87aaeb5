"""Commands that show and change links, through the proxy's control API."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
import yaml

from hypergpu.cli.cluster_command import ChangingCommand, client_of
from hypergpu.cli.option_group import OptionGroup
from hypergpu.cli.scenario_argument import ScenarioName
from hypergpu.common.errors import InvalidInput
from hypergpu.common.files import read_text
from hypergpu.common.limits import LARGEST_COUNT, LARGEST_INTEGER
from hypergpu.common.options import AsJson
from hypergpu.common.text import counted, milliseconds, size
from hypergpu.console import known, new_table, print_json, print_table, say
from hypergpu.netsim_proxy.config.profile_file import load_profiles
from hypergpu.netsim_proxy.link.events import EventType
from hypergpu.protos import netsim_pb2 as net
from hypergpu.simulation.scenario_file import find_scenario

_DELAYS = ("recent_delay_ms", "mean_delay_ms")
"""Injected delays of a direction: mean of the latest messages, and of all."""


async def links(context: typer.Context, as_json: AsJson = False) -> None:
    """List the links: profile, injected delay, lost calls, active events.

    Example: hypergpu links --json
    """
    found = await client_of(context).links()
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


async def profile(
    context: typer.Context,
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name of a node; '*' means every link, future ones too.")],
    name: Annotated[
        str, typer.Argument(metavar="PROFILE", help="Name of a profile, or a file: profiles as YAML, a trace as CSV.")
    ],
    *,
    loss_model: Annotated[
        str, typer.Option(metavar="MODEL", help="Loss model, rpc or transport; unchanged by default.")
    ] = "",
    region: Annotated[
        str, typer.Option(metavar="NAME", help="Region whose distance adds latency, as in eu-west; none by default.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Change the profile of a link now.

    Example: hypergpu profile node_2 poor
    """
    client = client_of(context)
    await client.check_nodes([node])
    text = _profile_text(Path(name)) if name.endswith((".yaml", ".yml", ".csv")) else name
    request = net.SetProfileRequest(node_id=node, profile=text, loss_model=loss_model, region=region)
    info = await client.call(client.netsim.SetProfile, request)
    if as_json:
        print_json(info)
    else:
        say(f"{info.node_id}: {info.profile}, {_range(info.up)} up, {_range(info.down)} down")


async def upstream_bandwidth(
    context: typer.Context,
    *,
    down_mbit: Annotated[
        float | None, typer.Option(metavar="MBIT", help="Mbit/s to all nodes together; inf: no limit.")
    ] = None,
    up_mbit: Annotated[
        float | None, typer.Option(metavar="MBIT", help="Mbit/s from all nodes together; inf: no limit.")
    ] = None,
    queue_bytes: Annotated[
        int | None,
        typer.Option(
            min=0, max=LARGEST_INTEGER, metavar="BYTES", help="Queue of each direction; 0: 100 ms of its bandwidth."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change the bandwidth of the upstream's access link, which all nodes share; without options, show it.

    Example: hypergpu upstream-bandwidth --down-mbit 500 --up-mbit 100
    """
    client = client_of(context)
    request = net.SetUpstreamBandwidthRequest(down_mbit=down_mbit, up_mbit=up_mbit, queue_bytes=queue_bytes)
    if request.ListFields():
        info = await client.call(client.netsim.SetUpstreamBandwidth, request)
    else:
        info = (await client.call(client.netsim.ListLinks, net.ListLinksRequest())).upstream
    if as_json:
        print_json(info)
    else:
        say(f"to all nodes: {_shared(info.down)}; from all nodes: {_shared(info.up)}")


@dataclass(frozen=True, kw_only=True)
class EventOptions:
    """Options that describe a network event and its target links."""

    kind: Annotated[
        str, typer.Argument(metavar="EVENT", help=f"Kind of event: {', '.join(kind.value for kind in EventType)}.")
    ]
    nodes: Annotated[list[str], typer.Argument(metavar="NODE...", help="Target nodes; '*' means every link.")]
    duration: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Duration; 0: until `recovery` or `clear`.")
    ] = 0.0
    direction: Annotated[
        str,
        typer.Option(metavar="DIRECTION", help="Affected direction: up (from the node), down (to the node) or both."),
    ] = "both"
    profile: Annotated[str, typer.Option(metavar="NAME", help="profile_change: new profile.")] = ""
    factor: Annotated[
        float,
        typer.Option(min=0, metavar="FACTOR", help="latency_spike, bandwidth_collapse: factor; 0: the default."),
    ] = 0.0
    added_ms: Annotated[float, typer.Option(min=0, metavar="MS", help="latency_spike: added latency.")] = 0.0
    mode: Annotated[str, typer.Option(metavar="MODE", help="disconnect: reset, black_hole or half_open.")] = ""
    period: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="flap: time between changes.")] = 0.0
    group_b: Annotated[
        list[str] | None,
        typer.Option(
            "--from", metavar="NODE", help="partition: node to separate from; by default the upstream. Repeatable."
        ),
    ] = None
    limit_bytes: Annotated[
        int,
        typer.Option(
            "--bytes",
            min=0,
            max=LARGEST_INTEGER,
            metavar="N",
            help="limit_data: bytes that a connection carries before it is closed.",
        ),
    ] = 0
    close_after: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="limit_time, timeout: time until a connection is closed. slow_close: delay of its end.",
        ),
    ] = 0.0

    def message(self) -> net.Event:
        """Return the event as a message for the proxy."""
        return net.Event(
            type=self.kind,
            nodes=self.nodes,
            duration_seconds=self.duration,
            profile=self.profile,
            factor=self.factor,
            added_ms=self.added_ms,
            mode=self.mode,
            period_seconds=self.period,
            group_b=self.group_b,
            direction=self.direction,
            limit_bytes=self.limit_bytes,
            close_after_seconds=self.close_after,
        )


EVENT: Final = OptionGroup(EventOptions)


class EventCommand(ChangingCommand):
    """Command with the options of an event."""

    groups = (EVENT, *ChangingCommand.groups)


async def inject(context: typer.Context, as_json: AsJson = False) -> None:
    """Inject a network event now.

    Example: hypergpu inject latency_spike node_1 node_2 --duration 10 --factor 5
    """
    client, event = client_of(context), await _event_of(context)
    _show_reply(await client.call(client.netsim.Inject, event), as_json)


async def schedule(
    context: typer.Context,
    *,
    at_round: Annotated[
        int | None,
        typer.Option("--round", metavar="N", min=1, max=LARGEST_COUNT, help="Round at whose beginning it starts."),
    ] = None,
    after: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Time until it starts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Schedule a network event by time or by round.

    Example: hypergpu schedule profile_change node_2 --profile poor --round 15
    """
    if (at_round is None) == (after is None):
        raise InvalidInput("give either --round N or --after SECONDS")
    client, event = client_of(context), await _event_of(context)
    request = net.ScheduleRequest(event=event, after_seconds=after, round=at_round)
    _show_reply(await client.call(client.netsim.Schedule, request), as_json)


async def _event_of(context: typer.Context) -> net.Event:
    """Return the event that the options describe; its nodes must exist."""
    event = EVENT.of(context).message()
    await client_of(context).check_nodes([*event.nodes, *event.group_b])
    return event


async def scheduled(context: typer.Context, as_json: AsJson = False) -> None:
    """List network events: scheduled, active and recently ended ones.

    Example: hypergpu scheduled
    """
    client = client_of(context)
    _show_events(await client.call(client.netsim.ListScheduled, net.ListScheduledRequest()), as_json)


async def clear(
    context: typer.Context,
    node: Annotated[
        str, typer.Argument(metavar="NODE", help="Node whose events to clear; by default all events.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """End active network events and cancel scheduled ones.

    Example: hypergpu clear node_2
    """
    client = client_of(context)
    if node:
        await client.check_nodes([node])
    reply = await client.call(client.netsim.Clear, net.ClearRequest(node_id=node))
    if as_json:
        print_json(reply)
    else:
        say(f"{counted(reply.cleared, 'event')} ended or cancelled")


async def scenario(context: typer.Context, source: ScenarioName, as_json: AsJson = False) -> None:
    """Set the links of a scenario and schedule its events; its training settings are ignored.

    Example: hypergpu scenario degrading
    """
    client = client_of(context)
    file = find_scenario(source)
    request = net.LoadScenarioRequest(yaml=read_text(file), name=str(file))
    _show_events(await client.call(client.netsim.LoadScenario, request), as_json)


async def reload(context: typer.Context, as_json: AsJson = False) -> None:
    """Make the proxy reread its files: profiles, scenario, link map, certificates.

    Example: hypergpu reload
    """
    client = client_of(context)
    reply = await client.call(client.netsim.Reload, net.ReloadRequest())
    if as_json:
        print_json(reply)
    else:
        say(f"reloaded: {', '.join(reply.changed) or 'no file has changed'}")


def _show_events(found: net.ScheduleList, as_json: bool) -> None:
    if as_json:
        print_json(found.events)
        return
    table = new_table("id", "state", "when", "event")
    for item in found.events:
        when = f"round {item.round}" if item.round else f"in {item.in_seconds:.1f} s" if item.in_seconds else ""
        nodes = ", ".join(item.event.nodes)
        table.add_row(item.event_id, item.state, when, f"{item.event.type} on {nodes}" if nodes else item.event.type)
    print_table(table)


def _show_reply(reply: net.EventReply, as_json: bool) -> None:
    if as_json:
        print_json(reply)
    else:
        say(f"{reply.event_id}: {reply.summary}")


def _shared(lane: net.SharedLaneInfo) -> str:
    if lane.bandwidth_mbit == math.inf:
        return "no limit"
    return f"{lane.bandwidth_mbit:g} Mbit/s, {size(int(lane.queue_bytes))} waiting"


def _range(direction: net.DirectionInfo) -> str:
    return f"{direction.latency_low_ms:g}–{direction.latency_high_ms:g} ms"


def _profile_text(file: Path) -> str:
    """Return a file in the form that the proxy accepts: YAML, with a trace inside it. Errors name the file."""
    load_profiles(file)
    text = read_text(file)
    return yaml.safe_dump({"profiles": {file.stem: {"trace": text}}}) if file.suffix == ".csv" else text
