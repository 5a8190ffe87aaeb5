"""A run on a cluster of local processes: start it, follow it to its end, and complete its summary."""

import asyncio
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


async def run_local(
    run_dir: Path,
    nodes: Sequence[LocalNode],
    settings: Mapping[str, object],
    progress: Progress,
    *,
    changes: Sequence[NetworkChange] = (),
    seed: int = 0,
    stay: bool = False,
    import_from: Path | None = None,
) -> dict[str, Any]:
    """Run the cluster to its end, or to cancellation; return the content of `summary.json` in `run_dir`.

    Args:
        run_dir: run directory.
        nodes: nodes, with their links and GPUs.
        settings: settings by dotted key.
        progress: callbacks.
        changes: changes of the network, each at its round.
        seed: seed of the network.
        stay: keep the cluster after the end of its run, until this is cancelled.
        import_from: directory in which the processes look for modules too.

    Raises:
        RunInUse: another process writes to `run_dir`.
        HyperGPUError: a process of the cluster did not start, or the coordinator died.
    """
    last = Snapshot(pb.Status(state="waiting"))

    def look(snapshot: Snapshot, history: History) -> None:
        nonlocal last
        last = snapshot
        progress.snapshot(snapshot, history)

    own = {"training.min_nodes": len(nodes), "server.stay": str(stay).lower()}
    cluster = LocalCluster(run_dir, nodes, seed=seed, settings={**settings, **own}, import_from=import_from)
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
