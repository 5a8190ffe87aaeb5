"""Commands that control the training run."""

import asyncio
from typing import Annotated

import typer

from hypergpu.cli.cluster_command import client_of
from hypergpu.client import Client
from hypergpu.common.errors import Unavailable
from hypergpu.common.options import FLAG, AsJson
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.console import print_json, progress, say
from hypergpu.protos import coordinator_pb2 as pb

NodeId = Annotated[str, typer.Argument(metavar="NODE", help="Name of a node, as listed by `hypergpu nodes`.")]
Rule = pb.SetNodeRuleRequest
_RESTART_SECONDS = 60.0
"""Longest wait for the new run: the current one is evaluated and saved first."""


async def pause(context: typer.Context, as_json: AsJson = False) -> None:
    """Pause the run after the current round.

    Example: hypergpu pause
    """
    client = client_of(context)
    _show(await client.call(client.control.Pause, pb.PauseRequest()), as_json)


async def resume(context: typer.Context, as_json: AsJson = False) -> None:
    """Continue a paused run.

    Example: hypergpu resume
    """
    client = client_of(context)
    _show(await client.call(client.control.Resume, pb.ResumeRequest()), as_json)


async def stop(
    context: typer.Context,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Reason, recorded with the run.")] = "stopped by the user",
    as_json: AsJson = False,
) -> None:
    """End the run: save the model and disconnect the nodes, or keep them waiting if the coordinator stays.

    Example: hypergpu stop --reason "good enough"
    """
    client = client_of(context)
    _show(await client.call(client.control.Stop, pb.StopRequest(reason=reason)), as_json)


async def restart(context: typer.Context, as_json: AsJson = False) -> None:
    """Start a new run with the same settings; the previous one moves to earlier/, finished or not.

    Example: hypergpu restart
    """
    client = client_of(context)
    former = (await client.call(client.control.Restart, pb.RestartRequest())).run_id
    async with asyncio.timeout(_RESTART_SECONDS):
        while (status := await _status_or_none(client)) is None or status.run_id == former:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    _show(status, as_json)


async def _status_or_none(client: Client) -> pb.Status | None:
    """Return the status; None while no coordinator answers."""
    try:
        status: pb.Status = await client.call(client.control.GetStatus, pb.GetStatusRequest())
    except Unavailable:
        return None
    return status


async def include(context: typer.Context, node: NodeId, as_json: AsJson = False) -> None:
    """Select a node in every round, however bad its link is.

    Example: hypergpu include node_3
    """
    await _override(client_of(context), node, Rule.INCLUDE, as_json)


async def exclude(
    context: typer.Context,
    node: NodeId,
    clear: Annotated[
        bool, typer.Option("--clear", metavar=FLAG, help="Undo an `exclude` or `include`: the selector decides again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Keep a node out of every round; `--clear` undoes an `exclude` or `include`.

    Example: hypergpu exclude node_4
    """
    await _override(client_of(context), node, Rule.AUTOMATIC if clear else Rule.EXCLUDE, as_json)


async def policy(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="POLICY",
            help=f"Adaptation policy: {', '.join(AdaptationPolicy)}. proactive was measured no faster than reactive.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Change the adaptation policy from the next round on.

    Example: hypergpu policy aggressive
    """
    client = client_of(context)
    _show(await client.call(client.control.SetPolicy, pb.SetPolicyRequest(policy=name)), as_json)


async def _override(client: Client, node: str, rule: "pb.SetNodeRuleRequest.Rule", as_json: bool) -> None:
    await client.check_nodes([node])
    info = await client.call(client.control.SetNodeRule, Rule(node_id=node, rule=rule))
    if as_json:
        print_json(info)
    else:
        say(f"{info.node_id}: {info.rule}, now {info.state}")


def _show(status: pb.Status, as_json: bool) -> None:
    if as_json:
        print_json(status)
    else:
        say(f"run {status.run_id}: {status.state}, {progress(status)}, policy {status.policy}")
