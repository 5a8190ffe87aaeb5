"""Minutes of training on a bad network, with one process after the other killed: `make soak`."""

import itertools
import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.local import Cluster, Process

SECONDS = 60 * float(os.environ.get("HYPERGPU_SOAK_MINUTES", "8"))
ROUNDS_BETWEEN = 4
GROWTH_ALLOWED = 1.1
"""Allocators keep some pages. A leak of one update each round would double the memory within a minute."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.soak,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc"),
]


def memory_bytes(process: Process) -> int:
    """Return the resident memory that is backed by no file."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def require_flat(name: str, samples: list[int]) -> None:
    """Compare the second half of the samples with the first."""
    half = len(samples) // 2
    before, after = max(samples[:half]), max(samples[half:])
    assert after <= GROWTH_ALLOWED * before, f"{name} grew: {samples}"


def test_training_survives_kills_on_a_bad_network_in_flat_memory(cluster: Cluster) -> None:
    settings = (
        "--rounds=1000000",
        "--set=server.heartbeat_seconds=0.5",
    )
    coordinator = cluster.coordinator(*settings)
    address = coordinator.address()
    proxy = cluster.proxy(address, "unstable")
    steady = cluster.node("steady", proxy.address())
    nodes = {name: cluster.node(name, proxy.address()) for name in ("node_1", "node_2")}
    cluster.reach(ROUNDS_BETWEEN)
    began = time.monotonic()
    kills = 0
    while time.monotonic() - began < SECONDS / 2:
        coordinator.kill()
        coordinator = cluster.coordinator(*settings, "--resume", listen=address, name=f"coordinator_{kills}")
        cluster.reach(len(cluster.rounds()) + ROUNDS_BETWEEN)
        kills += 1
    memory: dict[str, list[int]] = {"coordinator": [], "proxy": [], "steady": []}
    for name in itertools.cycle(nodes):
        nodes[name].kill()
        nodes[name] = cluster.node(name, proxy.address())
        cluster.reach(len(cluster.rounds()) + ROUNDS_BETWEEN)
        for each, process in (("coordinator", coordinator), ("proxy", proxy), ("steady", steady)):
            memory[each].append(memory_bytes(process))
        if time.monotonic() - began > SECONDS:
            break
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait() == 0, coordinator.text
    assert [process.wait() for process in (steady, *nodes.values())] == [0, 0, 0]
    assert proxy.returncode is None, proxy.text
    assert kills >= 2
    rows = cluster.rounds()
    assert [row["round"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(len(set(row["contributors"])) == len(row["contributors"]) for row in rows)
    assert cluster.summary()["final_accuracy"] >= 0.95
    for each, samples in memory.items():
        require_flat(each, samples)
