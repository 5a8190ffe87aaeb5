"""Commands that steer the training run."""

import asyncio
from typing import Annotated

import typer

from hypergpu.cli.running import AsJson, changing
from hypergpu.client import Client
from hypergpu.common.errors import Unavailable
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.show import print_json, progress, say

NodeId = Annotated[str, typer.Argument(metavar="NODE", help="A node's name, as `hypergpu nodes` shows it.")]
Rule = pb.SetNodeRuleRequest
_RESTART_SECONDS = 60.0
"""To wait for the new run: the one that runs is evaluated and saved first, and the model is made anew."""


@changing
async def pause(client: Client, as_json: AsJson = False) -> None:
    """Let the current round finish, then wait.

    Example: hypergpu pause
    """
    _say(await client.call(client.control.Pause, pb.PauseRequest()), as_json)


@changing
async def resume(client: Client, as_json: AsJson = False) -> None:
    """Go on after `pause`.

    Example: hypergpu resume
    """
    _say(await client.call(client.control.Resume, pb.ResumeRequest()), as_json)


@changing
async def stop(
    client: Client,
    reason: Annotated[str, typer.Option(help="Recorded with the run.")] = "stopped by the user",
    as_json: AsJson = False,
) -> None:
    """End the run: the model is saved, nodes are sent home, or wait with a coordinator that stays.

    Example: hypergpu stop --reason "good enough"
    """
    _say(await client.call(client.control.Stop, pb.StopRequest(reason=reason)), as_json)


@changing
async def restart(client: Client, as_json: AsJson = False) -> None:
    """Begin a new run with the same settings; the one before it is kept under earlier/, finished or not.

    Example: hypergpu restart
    """
    former = (await client.call(client.control.Restart, pb.RestartRequest())).run_id
    async with asyncio.timeout(_RESTART_SECONDS):
        while (status := await _status_or_none(client)) is None or status.run_id == former:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    _say(status, as_json)


async def _status_or_none(client: Client) -> pb.Status | None:
    """Return the status; None while no coordinator answers."""
    try:
        status: pb.Status = await client.call(client.control.GetStatus, pb.GetStatusRequest())
    except Unavailable:
        return None
    return status


@changing
async def include(client: Client, node: NodeId, as_json: AsJson = False) -> None:
    """Put a node into every round, whatever its link.

    Example: hypergpu include node_3
    """
    await _rule(client, node, Rule.INCLUDE, as_json)


@changing
async def exclude(
    client: Client,
    node: NodeId,
    clear: Annotated[bool, typer.Option("--clear", help="Leave it to the selector again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep a node out of every round; `--clear` takes back an `exclude` or `include`.

    Example: hypergpu exclude node_4
    """
    await _rule(client, node, Rule.AUTOMATIC if clear else Rule.EXCLUDE, as_json)


@changing
async def policy(
    client: Client,
    name: Annotated[
        str, typer.Argument(metavar="POLICY", help="none, conservative, aggressive, reactive or proactive.")
    ],
    as_json: AsJson = False,
) -> None:
    """Change how boldly the coordinator adapts, from the next round on.

    Example: hypergpu policy aggressive
    """
    _say(await client.call(client.control.SetPolicy, pb.SetPolicyRequest(policy=name)), as_json)


async def _rule(client: Client, node: str, rule: "pb.SetNodeRuleRequest.Rule", as_json: bool) -> None:
    await client.check_nodes([node])
    info = await client.call(client.control.SetNodeRule, Rule(node_id=node, rule=rule))
    if as_json:
        print_json(info)
    else:
        say(f"{info.node_id}: {info.rule}, now {info.state}")


def _say(status: pb.Status, as_json: bool) -> None:
    if as_json:
        print_json(status)
    else:
        say(f"run {status.run_id}: {status.state}, {progress(status)}, policy {status.policy}")
