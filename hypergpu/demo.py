"""The demo: a local cluster of different nodes on different links, with three changes of the network."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hypergpu.local_cluster import LocalNode
from hypergpu.local_run import NetworkChange, Progress, run_local
from hypergpu.protos import netsim_pb2 as net
from hypergpu.report import SIMULATED
from hypergpu.simulation.comparison import Comparison
from hypergpu.simulation.counterfactual import compare_with_baseline

PROFILES = ("perfect", "good", "average", "poor", "unstable")
GPUS = ("A100", "RTX-4090", "V100", "T4", "laptop-cpu")


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
    settings = {"training.task": task, "training.rounds": rounds, "training.seed": seed}
    return await run_local(
        run_dir, nodes, {**(further or {}), **settings}, progress, changes=changes, seed=seed, stay=stay
    )


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
