"""Minutes of training on a bad network, with one process after the other killed: `make soak`."""

import itertools
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from hypergpu.coordinator.failpoints import VARIABLE, Point
from tests.e2e.local import Cluster, Process
from tests.patience import until

SECONDS = 60 * float(os.environ.get("HYPERGPU_SOAK_MINUTES", "8"))
KILLS = int(os.environ.get("HYPERGPU_SOAK_KILLS", "100"))
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


def test_a_coordinator_that_dies_at_any_step_of_the_durable_path_undoes_nothing_that_it_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that die where `HYPERGPU_FAILPOINTS` says, and at other times; HYPERGPU_SOAK_SEED repeats a test."""
    seed = int(os.environ.get("HYPERGPU_SOAK_SEED", str(random.randrange(1 << 30))))
    draws, settings = random.Random(seed), ("--rounds=0", "--min-nodes=2", "--set=server.heartbeat_seconds=0.5")
    address, told = "127.0.0.1:0", 0
    for kill in range(KILLS):
        point = draws.choice(list(Point))
        action = draws.choice(("crash", "torn")) if point in (Point.LOG_STEP, Point.LOG_ROUND) else "crash"
        monkeypatch.setenv(VARIABLE, f"{point}={action}:{draws.random():.3f}@{draws.randint(1, 12)}")
        name = f"coordinator-{seed}-{kill}"
        every = draws.choice(("2 %", "2 rounds", "1000 seconds"))
        more = ("--resume", f"--set=checkpoint.every={every}")
        coordinator = cluster.coordinator(*settings, *more, listen=address, name=name)
        monkeypatch.delenv(VARIABLE)
        if kill == 0:
            address = coordinator.address()
            for node in ("a", "b"):
                cluster.node(node, address)
        dies_at = time.monotonic() + 10.0
        until(lambda: coordinator.returncode is not None or time.monotonic() > dies_at, f"the end of {name}")  # noqa: B023
        coordinator.kill()
        rows = cluster.rounds_told()
        assert rows == list(range(1, len(rows) + 1)), f"seed {seed}, kill {kill}: {rows}"
        assert len(rows) >= told, f"seed {seed}, kill {kill}: {told} rounds were told, and {len(rows)} are left"
        told = len(rows)
    events = [json.loads(line) for line in (cluster.out / "events.jsonl").read_text().splitlines()[:-1]]
    closed = [event["round"] for event in events if event["kind"] == "round_closed"]
    assert closed == sorted(set(closed)), f"seed {seed}: a round was told twice"
    assert told > KILLS / 2
