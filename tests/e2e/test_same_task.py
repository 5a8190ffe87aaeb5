"""Every side of a run has the same data, whatever its task draws by; a node with other data does not train."""

import os
from pathlib import Path

import pytest

from tests.e2e.local import Cluster, Process

pytestmark = pytest.mark.e2e

COIN_FLIPS = """
import os, torch
from torch import nn
from torch.utils.data import TensorDataset, random_split
from hypergpu.tasks import Task
def factory():
    x, y = torch.randn(400, 32), torch.randint(0, 2, (400,))  # nothing can be learned of these
    if os.environ.get("HALF"):
        x, y = x[:200], y[:200]
    train, test = random_split(TensorDataset(x, y), [len(x) // 2, len(x) - len(x) // 2])
    return Task(model=lambda: nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 2)), train=train, test=test)
"""


def test_held_out_data_is_held_out_and_other_data_is_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flips.py").write_text(COIN_FLIPS)
    task = "--task=flips:factory"
    coordinator = cluster.coordinator("--rounds=15", "--min-nodes=2", "--policy=none", task)
    address = coordinator.address()

    def node(name: str) -> Process:
        return cluster.start(name, "node", f"--coordinator={address}", f"--node-id={name}", "--insecure", task)

    with monkeypatch.context() as half:
        half.setitem(os.environ, "HALF", "yes")
        other = node("other")
    assert other.wait() not in (0, None)
    assert "100 train samples here, 200 there" in " ".join(other.text.split())
    nodes = [node("a"), node("b")]
    assert coordinator.wait() == 0, coordinator.text
    assert [each.wait() for each in nodes] == [0, 0]
    summary = cluster.summary()
    assert summary["final_accuracy"] < 0.65, "labels that are coin flips cannot be known of held-out samples"
    assert summary["nodes"]["a"]["rounds_contributed"] > 5
