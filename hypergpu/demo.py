"""The demo: a local cluster of different nodes on different links, with three changes of the network."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypergpu.client import Client
from hypergpu.common import strict_json
from hypergpu.common.errors import HyperGPUError, Unavailable
from hypergpu.console import known
from hypergpu.coordinator.files import replace_text
from hypergpu.dashboard import ENDED, History, Snapshot, take_snapshot
from hypergpu.local_cluster import LocalCluster, LocalNode
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import netsim_pb2 as net
from hypergpu.report import SIMULATED
from hypergpu.simulation.comparison import Comparison
from hypergpu.simulation.counterfactual import compare_with_baseline

PROFILES = ("perfect", "good", "average", "poor", "unstable")
GPUS = ("A100", "RTX-4090", "V100", "T4", "laptop-cpu")
_POLL_SECONDS = 0.5
_STOP_SECONDS = 15.0
"""Longest wait for the last evaluation and the files of a run that is stopped."""


@dataclass(frozen=True, slots=True)
class NetworkChange:
    """Network event that a round triggers."""

    round: int
    node_id: str
    text: str
    event: net.Event


@dataclass(slots=True)
class Progress:
    """Callbacks of a run: `event` for each event, `snapshot` twice a second, `page` once with the page's address."""

    event: Callable[[pb.RunEvent], None] = lambda _: None
    snapshot: Callable[[Snapshot, History], None] = lambda *_: None
    page: Callable[[str], None] = lambda _: None


def demo_nodes(count: int) -> list[LocalNode]:
    """Return `count` nodes; links and GPUs repeat in order."""
    return [LocalNode(f"node_{i}", PROFILES[i % len(PROFILES)], GPUS[i % len(GPUS)]) for i in range(count)]


def demo_changes(nodes: Sequence[LocalNode]) -> list[NetworkChange]:
    """Return the events: a latency spike at round 10, a degradation at 15, an improvement at 20."""
    names = [node.node_id for node in nodes]
    spiked, degraded, improved = names[min(2, len(names) - 1)], names[min(1, len(names) - 1)], names[-1]
    spike = net.Event(type="latency_spike", nodes=[spiked], duration_seconds=10)
    worse = net.Event(type="profile_change", nodes=[degraded], profile="poor")
    better = net.Event(type="profile_change", nodes=[improved], profile="good")
    return [
        NetworkChange(10, spiked, f"latency spike at {spiked} for 10 s", spike),
        NetworkChange(15, degraded, f"the link of {degraded} degrades to poor", worse),
        NetworkChange(20, improved, f"the link of {improved} improves to good", better),
    ]


