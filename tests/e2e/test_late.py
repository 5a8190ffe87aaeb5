"""Late updates in real processes: a node behind a thin link delivers after its round, and counts in a later one."""

import json

import pytest
import torch
from torch import nn

from hypergpu.tasks import Task
from tests.e2e.local import Cluster

pytestmark = pytest.mark.e2e

PROFILES = "profiles: {thin: {based_on: perfect, up: {bandwidth_mbit: 16}}}\n"


def wide() -> Task:
    """Return a task whose model has 3 MB: 1.5 s on the thin link."""
    x, y = torch.eye(8).repeat(4, 1), torch.arange(8).repeat(4)
    model = lambda: nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 5600), nn.ReLU(), nn.Linear(5600, 8))  # noqa: E731
    return Task(model=model, train=(x, y), test=(x, y), name="wide")


@pytest.mark.parametrize("mode", ["late", "buffered"])
def test_the_update_of_a_slow_node_counts_in_a_later_round(cluster: Cluster, mode: str) -> None:
    task = f"--task={__name__}:wide"
    (cluster.path / "profiles.yaml").write_text(PROFILES)
    settings = (f"mode={mode}", "close_share=0.6", "max_staleness=1000", "batch_size=4")
    coordinator = cluster.coordinator(
        *("--rounds=40", "--min-nodes=3", "--policy=none", task), *(f"--set=training.{each}" for each in settings)
    )
    address = coordinator.address()
    plain = (f"--upstream={address}", "--listen=127.0.0.1:0", f"--profiles={cluster.path / 'profiles.yaml'}")
    proxy = cluster.start("proxy", "proxy", *plain, "--profile=thin").address()
    for name, dialled in (("fast_0", address), ("fast_1", address), ("slow", proxy)):
        cluster.start(name, "node", f"--coordinator={dialled}", f"--node-id={name}", "--insecure", task)
    assert coordinator.wait() == 0, coordinator.text
    rows = [json.loads(line) for line in (cluster.out / "rounds.jsonl").read_text().splitlines()]
    late = [(row["round"], each) for row in rows for each in row.get("late", ())]
    assert late, coordinator.text[-2000:]
    for counted_in, each in late:
        assert counted_in == each["round"] + each["staleness"]
        assert each["weight"] == pytest.approx(each["samples"] / (1 + each["staleness"]) ** 0.5, rel=1e-4)
        assert each["node"] in rows[each["round"] - 1]["missing"]
    (slow,) = [each for each in json.loads((cluster.out / "nodes.json").read_text()) if each["node_id"] == "slow"]
    assert slow["merged_late"] == len([each for _, each in late if each["node"] == "slow"]) > 0
    assert slow["late"] <= 1, "none was refused, except after the last round"
    assert "late merged" in coordinator.text
