"""Rehearsals in real processes: one runs beside the run, and one that is killed changes nothing."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hypergpu.coordinator.rehearsing import MODULE
from tests.e2e.local import Cluster, Process
from tests.patience import until

pytestmark = pytest.mark.e2e


def decisions(cluster: Cluster) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (cluster.out / "events.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "decision" and row["text"].startswith("rehearsal ")]


def rehearsal_of(coordinator: Process) -> int | None:
    """Return the process of the coordinator's rehearsal, if one runs."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = next(line for line in status.read_text().splitlines() if line.startswith("PPid:"))
            command = (status.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(parent.split()[1]) == coordinator.pid and MODULE in command:
            return int(status.parent.name)
    return None


def with_rehearsals(cluster: Cluster) -> Process:
    """Start a run that rehearses."""
    settings = ("server.heartbeat_seconds=0.2", "batch.max_learning_rate_factor=1", "training.local_optimizer=sgd")
    coordinator = cluster.coordinator(
        *("--rounds=2000", "--min-nodes=3", "--policy=rehearsed"), *(f"--set={each}" for each in settings)
    )
    proxy = cluster.proxy(coordinator.address(), "average").address()
    for number in range(3):
        cluster.node(f"node_{number}", proxy)
    return coordinator


@pytest.mark.parametrize("killed", [pytest.param(False, marks=pytest.mark.soak), True])
def test_a_rehearsal_runs_beside_a_run_and_its_end_is_harmless(cluster: Cluster, killed: bool) -> None:
    coordinator = with_rehearsals(cluster)
    child = until(lambda: rehearsal_of(coordinator), "a rehearsal", more=lambda: coordinator.text[-2000:])
    assert child is not None
    if killed:
        os.kill(child, signal.SIGKILL)
    else:
        until(lambda: os.getpriority(os.PRIO_PROCESS, child) == 19 or decisions(cluster), "its low priority")
    (decision,) = until(lambda: decisions(cluster), "the decision")[:1]
    rounds = len(cluster.rounds())
    cluster.reach(rounds + 3)
    assert coordinator.returncode is None, coordinator.text
    if killed:
        assert decision["reason"] == "failed"
        assert coordinator.text.count("a rehearsal failed; the run goes on without it") == 1
    else:
        assert decision["reason"] in ("predicted_faster", "nothing_faster")
        assert decision["figures"]["cpu_seconds"] > 0
        assert decision["figures"]["worth_by"] == "update_norms"
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait() == 0, coordinator.text
    assert cluster.summary()["state"] == "stopped"


def test_a_coordinator_that_is_stopped_leaves_no_rehearsal_behind(cluster: Cluster) -> None:
    coordinator = with_rehearsals(cluster)
    child = until(lambda: rehearsal_of(coordinator), "a rehearsal", more=lambda: coordinator.text[-2000:])
    assert child is not None
    os.kill(child, signal.SIGSTOP)  # so that it cannot end by itself
    try:
        coordinator.send_signal(signal.SIGTERM)
        coordinator.wait()
        assert not Path(f"/proc/{child}").exists()
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
