"""A cluster of real processes: coordinator, netsim proxy and nodes, through kills, stops, late joins and restarts."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from hypergpu.ledger.verifying import verify
from hypergpu.tasks import build, load_task
from hypergpu.tasks.partition import ShardOrder, partition
from hypergpu.tasks.samples import count, fetch
from tests.e2e.local import Cluster
from tests.patience import until

pytestmark = pytest.mark.e2e


def test_digits_are_learned_through_the_proxy_and_everybody_goes_home(cluster: Cluster) -> None:
    coordinator = cluster.coordinator("--rounds=25", "--min-nodes=3")
    proxy = cluster.proxy(coordinator.address(), "good").address()
    nodes = [cluster.node(f"node_{n}", proxy) for n in range(3)]
    assert coordinator.wait() == 0, coordinator.text
    assert [node.wait() for node in nodes] == [0, 0, 0]
    summary = cluster.summary()
    assert summary["state"] == "completed"
    assert summary["rounds"] == 25
    assert summary["final_accuracy"] >= 0.95
    assert all(summary["nodes"][f"node_{n}"]["rounds_contributed"] >= 20 for n in range(3))


def test_a_quarter_of_the_bytes_both_ways_learns_as_well(cluster: Cluster) -> None:
    codecs = ("strategy=fixed", "update_codec=int8", "parameters_codec=int8")
    settings = [f"--set=compression.{setting}" for setting in codecs]
    coordinator = cluster.coordinator("--rounds=25", "--min-nodes=3", "--policy=none", *settings)
    proxy = cluster.proxy(coordinator.address(), "good").address()
    nodes = [cluster.node(f"node_{n}", proxy) for n in range(3)]
    assert coordinator.wait() == 0, coordinator.text
    assert [node.wait() for node in nodes] == [0, 0, 0]
    summary = cluster.summary()
    assert summary["final_accuracy"] >= 0.95
    float32 = 25 * 3 * 4 * 19_210
    assert 0.2 * float32 < summary["bytes_received"] < 0.26 * float32
    assert 0.2 * float32 < summary["bytes_sent"] < 0.4 * float32  # the first round, and a node that missed one: float32


def test_nodes_are_killed_stopped_and_join_late(cluster: Cluster) -> None:
    # The network alone would make these rounds faster than the test can act.
    coordinator = cluster.coordinator("--rounds=40", "--min-nodes=3", "--set=server.heartbeat_seconds=0.5")
    proxy = cluster.proxy(coordinator.address(), "good").address()
    nodes = {name: cluster.node(name, proxy) for name in ("steady", "killed", "paused")}
    cluster.reach(3)
    nodes["killed"].kill()
    nodes["paused"].send_signal(signal.SIGSTOP)
    cluster.node("late", proxy)
    cluster.reach(len(cluster.rounds()) + 5)
    nodes["paused"].send_signal(signal.SIGCONT)
    assert coordinator.wait() == 0, coordinator.text
    summary = cluster.summary()
    assert summary["state"] == "completed"
    assert summary["final_accuracy"] >= 0.95
    contributed = {name: row["rounds_contributed"] for name, row in summary["nodes"].items()}
    assert contributed["steady"] >= 30
    assert contributed["killed"] < 40
    assert contributed["paused"] > 3
    assert contributed["late"] > 0
    _require_nothing_twice(cluster.rounds())


def _require_nothing_twice(rows: list[dict[str, Any]]) -> None:
    assert [row["round"] for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        assert len(set(row["contributors"])) == len(row["contributors"])
        assert not set(row["contributors"]) & set(row["missing"])


def test_rounds_of_several_nodes_are_the_steps_of_one_process(cluster: Cluster) -> None:
    """On the same samples, to float32 rounding."""
    settings = ("local_steps=1", "learning_rate=0.02", "quorum=1.0")
    coordinator = cluster.coordinator(
        "--rounds=3",
        "--min-nodes=3",
        "--policy=none",
        *(f"--set=training.{setting}" for setting in settings),
    )
    address = coordinator.address()
    for n in range(3):
        cluster.node(f"node_{n}", address)
    assert coordinator.wait() == 0, coordinator.text
    rows = cluster.rounds()
    assert [len(row["contributors"]) for row in rows] == [3] * 3

    task = load_task("digits")
    model = build(task, 0)
    shards = partition("iid", count(task.train), 3, 0)
    orders = [ShardOrder(shards, index) for index in range(3)]
    cursor = 0
    for row in rows:
        (size,) = set(row["batch_sizes"].values())
        taken = np.concatenate([order.take(cursor, size) for order in orders])
        cursor += size
        inputs, targets = fetch(task.train, taken, torch.device("cpu"))
        model.gradients.zero_()
        task.loss(model.module(inputs), targets).backward()
        model.parameters.add_(model.gradients, alpha=-0.02)
    with safe_open(cluster.out / "checkpoints" / "round-000003.safetensors", "np") as saved:
        for name, expected in model.manifest.views(model.flat()).items():
            np.testing.assert_allclose(saved.get_tensor(name), expected, rtol=1e-5, atol=1e-6)


def test_a_node_that_was_stopped_for_longer_than_its_heartbeats_may_miss_comes_back(cluster: Cluster) -> None:
    coordinator = cluster.coordinator(
        "--rounds=100000", "--min-nodes=2", "--set=server.heartbeat_seconds=0.3", "--set=server.heartbeat_misses=3"
    )
    address = cluster.proxy(coordinator.address(), "good").address()
    nodes = {name: cluster.node(name, address) for name in ("steady", "paused")}
    cluster.reach(3)
    nodes["paused"].send_signal(signal.SIGSTOP)
    until(lambda: "paused lost" in coordinator.text, "the news that a node is lost")
    lost_at = len(cluster.rounds())
    cluster.reach(lost_at + 3)
    nodes["paused"].send_signal(signal.SIGCONT)

    def is_back() -> bool:
        return any("paused" in row["contributors"] for row in cluster.rounds()[lost_at + 3 :])

    until(is_back, "an update of the node that was stopped")
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait() == 0, coordinator.text
    assert [node.wait() for node in nodes.values()] == [0, 0]
    _require_nothing_twice(cluster.rounds())


def test_sigterm_finishes_the_work_and_sigkill_loses_only_its_own(cluster: Cluster) -> None:
    coordinator = cluster.coordinator("--rounds=100000", "--min-nodes=3", "--set=server.heartbeat_seconds=0.3")
    address = cluster.proxy(coordinator.address(), "average").address()
    nodes = {name: cluster.node(name, address) for name in ("steady", "ended", "killed")}
    cluster.reach(2)
    nodes["ended"].send_signal(signal.SIGTERM)
    nodes["killed"].kill()
    assert nodes["ended"].wait() == 0
    assert "leaving" in nodes["ended"].text
    assert "Traceback" not in nodes["ended"].text
    until(lambda: "ended left: SIGTERM" in coordinator.text, "the news that a node left")
    cluster.reach(len(cluster.rounds()) + 4)
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait() == 0, coordinator.text
    rows = cluster.rounds()
    _require_nothing_twice(rows)
    assert rows[-1]["contributors"] == ["steady"]
    contributed = cluster.summary()["nodes"]
    for name in nodes:
        assert contributed[name]["rounds_contributed"] == sum(name in row["contributors"] for row in rows)


def test_a_coordinator_that_lost_all_nodes_waits_for_them(cluster: Cluster) -> None:
    coordinator = cluster.coordinator("--rounds=30", "--set=server.heartbeat_seconds=0.3")
    address = coordinator.address()
    first = cluster.node("first", address)
    cluster.reach(2)
    first.kill()
    until(lambda: "all nodes disconnected" in coordinator.text, "the news that all nodes are gone")
    assert coordinator.returncode is None
    cluster.node("second", address)
    assert coordinator.wait() == 0, coordinator.text
    assert cluster.summary()["nodes"]["second"]["rounds_contributed"] > 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_coordinator_that_was_killed_or_restarted_resumes_with_its_nodes(cluster: Cluster, number: int) -> None:
    settings = ("--rounds=40",)
    coordinator = cluster.coordinator(*settings, "--set=server.stay=true")
    address = coordinator.address()
    # Through a link, so that a round takes long enough to be interrupted.
    node = cluster.node("node_1", cluster.proxy(address, "good").address())
    cluster.reach(5)
    coordinator.send_signal(number)
    assert coordinator.wait() == (0 if number == signal.SIGTERM else -number), coordinator.text
    before = [row["round"] for row in cluster.rounds()]
    again = cluster.coordinator(*settings, "--resume", listen=address, name="again")
    assert again.wait() == 0, again.text
    assert node.wait() == 0, node.text
    rounds = cluster.rounds()
    assert [row["round"] for row in rounds] == list(range(1, 41))
    assert len(before) >= 5
    summary = cluster.summary()
    assert summary["final_accuracy"] >= 0.95
    assert summary["nodes"]["node_1"]["rounds_contributed"] >= 38
    verdict = verify(cluster.out)
    assert (verdict.faults, verdict.rounds, verdict.unsigned) == ([], 40, 0)
    assert verdict.receipts >= 38


def test_an_interrupt_leaves_the_run_readable(cluster: Cluster) -> None:
    coordinator = cluster.coordinator("--rounds=100000")
    cluster.node("node_1", coordinator.address())
    cluster.reach(3)
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait() == 0, coordinator.text
    summary = cluster.summary()
    assert summary["state"] == "stopped"
    assert summary["rounds"] >= 3
    assert len(cluster.rounds()) >= summary["rounds"]
    assert "Traceback" not in coordinator.text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--insecure", "--task=digit"], "did you mean 'digits'"),
        (["--insecure", "--set=training.roundz=3"], "did you mean 'rounds'"),
        (["--insecure", "--rounds=-1"], "training.rounds"),
        (["--insecure", "--force"], "--force needs --resume"),
        (["--insecure", "--policy=bold"], "orchestrator.policy"),
        (["--insecure", "--listen=nowhere"], "HOST:PORT"),
        (["--token=t"], "--tls-cert"),
        (["--tls-cert=c.pem", "--tls-key=k.pem"], "join token"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(cluster: Cluster, arguments: list[str], says: str) -> None:
    plain = ["--http-listen=127.0.0.1:0", "--listen=127.0.0.1:0", f"--out={cluster.out}"]
    coordinator = cluster.start("coordinator", "coordinator", *plain, *arguments)
    assert coordinator.wait() == 2, coordinator.text
    assert says in coordinator.text
    assert len(coordinator.text.strip().splitlines()) == 1


def test_a_port_in_use_is_one_line_and_leaves_an_earlier_run_alone(cluster: Cluster, tmp_path: Path) -> None:
    earlier = Cluster(tmp_path / "earlier")
    earlier.out.mkdir(parents=True)
    (earlier.out / "config.yaml").write_text("mine")
    address = cluster.coordinator().address()
    second = earlier.coordinator(listen=address)
    assert second.wait() == 2
    assert f"cannot listen on {address}" in second.text
    assert (earlier.out / "config.yaml").read_text() == "mine"


def test_a_second_coordinator_in_one_place_is_refused_until_the_first_is_killed(cluster: Cluster) -> None:
    first = cluster.coordinator()
    first.address()
    before = {file: file.read_bytes() for file in cluster.out.rglob("*") if file.is_file()}
    for arguments in ((), ("--resume",)):
        second = cluster.coordinator(*arguments, name="second")
        assert second.wait() == 2
        assert (
            second.text.strip()
            .splitlines()[-1]
            .startswith(f"hypergpu: the run directory {cluster.out} is in use by process {first.pid};")
        )
    assert {file: file.read_bytes() for file in cluster.out.rglob("*") if file.is_file()} == before
    first.kill()
    cluster.coordinator("--resume", name="third").address()
