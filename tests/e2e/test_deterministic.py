"""The same seed and nodes give the same weights bit for bit, whether or not processes were killed."""

import hashlib
import signal
from pathlib import Path

import pytest

from hypergpu.coordinator.checkpoints import read_tensors
from tests.e2e.local import Cluster

pytestmark = pytest.mark.e2e
ROUNDS, NODES = 14, ("a", "b", "c")
SETTINGS = (
    f"--rounds={ROUNDS}",
    "--min-nodes=3",
    "--policy=none",
    "--set=training.deterministic=true",
    "--set=training.quorum=1.0",
    "--set=server.heartbeat_seconds=0.3",
)


def weights(out: Path) -> dict[str, str]:
    """Return the digest of each tensor: a difference of bytes would fill the screen."""
    tensors, metadata = read_tensors(out / "model.safetensors")
    assert metadata["round"] == str(ROUNDS)
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


def test_kills_of_the_coordinator_and_of_a_node_change_no_bit(tmp_path: Path, cluster: Cluster) -> None:
    calm = Cluster(tmp_path / "calm")
    calm.path.mkdir()
    coordinator = calm.coordinator(*SETTINGS)
    for node in reversed(NODES):
        calm.node(node, coordinator.address())
    try:
        assert coordinator.wait() == 0, coordinator.text
    finally:
        for process in calm.processes:
            process.kill()

    first = cluster.coordinator(*SETTINGS)
    address = first.address()
    nodes = {node: cluster.node(node, address) for node in NODES}
    cluster.reach(3)
    nodes["b"].kill()
    cluster.node("b", address)
    cluster.reach(6)
    first.kill()
    second = cluster.coordinator(*SETTINGS, "--resume", listen=address, name="second")
    cluster.reach(9)
    nodes["c"].send_signal(signal.SIGTERM)  # it leaves, and another comes in its place
    nodes["c"].wait()
    cluster.node("c", address)
    assert second.wait() == 0, second.text
    for run in (calm, cluster):
        assert [row["round"] for row in run.rounds()] == list(range(1, ROUNDS + 1))
        assert all(sorted(row["contributors"]) == list(NODES) for row in run.rounds())
    assert weights(cluster.out) == weights(calm.out)
