"""A run that is over in a cluster that lasts: its node waits, and the next run begins where it did."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.e2e.local import ENVIRONMENT, Cluster
from tests.patience import until

pytestmark = pytest.mark.e2e


def hypergpu(address: str, *arguments: str) -> str:
    command = [sys.executable, "-c", "from hypergpu.cli import main; main()", *arguments, f"--coordinator={address}"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_finished_run_is_followed_by_another_with_the_same_node_and_address(cluster: Cluster) -> None:
    coordinator = cluster.coordinator("--rounds=2", "--set=server.stay=true", "--set=server.heartbeat_seconds=0.3")
    address = coordinator.address()
    node = cluster.node("node_1", address)
    until(lambda: "waiting for the next" in node.text, "the node's news that the run is over")
    assert "hypergpu restart" in hypergpu(address, "status")
    told = hypergpu(address, "restart")
    assert "of 2, policy" in told
    until(lambda: node.text.count("waiting for the next") == 2, "the end of the second run")
    assert node.returncode is None
    assert coordinator.returncode is None
    earlier = cluster.out / "earlier" / "1"
    for kept in (earlier, cluster.out):
        assert len((kept / "rounds.jsonl").read_text().splitlines()) == 2
        assert Path(kept / "summary.json").exists()
    assert coordinator.text.count(f"listening on {address}") == 2
    coordinator.send_signal(signal.SIGTERM)
    assert coordinator.wait() == 0, coordinator.text


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_run_that_is_stopped_soon_after_a_restart_leaves_its_model(cluster: Cluster, rounds: int) -> None:
    coordinator = cluster.coordinator("--rounds=0", "--set=server.stay=true", "--set=server.heartbeat_seconds=0.3")
    address = coordinator.address()
    cluster.node("node_1", address)
    cluster.reach(3)
    hypergpu(address, "restart")
    cluster.reach(rounds)
    coordinator.send_signal(signal.SIGTERM)
    assert coordinator.wait() == 0, coordinator.text
    earlier = cluster.out / "earlier" / "1"
    for kept, least in ((earlier, 3), (cluster.out, rounds)):
        with safe_open(kept / "model.safetensors", "pt") as file:
            assert int(file.metadata()["round"]) == cluster.summary(kept)["rounds"] >= least
