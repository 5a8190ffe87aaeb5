"""The rate of each link in real processes, through the proxy, in either loss model."""

import json

import pytest
import torch
from torch import nn

from hypergpu.tasks import Task
from tests.e2e.local import Cluster

pytestmark = pytest.mark.e2e

PROFILES = (
    "profiles: {thin: {based_on: good, rtt_ms: 40, loss: 0, up: {bandwidth_mbit: 8}, down: {bandwidth_mbit: 16}}}\n"
)


def wide() -> Task:
    """Return a task whose model has 3 MB."""
    x, y = torch.eye(8).repeat(4, 1), torch.arange(8).repeat(4)
    model = lambda: nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 5600), nn.ReLU(), nn.Linear(5600, 8))  # noqa: E731
    return Task(model=model, train=(x, y), test=(x, y), name="wide")


@pytest.mark.parametrize("loss_model", [pytest.param("rpc", marks=pytest.mark.soak), "transport"])
def test_the_rates_are_those_of_the_profile(cluster: Cluster, loss_model: str) -> None:
    task = f"--task={__name__}:wide"
    (cluster.path / "profiles.yaml").write_text(PROFILES)
    coordinator = cluster.coordinator(
        "--rounds=3", "--min-nodes=2", task, "--policy=none", "--set=training.batch_size=4"
    )
    plain = (f"--upstream={coordinator.address()}", "--listen=127.0.0.1:0", "--seed=1", f"--loss-model={loss_model}")
    profiles = (f"--profiles={cluster.path / 'profiles.yaml'}", "--profile=thin")
    proxy = cluster.start("proxy", "proxy", *plain, *profiles).address()
    for name in ("node_0", "node_1"):
        cluster.start(name, "node", f"--coordinator={proxy}", f"--node-id={name}", "--insecure", task)
    assert coordinator.wait() == 0, coordinator.text
    for node in json.loads((cluster.out / "nodes.json").read_text()):
        # Without TCP's model, flow control through the proxy leaves the line idle at times: what was achieved counts.
        assert node["up_mbit"] == pytest.approx(8.0, rel=0.15 if loss_model == "transport" else 0.2), node
        assert node["down_mbit"] == pytest.approx(16.0, rel=0.15), node