async def run_demo(
    run_dir: Path,
    nodes: Sequence[LocalNode],
    rounds: int,
    seed: int,
    progress: Progress,
    *,
    task: str = "digits",
    stay: bool = False,
    further: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run the cluster to its end, or to cancellation; return the content of `summary.json` in `run_dir`.

    Args:
        run_dir: run directory.
        nodes: nodes, with their links and GPUs.
        rounds: rounds to train; 0: no end.
        seed: seed of parameters, samples and network.
        progress: callbacks.
        task: name of a task, or `module:factory`.
        stay: keep the cluster after the end of its run, until this is cancelled.
        further: further settings, by dotted key.

    Raises:
        RunInUse: another process writes to `run_dir`.
        HyperGPUError: a process of the cluster did not start, or the coordinator died.
    """
    changes = [change for change in demo_changes(nodes) if change.round <= (rounds or math.inf)]
    last = Snapshot(pb.Status(state="waiting"))

    def look(snapshot: Snapshot, history: History) -> None:
        nonlocal last
        last = snapshot
        progress.snapshot(snapshot, history)

    settings = {"training.task": task, "training.rounds": rounds, "training.seed": seed}
    settings |= {"training.min_nodes": len(nodes), "server.stay": str(stay).lower()}
    cluster = LocalCluster(run_dir, nodes, seed=seed, settings={**(further or {}), **settings})
    try:
        async with cluster:
            progress.page(cluster.page)
            await _schedule(cluster.client, changes)
            try:
                await _watch(cluster, Progress(progress.event, look), stay=stay)
            except asyncio.CancelledError:
                if stay:  # otherwise the coordinator would keep a checkpoint but no result
                    await _stop(cluster.client)
                raise
    finally:
        # The coordinator has ended and written its own summary.
        summary = _summary(run_dir, nodes, changes, last) if cluster.owns_run_dir else {}
        if summary:
            replace_text(run_dir / "summary.json", strict_json.dumps(summary, indent=2) + "\n")
    return summary


def without_adaptation(
    run_dir: Path,
    nodes: Sequence[LocalNode],
    rounds: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Comparison:
    """Simulate the run with and without adaptation, with the measured compute times.

    Args:
        run_dir: run directory of the real run; the simulated runs are written into it.
        nodes: nodes of the real run.
        rounds: rounds of the real run.
        progress: called with the number of simulated rounds and their total.

    Raises:
        InvalidInput: the run completed no round.
    """
    events = [
        {
            "round": change.round,
            "type": change.event.type,
            "nodes": list(change.event.nodes),
            "duration_seconds": change.event.duration_seconds,
            "profile": change.event.profile,
        }
        for change in demo_changes(nodes)
        if change.round <= rounds
    ]
    links = {node.node_id: node.profile for node in nodes}
    return compare_with_baseline(run_dir, links, events, out=run_dir / SIMULATED, progress=progress)


async def _schedule(client: Client, changes: Sequence[NetworkChange]) -> None:
    for change in changes:
        await client.call(client.netsim.Schedule, net.ScheduleRequest(event=change.event, round=change.round))


async def _stop(client: Client) -> None:
    """Stop the run, and wait until it is evaluated and saved."""
    with suppress(HyperGPUError, TimeoutError):
        async with asyncio.timeout(_STOP_SECONDS):
            status = await client.call(client.control.Stop, pb.StopRequest(reason="stopped by the user"))
            while status.state not in ENDED:
                await asyncio.sleep(_POLL_SECONDS)
                status = await client.call(client.control.GetStatus, pb.GetStatusRequest())


async def _watch(cluster: LocalCluster, progress: Progress, *, stay: bool = False) -> None:
    """Follow the run to its end: announce each round to the proxy, and report everything to `progress`.

    With `stay`, follow every run until this is cancelled.

    Raises:
        HyperGPUError: the coordinator died.
    """
    client, coordinator = cluster.client, cluster.processes["coordinator"]

    async def follow_run(replay: int) -> None:
        async for event in client.stream(client.control.WatchEvents, pb.WatchEventsRequest(replay=replay)):
            if event.kind == "round_started":
                await client.call(client.netsim.AnnounceRound, net.AnnounceRoundRequest(round=event.round))
            progress.event(event)

    async def follow_events() -> None:
        await follow_run(1000)
        while stay:  # after a restart the coordinator is unavailable for a moment
            await asyncio.sleep(_POLL_SECONDS)
            with suppress(HyperGPUError):
                await follow_run(0)

    history = History()
    events = asyncio.create_task(follow_events())
    ended = asyncio.create_task(coordinator.wait())
    try:
        while not ended.done():
            try:
                snapshot = await take_snapshot(client)
            except Unavailable:  # the coordinator is ending, between two runs, or too busy to answer
                await asyncio.wait([ended], timeout=1.0)
                continue
            history.metric_name = snapshot.status.metric.name
            history.add(snapshot.status)
            progress.snapshot(snapshot, history)
            if snapshot.status.state in ENDED and not stay:
                await asyncio.wait([events], timeout=1.0)
                return
            await asyncio.wait([ended], timeout=_POLL_SECONDS)
        if ended.result():
            raise HyperGPUError(f"the coordinator died with exit code {ended.result()}; see {coordinator.log}")
    finally:
        events.cancel()
        ended.cancel()
        await asyncio.gather(events, ended, return_exceptions=True)


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return the summary of a run; empty if there is none yet.

    Raises:
        ConfigError: the file cannot be read or is damaged.
    """
    file = run_dir / "summary.json"
    return strict_json.read_object(file) if file.exists() else {}


def _summary(
    run_dir: Path, nodes: Sequence[LocalNode], changes: Sequence[NetworkChange], last: Snapshot
) -> dict[str, Any]:
    """Return the coordinator's summary, with the links and their events added."""
    summary = read_summary(run_dir)
    rows = summary.get("nodes", {})
    links = {link.node_id: link for link in last.links}
    infos = {info.node_id: info for info in last.nodes}
    summary["nodes"] = {
        node.node_id: {
            "node_id": node.node_id,
            "profile": node.profile,
            "gpu": node.gpu,
            "rounds_contributed": 0,
            "retries": 0,
            **rows.get(node.node_id, {}),
            "rpcs_lost": links.get(node.node_id, net.LinkInfo()).rpcs_lost,
            **_quality(infos.get(node.node_id, pb.NodeInfo())),
        }
        for node in nodes
    }
    reached = [change for change in changes if change.round <= summary.get("rounds", change.round)]
    summary["network_events"] = [f"round {change.round}: {change.text}" for change in reached]
    return summary


def _quality(info: pb.NodeInfo) -> dict[str, Any]:
    digits = {"score": 1, "latency_ms": 1, "loss_rate": 4}
    figures = {name: (known(info, name), places) for name, places in digits.items()}
    shown = {name: None if value is None else round(value, places) for name, (value, places) in figures.items()}
    return {"quality": info.quality or "unknown", **shown}
