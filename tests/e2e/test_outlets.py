"""Outlets of real runs: a coordinator that is killed and resumed, and one whose outlet is broken."""

from pathlib import Path

import pytest

from tests.e2e.local import Cluster
from tests.patience import until

pytestmark = pytest.mark.e2e


def steps(place: Path) -> list[int]:
    """Return the steps of the loss that TensorBoard shows."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(str(place)).Reload()
    return [each.step for each in found.Scalars("loss")] if "loss" in found.Tags()["scalars"] else []


def test_a_coordinator_that_is_killed_goes_on_in_the_same_tensorboard_run(cluster: Cluster) -> None:
    settings = ("--rounds=0", "--set=outlets.tensorboard=true", "--set=server.heartbeat_seconds=0.3")
    coordinator = cluster.coordinator(*settings)
    address = coordinator.address()
    cluster.node("node_1", address)
    place = cluster.out / "tensorboard"
    until(lambda: place.exists() and steps(place), "rounds in TensorBoard", more=lambda: coordinator.text[-2000:])
    coordinator.kill()
    done = len(cluster.rounds_told())
    limit = f"--rounds={done + 3}"
    again = cluster.coordinator(*settings[1:], limit, "--resume", listen=address, name="again")
    assert again.wait() == 0, again.text
    assert steps(place) == list(range(1, done + 4))


def test_a_broken_outlet_changes_nothing_in_the_run_and_says_so(cluster: Cluster) -> None:
    pytest.importorskip("tensorboard")
    obstacle = cluster.path / "a file"
    obstacle.touch()
    coordinator = cluster.coordinator("--rounds=3", f"--set=outlets.tensorboard={obstacle}")
    cluster.node("node_1", coordinator.address())
    assert coordinator.wait() == 0, coordinator.text
    assert cluster.rounds_told() == [1, 2, 3]
    assert coordinator.text.count("degraded: outlets: tensorboard: [Errno 20] Not a directory") == 1
    assert "deliver the rest with: hypergpu outlets" in coordinator.text
