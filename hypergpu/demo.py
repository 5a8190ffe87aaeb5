"""The demo: a local cluster of unlike nodes behind unlike links, through three turns of the network."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.errors import HyperGPUError, Unavailable
from hypergpu.dashboard import History, Snapshot
from hypergpu.local import LocalCluster, LocalNode
from protos import coordinator_pb2 as pb
from protos import netsim_pb2 as net

PROFILES = ("perfect", "good", "average", "poor", "unstable")
GPUS = ("a100", "rtx-4090", "v100", "t4", "laptop-cpu")
ENDED = ("completed", "stopped")
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Turn:
    """Something that the network does when a round begins."""

    round: int
    node_id: str
    text: str
    event: net.Event


@dataclass(frozen=True, slots=True)
class NodeSummary:
    """What one node did in the demo."""

    node_id: str
    profile: str
    gpu: str
    rounds_contributed: int
    rounds_selected: int
    retries: int
    late: int
    batch_size: int
    latency_ms: float
    loss_rate: float
    score: float
    quality: str
    rpcs_lost: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What `summary.json` holds."""

    state: str
    """completed, stopped, or interrupted"""
    task: str
    seed: int
    policy: str
    rounds: int
    """Rounds that were finished."""
    final_accuracy: float
    final_loss: float
    duration_seconds: float
    """From the first round's beginning to the end."""
    nodes: list[NodeSummary]
    events: list[str] = field(default_factory=list)
    """What was done to the network."""

    def write(self, directory: Path) -> Path:
        """Leave it in the run's directory."""
        file = directory / "summary.json"
        file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return file


@dataclass(slots=True)
class Progress:
    """What a watcher is told: `event` for each record of the coordinator, `snapshot` twice a second."""

    event: Callable[[pb.RunEvent], None] = lambda _: None
    snapshot: Callable[[Snapshot, History], None] = lambda *_: None


def demo_nodes(count: int) -> list[LocalNode]:
    """`count` nodes, the links and cards taken in turn."""
    return [LocalNode(f"node_{i}", PROFILES[i % len(PROFILES)], GPUS[i % len(GPUS)]) for i in range(count)]


def demo_turns(nodes: Sequence[LocalNode]) -> list[Turn]:
    """A latency spike at round 10, a degradation at 15, an improvement at 20."""
    names = [node.node_id for node in nodes]
    spiked, degraded, improved = names[min(2, len(names) - 1)], names[min(1, len(names) - 1)], names[-1]
    spike = net.Event(type="latency_spike", nodes=[spiked], duration_seconds=10)
    worse = net.Event(type="profile_change", nodes=[degraded], profile="poor")
    better = net.Event(type="profile_change", nodes=[improved], profile="good")
    return [
        Turn(10, spiked, f"latency spike at {spiked} for 10 s", spike),
        Turn(15, degraded, f"the link of {degraded} degrades to poor", worse),
        Turn(20, improved, f"the link of {improved} improves to good", better),
    ]


async def run_demo(run_dir: Path, nodes: Sequence[LocalNode], rounds: int, seed: int, progress: Progress) -> Summary:
    """Run the cluster to its end and leave `summary.json` in `run_dir`, also where it is cut short by cancellation.

    Raises:
        HyperGPUError: a process of the cluster would not start, or the coordinator died.
    """
    settings = [("training.rounds", str(rounds)), ("training.seed", str(seed)), ("training.min_nodes", str(len(nodes)))]
    async with LocalCluster(run_dir, nodes, seed=seed, settings=settings) as cluster:
        turns = [turn for turn in demo_turns(nodes) if turn.round <= rounds]
        for turn in turns:
            request = net.ScheduleRequest(event=turn.event, round=turn.round)
            await cluster.client.call(cluster.client.netsim.Schedule, request)
        watch = _Watch(cluster, progress)
        try:
            await watch.until_the_end()
        finally:
            with suppress(HyperGPUError):
                await asyncio.shield(watch.look())
            summary = watch.summary(seed, [f"round {turn.round}: {turn.text}" for turn in turns])
            summary.write(run_dir)
        return summary


class _Watch:
    """Follows the coordinator: tells the proxy of each round, and the watcher of all."""

    def __init__(self, cluster: LocalCluster, progress: Progress) -> None:
        self._cluster, self._client, self._progress = cluster, cluster.client, progress
        self._history = History()
        self._last = Snapshot(pb.Status(state="waiting"))
        self._began = 0.0
        self._ended = 0.0

    async def until_the_end(self) -> None:
        events = asyncio.create_task(self._follow_events())
        coordinator = asyncio.create_task(self._cluster.processes["coordinator"].wait())
        try:
            while self._last.status.state not in ENDED and not coordinator.done():
                try:
                    await self.look()
                except Unavailable:
                    await asyncio.wait([coordinator], timeout=2.0)
                await asyncio.wait([coordinator], timeout=_POLL_SECONDS)
            self._ended = time.monotonic()
            if self._last.status.state not in ENDED and coordinator.result() != 0:
                log = self._cluster.processes["coordinator"].log
                raise HyperGPUError(f"the coordinator died with exit code {coordinator.result()}; see {log}")
            await asyncio.wait([events], timeout=1.0)
        finally:
            events.cancel()
            coordinator.cancel()

    async def look(self) -> None:
        status = await self._client.call(self._client.control.GetStatus, pb.GetStatusRequest())
        self._last = Snapshot(status, await self._client.nodes(), await self._client.links())
        self._history.add(status)
        self._progress.snapshot(self._last, self._history)

    async def _follow_events(self) -> None:
        request = pb.WatchEventsRequest(replay=1000)
        with suppress(Unavailable):
            async for event in self._client.stream(self._client.control.WatchEvents, request):
                if event.kind == "round_started":
                    self._began = self._began or time.monotonic()
                    announcement = net.AnnounceRoundRequest(round=event.round)
                    await self._client.call(self._client.netsim.AnnounceRound, announcement)
                self._progress.event(event)

    def summary(self, seed: int, events: list[str]) -> Summary:
        status = self._last.status
        links = {link.node_id: link for link in self._last.links}
        known = {node.node_id: node for node in self._last.nodes}
        ended = self._ended or time.monotonic()
        return Summary(
            state=status.state if status.state in ENDED else "interrupted",
            task=status.task,
            seed=seed,
            policy=status.policy,
            rounds=status.round,
            final_accuracy=status.accuracy,
            final_loss=status.loss,
            duration_seconds=round(ended - self._began, 3) if self._began else 0.0,
            nodes=[
                _node_summary(node, known.get(node.node_id, pb.NodeInfo()), links.get(node.node_id, net.LinkInfo()))
                for node in self._cluster.nodes
            ],
            events=events,
        )


def _node_summary(node: LocalNode, info: pb.NodeInfo, link: net.LinkInfo) -> NodeSummary:
    return NodeSummary(
        node_id=node.node_id,
        profile=node.profile,
        gpu=node.gpu,
        rounds_contributed=info.rounds_contributed,
        rounds_selected=info.rounds_selected,
        retries=info.retries,
        late=info.late,
        batch_size=info.batch_size,
        latency_ms=round(info.latency_ms, 1),
        loss_rate=round(info.loss_rate, 4),
        score=round(info.score, 1),
        quality=info.quality,
        rpcs_lost=link.rpcs_lost,
    )
