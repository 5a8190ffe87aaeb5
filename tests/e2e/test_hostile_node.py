"""One hostile process among four, with default settings: the run learns, and the node is named."""

import json
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hypergpu.node.trainer import Trainer, Update
from hypergpu.tasks import Task
from hypergpu.tasks.digits import task as digits
from tests.e2e.local import Cluster

pytestmark = pytest.mark.e2e

HOSTILE = "HYPERGPU_TEST_HOSTILE"


def task() -> Task:
    """Return the digits task; in a hostile process, let the trainer send noise."""
    if os.environ.get(HOSTILE):
        honest = Trainer.work

        def noise(self: Trainer, *arguments: Any, **options: Any) -> Update:
            update = honest(self, *arguments, **options)
            return replace(update, flat=np.random.default_rng().standard_normal(len(update.flat), np.float32))

        Trainer.work = noise  # type: ignore[method-assign]
    return digits()


def test_a_node_that_sends_noise_is_named_and_the_run_learns(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    own = f"--task={__name__}:task"
    coordinator = cluster.coordinator("--rounds=15", "--min-nodes=4", "--policy=none", own)
    address = coordinator.address()
    for name in ("honest_0", "honest_1", "honest_2", "hostile"):
        if name == "hostile":
            monkeypatch.setenv(HOSTILE, "1")
        state = f"--set=node.state_dir={cluster.path / 'leases'}"
        cluster.start(name, "node", f"--coordinator={address}", f"--node-id={name}", "--insecure", state, own)
    assert coordinator.wait() == 0, coordinator.text
    events = [json.loads(line) for line in (cluster.out / "events.jsonl").read_text().splitlines()]
    named = [(each["node"], each["round"]) for each in events if each["kind"] == "node_suspected"]
    assert [node for node, _ in named] == ["hostile"]
    assert named[0][1] <= 10
    assert cluster.summary()["final_accuracy"] > 0.9
