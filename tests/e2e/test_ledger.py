"""A coordinator that goes back behind what its node has seen: the node notices, and works for it no more."""

import json
import shutil
import signal
import time

import pytest

from tests.e2e.local import Cluster
from tests.patience import until

pytestmark = pytest.mark.e2e
HEARTBEAT_SECONDS = 0.5


def seen_size(cluster: Cluster) -> int:
    """Return the size of the last checkpoint that the node has kept; 0 before the first."""
    kept = list((cluster.path / "leases").glob("*.checkpoint"))
    return int(kept[0].read_text().splitlines()[1]) if kept else 0


def test_a_node_refuses_a_coordinator_that_was_taken_back(cluster: Cluster) -> None:
    settings = ("--rounds=0", f"--set=server.heartbeat_seconds={HEARTBEAT_SECONDS}")
    coordinator = cluster.coordinator(*settings)
    address = coordinator.address()
    node = cluster.node("node_1", cluster.proxy(address, "good").address())
    cluster.reach(3)
    shutil.copytree(cluster.out, cluster.path / "before", ignore=shutil.ignore_patterns("*.partial"))
    copied = json.loads((cluster.path / "before" / "ledger.checkpoints").read_text().splitlines()[-1])["size"]
    seen = until(lambda: (size := seen_size(cluster)) > copied and size, "the node to see what the copy lacks")
    coordinator.send_signal(signal.SIGKILL)
    coordinator.wait()
    shutil.rmtree(cluster.out)
    (cluster.path / "before").rename(cluster.out)
    cluster.coordinator(*settings, "--resume", listen=address, name="again").address()
    until(lambda: "the coordinator does not know this node" in node.text or node.returncode is not None, "the node")
    began = time.monotonic()
    assert node.wait() == 2, node.text
    assert time.monotonic() - began < 20 * HEARTBEAT_SECONDS, "it is noticed with the next heartbeats"
    assert "the ledger of the coordinator was forked" in node.text
    assert "This node does not work for it any more; to work for it in spite of that, remove" in node.text
    assert seen_size(cluster) >= seen, "what it had seen is kept"
