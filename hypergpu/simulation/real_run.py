"""Run of a scenario by real processes on this machine, through the real proxy."""

import asyncio
from contextlib import suppress
from pathlib import Path

import yaml

from hypergpu.common.errors import HyperGPUError, InvalidInput, Unavailable
from hypergpu.coordinator.run_lock import RunLock
from hypergpu.local_cluster import LocalCluster, LocalNode
from hypergpu.netsim_proxy.config.scenario import cycle_value
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import netsim_pb2 as net
from hypergpu.simulation.scenario import Scenario

_POLL_SECONDS = 0.5
_ENDED = ("completed", "stopped")


def require_local(scenario: Scenario) -> None:
    """Check that a cluster on this machine can run the scenario.

    Raises:
        InvalidInput: it can't; the message says why.
    """
    groups = scenario.nodes
    if any(group.churn or group.join_delay_seconds or group.setup_seconds or group.speed != 1 for group in groups):
        raise InvalidInput("a local cluster has no churn, times to start or speeds: leave them out of the scenario")
    if scenario.learning != "real" or scenario.compute is not None:
        raise InvalidInput("real processes compute real gradients in their own time: leave learning and compute out")
    if scenario.time_limit_seconds is not None:
        raise InvalidInput("a time limit is one in virtual time: leave time_limit_seconds out of the scenario")
    if any(event.scheduled_round is None for event in scenario.network_events()):
        raise InvalidInput("the clocks of real and virtual time differ: let the scenario's events be by round")


async def run_for_real(scenario: Scenario, out: Path) -> None:
    """Run the scenario to its end; `out` is the run's directory.

    Raises:
        RunInUse: another process writes to `out`.
        HyperGPUError: a process would not start, or the coordinator died.
    """
    nodes = [
        LocalNode(name, "", cycle_value(group.gpu, index), cycle_value(group.region, index))
        for group in scenario.nodes
        for index, name in enumerate(group.names())
    ]
    with RunLock(out):
        network = _written(scenario, out)
    async with LocalCluster(out, nodes, settings=_settings(scenario), seed=scenario.seed, scenario=network) as cluster:
        client = cluster.client
        announcing = asyncio.create_task(_announce_rounds(cluster))
        ended = asyncio.create_task(cluster.processes["coordinator"].wait())
        try:
            while not ended.done():
                with suppress(Unavailable):
                    status = await client.call(client.control.GetStatus, pb.GetStatusRequest())
                    if status.state in _ENDED:
                        return
                await asyncio.wait([ended], timeout=_POLL_SECONDS)
            if ended.result():
                log = cluster.processes["coordinator"].log
                raise HyperGPUError(f"the coordinator died with exit code {ended.result()}; see {log}")
        finally:
            announcing.cancel()
            ended.cancel()
            await asyncio.gather(announcing, ended, return_exceptions=True)


async def _announce_rounds(cluster: LocalCluster) -> None:
    """Tell the proxy which round it is, for the events that are due by round."""
    client = cluster.client
    async for event in client.stream(client.control.WatchEvents, pb.WatchEventsRequest(replay=1000)):
        if event.kind == "round_started":
            await client.call(client.netsim.AnnounceRound, net.AnnounceRoundRequest(round=event.round))


def _written(scenario: Scenario, out: Path) -> Path:
    """Return a file of the scenario's links and events, for the proxy."""
    parts = {"profiles", "nodes", "links", "region", "loss_model", "congestion_control", "upstream_bandwidth", "events"}
    tree = scenario.model_dump(mode="json", include=parts, exclude_unset=True)
    tree["loss_model"] = scenario.loss_model  # the default of a scenario is not that of the proxy
    out.mkdir(parents=True, exist_ok=True)
    file = out / "network.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


def _settings(scenario: Scenario) -> dict[str, object]:
    """Return the scenario's configuration as KEY=VALUE, where it is not the default."""
    found: dict[str, object] = {}
    for section in ("training", "compression", "transfers", "monitor", "batch", "selector", "orchestrator"):
        values = getattr(scenario.config, section)
        defaults = type(values)()
        for key in type(values).model_fields:
            if getattr(values, key) != getattr(defaults, key):
                found[f"{section}.{key}"] = getattr(values, key)
    return found
