"""One hostile process among four: the run learns, and the node is named."""

import json
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hypergpu.common.tensors import Flat
from hypergpu.node.trainer import Fetch, Trainer, Update
from hypergpu.tasks import Task
from hypergpu.tasks.digits import task as digits
from tests.e2e.local import Cluster
from tests.patience import until

pytestmark = pytest.mark.e2e

HOSTILE = "HYPERGPU_TEST_HOSTILE"
OWN_TASK = f"--task={__name__}:task"


def task() -> Task:
    """Return the digits task; in a hostile process, let the trainer send noise, or be lazy."""
    attack = os.environ.get(HOSTILE)
    if attack:
        honest = Trainer.work

        def hostile(self: Trainer, parameters: Flat, batches: Fetch, **options: Any) -> Update:
            if attack == "noise":
                update = honest(self, parameters, batches, **options)
                return replace(update, flat=np.random.default_rng().standard_normal(len(update.flat), np.float32))
            first = batches(0)
            return honest(self, parameters, lambda _: first, **options)

        Trainer.work = hostile  # type: ignore[method-assign]
    return digits()


def start_nodes(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, attack: str, address: str) -> None:
    """Start three honest nodes, and one that attacks."""
    for name in ("honest_0", "honest_1", "honest_2", "hostile"):
        if name == "hostile":
            monkeypatch.setenv(HOSTILE, attack)
        state = f"--set=node.state_dir={cluster.path / 'leases'}"
        node = (f"--coordinator={address}", f"--node-id={name}", "--insecure", state, OWN_TASK)
        cluster.start(name, "node", *node)


def events_of(cluster: Cluster) -> list[dict[str, Any]]:
    """Return the events on record, without a last line that is cut short."""
    text = (cluster.out / "events.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def test_a_node_that_sends_noise_is_named_and_the_run_learns(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = cluster.coordinator("--rounds=15", "--min-nodes=4", "--policy=none", OWN_TASK)
    start_nodes(cluster, monkeypatch, "noise", coordinator.address())
    assert coordinator.wait() == 0, coordinator.text
    named = [(each["node"], each["round"]) for each in events_of(cluster) if each["kind"] == "node_suspected"]
    assert [node for node, _ in named] == ["hostile"]
    assert named[0][1] <= 10
    assert cluster.summary()["final_accuracy"] > 0.9


def test_a_node_that_learns_from_one_batch_only_is_named_by_spot_checks(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    codecs = ("strategy=fixed", "update_codec=int8", "parameters_codec=int8")
    settings = ("contribution.spot_check_share=0.25", *(f"compression.{each}" for each in codecs))
    options = ("--rounds=0", "--min-nodes=4", "--policy=none", *(f"--set={each}" for each in settings))
    coordinator = cluster.coordinator(*options, OWN_TASK)
    start_nodes(cluster, monkeypatch, "lazy", coordinator.address())

    def named() -> list[str]:
        assert coordinator.returncode is None, coordinator.text[-2000:]
        return [each["node"] for each in events_of(cluster) if each["kind"] == "node_suspected"]

    until(named, "a suspect", more=lambda: coordinator.text[-2000:])
    assert named() == ["hostile"]
    checks = [each for each in events_of(cluster) if each["kind"] == "decision" and "spot_check" in each["text"]]
    proved = [each for each in checks if each["reason"] in ("not_reproduced", "check_was_wrong")]
    assert proved, "by its own update, or by its check of another's: it is as lazy there"
    for each in checks:
        is_honest = "hostile" not in (each["subject"], *each["figures"]["by"].split(", "))
        assert not is_honest or each["reason"] == "reproduced", each
    kinds = [json.loads(line) for line in (cluster.out / "ledger.jsonl").read_text().splitlines()]
    assert any(each["kind"] == "receipt" and each["outcome"] == "compared" for each in kinds)
    assert any(each["kind"] == "decision" and each["about"] == "spot_check" for each in kinds)
