"""Commands that look at links and change them, through the proxy's control service."""

from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError, InvalidInput
from hypergpu.cli.running import AsJson, on_cluster
from hypergpu.client import Client
from hypergpu.show import new_table, print_json, print_table, size
from protos import netsim_pb2 as net

Type = Annotated[
    str,
    typer.Argument(
        metavar="EVENT",
        help="latency_spike, profile_change, disconnect, partition, bandwidth_collapse, flap or recovery.",
    ),
]
Nodes = Annotated[list[str], typer.Argument(metavar="NODE...", help="Whom it strikes; '*' is every link.")]
Duration = Annotated[float, typer.Option(min=0, help="Seconds that it lasts; 0: until recovery.")]
ProfileName = Annotated[str, typer.Option(help="Of profile_change: the new profile.")]
Factor = Annotated[float, typer.Option(min=0, help="Of latency_spike and bandwidth_collapse; 0: the default.")]
AddedMs = Annotated[float, typer.Option(min=0, help="Of latency_spike: milliseconds on top.")]
Mode = Annotated[str, typer.Option(help="Of disconnect: reset, black_hole or half_open.")]
Period = Annotated[float, typer.Option(min=0, help="Of flap: seconds between ups and downs.")]
From = Annotated[list[str] | None, typer.Option("--from", help="Of partition: cut off from these, not the upstream.")]


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
            f"{link.up.mean_delay_ms:.0f} ms",
            f"{link.down.mean_delay_ms:.0f} ms",
            size(link.up.bytes),
            size(link.down.bytes),
            str(link.rpcs),
            str(link.rpcs_lost),
            ", ".join(link.active_events),
        )
    print_table(table)


@on_cluster
async def profile(
    client: Client,
    node: Annotated[str, typer.Argument(metavar="NODE", help="A node's name; '*' is every link not yet seen.")],
    name: Annotated[str, typer.Argument(metavar="PROFILE", help="A profile's name, or a YAML file of your own.")],
    *,
    loss_model: Annotated[str, typer.Option(help="rpc or transport; left as it is by default.")] = "",
    region: Annotated[str, typer.Option(help="Such as eu-west; left as it is by default.")] = "",
    as_json: AsJson = False,
) -> None:
    """Give a link another profile, at once.

    Example: hypergpu profile node_2 poor
    """
    await client.check_nodes([node])
    text = _read(Path(name)) if name.endswith((".yaml", ".yml")) else name
    request = net.SetProfileRequest(node_id=node, profile=text, loss_model=loss_model, region=region)
    info = await client.call(client.netsim.SetProfile, request)
    if as_json:
        print_json(info)
    else:
        print(f"{info.node_id}: {info.profile}, {_range(info.up)} up, {_range(info.down)} down")


@on_cluster
async def inject(
    client: Client,
    event: Type,
    nodes: Nodes,
    *,
    duration: Duration = 0.0,
    profile: ProfileName = "",
    factor: Factor = 0.0,
    added_ms: AddedMs = 0.0,
    mode: Mode = "",
    period: Period = 0.0,
    group_b: From = None,
    as_json: AsJson = False,
) -> None:
    """Let something happen to links now.

    Example: hypergpu inject latency_spike node_1 node_2 --duration 10 --factor 5
    """
    await client.check_nodes([*nodes, *(group_b or ())])
    message = net.Event(
        type=event,
        nodes=nodes,
        duration_seconds=duration,
        profile=profile,
        factor=factor,
        added_ms=added_ms,
        mode=mode,
        period_seconds=period,
        group_b=group_b,
    )
    _say(await client.call(client.netsim.Inject, message), as_json)


@on_cluster
async def schedule(
    client: Client,
    event: Type,
    nodes: Nodes,
    *,
    at_round: Annotated[int | None, typer.Option("--round", min=1, help="When this round begins.")] = None,
    after: Annotated[float | None, typer.Option(min=0, help="So many seconds from now.")] = None,
    duration: Duration = 0.0,
    profile: ProfileName = "",
    factor: Factor = 0.0,
    added_ms: AddedMs = 0.0,
    mode: Mode = "",
    period: Period = 0.0,
    group_b: From = None,
    as_json: AsJson = False,
) -> None:
    """Let something happen to links later, by time or by round.

    Example: hypergpu schedule profile_change node_2 --profile poor --round 15
    """
    if (at_round is None) == (after is None):
        raise InvalidInput("say when: either --round N or --after SECONDS")
    await client.check_nodes([*nodes, *(group_b or ())])
    request = net.ScheduleRequest(
        event=net.Event(
            type=event,
            nodes=nodes,
            duration_seconds=duration,
            profile=profile,
            factor=factor,
            added_ms=added_ms,
            mode=mode,
            period_seconds=period,
            group_b=group_b,
        ),
        after_seconds=after,
        round=at_round,
    )
    _say(await client.call(client.netsim.Schedule, request), as_json)


@on_cluster
async def scenario(
    client: Client,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML; examples lie in scenarios/.")],
    as_json: AsJson = False,
) -> None:
    """Schedule all events of a scenario.

    Example: hypergpu scenario scenarios/flaky-uplink.yaml
    """
    request = net.LoadScenarioRequest(yaml=_read(file), name=file.stem)
    scheduled = await client.call(client.netsim.LoadScenario, request)
    if as_json:
        print_json(scheduled.events)
        return
    table = new_table("id", "when", "event", "nodes")
    for item in scheduled.events:
        when = f"round {item.round}" if item.round else f"in {item.in_seconds:.1f} s"
        table.add_row(item.event_id, "now" if item.active else when, item.event.type, ", ".join(item.event.nodes))
    print_table(table)


def _say(reply: net.EventReply, as_json: bool) -> None:
    if as_json:
        print_json(reply)
    else:
        print(f"{reply.event_id}: {reply.summary}")


def _range(direction: net.DirectionInfo) -> str:
    return f"{direction.latency_low_ms:g}–{direction.latency_high_ms:g} ms"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {getattr(error, 'strerror', None) or 'not a text file'}") from error
