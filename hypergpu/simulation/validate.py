"""The simulator against reality: one scenario by real processes through the real proxy, and in virtual time."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common.errors import HyperGPUError, InvalidInput, Unavailable
from hypergpu.local import LocalCluster, LocalNode
from hypergpu.simulation.compute import MeasuredCompute, read_rounds, times_of
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from netsim_proxy.link.events import NetworkEvent
from netsim_proxy.scenario import in_turn
from protos import coordinator_pb2 as pb
from protos import netsim_pb2 as net

_POLL_SECONDS = 0.5
_ENDED = ("completed", "stopped")


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the simulator is from the real run."""

    rounds: int
    real_round_seconds: float
    """Median."""
    simulated_round_seconds: float
    """Median."""
    round_time_error: float
    """Of the medians, relative to the real one."""
    per_round_error: float
    """Median over rounds of the relative error of each."""
    selection_agreement: float
    """Mean over rounds of the share of nodes about whose part in it both agree."""
    real_accuracy: float
    simulated_accuracy: float

    def record(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def validate(scenario: Scenario, out: Path) -> Agreement:
    """Run the scenario both ways and compare. The compute times of the real run calibrate the simulated one.

    Args:
        scenario: few nodes, few rounds; events by round only.
        out: a directory for both runs: `real` and `simulated`.

    Raises:
        InvalidInput: the scenario has what a local cluster can't do, or the real run came to nothing.
    """
    _require_simple(scenario)
    asyncio.run(_run_for_real(scenario, out / "real"))
    names = [name for group in scenario.nodes for name in group.names()]
    compute = MeasuredCompute.of_run(out / "real", times_of(scenario), names)
    simulate(scenario, out / "simulated", compute=compute)
    return agreement(read_rounds(out / "real"), read_rounds(out / "simulated"), len(names))


def agreement(real: Sequence[dict[str, Any]], simulated: Sequence[dict[str, Any]], nodes: int) -> Agreement:
    """Compare the rounds of two runs.

    Raises:
        InvalidInput: one of them has none.
    """
    count = min(len(real), len(simulated))
    if not count:
        raise InvalidInput("one of the two runs finished no round: there is nothing to compare")
    pairs = list(zip(real, simulated, strict=False))
    before, after = median(r["seconds"] for r, _ in pairs), median(s["seconds"] for _, s in pairs)
    chosen = [(set(r["batch_sizes"]), set(s["batch_sizes"])) for r, s in pairs]
    return Agreement(
        rounds=count,
        real_round_seconds=before,
        simulated_round_seconds=after,
        round_time_error=abs(after - before) / before,
        per_round_error=median(abs(s["seconds"] - r["seconds"]) / r["seconds"] for r, s in pairs),
        selection_agreement=sum(1 - len(a ^ b) / nodes for a, b in chosen) / count,
        real_accuracy=real[-1]["accuracy"] or 0.0,
        simulated_accuracy=simulated[-1]["accuracy"] or 0.0,
    )


def _require_simple(scenario: Scenario) -> None:
    groups = scenario.nodes
    if any(group.churn or group.joins_seconds or group.region or group.speed != 1 for group in groups):
        raise InvalidInput("a local cluster has no churn, regions or speeds: leave them out of a scenario to validate")
    if scenario.profiles or scenario.loss_model != "rpc" or scenario.learning != "real":
        raise InvalidInput("a scenario to validate has the built-in profiles, the rpc loss model and real gradients")
    if any(event.scheduled_round is None for event in scenario.network_events()):
        raise InvalidInput("a scenario to validate has events by round only: the clocks of the two runs differ")


async def _run_for_real(scenario: Scenario, out: Path) -> None:
    nodes = [
        LocalNode(name, in_turn(group.profile, index), in_turn(group.gpu, index))
        for group in scenario.nodes
        for index, name in enumerate(group.names())
    ]
    async with LocalCluster(out, nodes, seed=scenario.seed, settings=_settings(scenario)) as cluster:
        client = cluster.client
        for event in scenario.network_events():
            request = net.ScheduleRequest(event=_message(event), round=event.scheduled_round or 0)
            await client.call(client.netsim.Schedule, request)
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


def _settings(scenario: Scenario) -> dict[str, object]:
    """The scenario's configuration as KEY=VALUE, where it is not the default."""
    found: dict[str, object] = {}
    for section in ("training", "monitor", "batch", "selector", "orchestrator"):
        values = getattr(scenario.config, section)
        defaults = type(values)()
        for key in type(values).model_fields:
            if getattr(values, key) != getattr(defaults, key):
                found[f"{section}.{key}"] = getattr(values, key)
    return found


def _message(event: NetworkEvent) -> net.Event:
    return net.Event(
        type=event.event_type,
        nodes=event.nodes,
        duration_seconds=event.duration_seconds,
        profile=event.new_profile,
        factor=event.factor,
        added_ms=event.added_ms,
        mode=event.mode,
        period_seconds=event.period_seconds,
        group_b=event.group_b,
    )
