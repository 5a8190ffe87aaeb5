"""The Python API with real processes, as in a notebook: in a thread whose event loop is running."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

import hypergpu
from examples.own_task import wine
from hypergpu import LocalNode
from hypergpu.discovery import local_clusters

pytestmark = pytest.mark.e2e


def test_a_run_in_a_notebook_gives_rows_and_ctrl_c_ends_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the processes find the task by where its module is
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    seen: list[int] = []

    def interrupt(done: int, total: int) -> None:
        assert total == 100_000
        if done >= 2 and not seen:
            assert [cluster.name for cluster in local_clusters()] == ["run"]
            seen.append(done)
            os.kill(os.getpid(), signal.SIGINT)

    async def cell() -> None:
        nodes = [LocalNode("a", "good", "T4")]
        hypergpu.run(wine, nodes=nodes, policy="none", rounds=100_000, out="runs/run", progress=interrupt)

    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell())
    finally:
        loop.close()
    assert seen
    assert local_clusters() == []
    kept = hypergpu.RunResult.of("runs/run")
    assert (kept.policy, kept.rounds >= 2, kept.metric.name) == ("none", True, "accuracy")
    assert {row["node_id"] for row in kept.node_round_rows()} == {"a"}
