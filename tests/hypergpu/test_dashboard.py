from rich.console import Console

from hypergpu.dashboard import History, Snapshot, dashboard, sparkline
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import netsim_pb2 as net


def crowd(count: int) -> Snapshot:
    status = pb.Status(
        run_id="run-1",
        state="training",
        task="digits",
        round=12,
        rounds=25,
        metric=pb.Metric(name="accuracy", better="higher", format="percent", value=0.953),
        policy="reactive",
        decisions=[pb.DecisionRecord(round=i, kind="selection", reason="score", detail="x" * 200) for i in range(40)],
    )
    nodes = [pb.NodeInfo(node_id=f"node_{i}", state="working", quality="good", score=88) for i in range(count)]
    links = [net.LinkInfo(node_id=f"node_{i}", profile="unstable") for i in range(count)]
    return Snapshot(status, nodes, links)


def test_it_fits_a_terminal_of_100_by_30_however_many_nodes_there_are() -> None:
    for count in (0, 1, 5, 200):
        console = Console(width=100, height=30, record=True, file=None, force_terminal=True)
        with console.capture() as capture:
            console.print(dashboard(crowd(count), History(), height=30))
        lines = capture.get().splitlines()
        assert len(lines) <= 30
        if count == 200:
            assert "more: " in capture.get()


def test_active_events_stand_out() -> None:
    snapshot = crowd(2)
    snapshot.links[1].active_events.append("latency_spike")
    console = Console(width=100)
    with console.capture() as capture:
        console.print(dashboard(snapshot, History()))
    assert capture.get().count("⚡") == 1


def test_codecs_and_connections_are_shown_once_they_are_not_the_usual_ones() -> None:
    console, snapshot = Console(width=100), crowd(2)
    for node in snapshot.nodes:
        node.codecs, node.connections_down, node.connections_up = "none/none", 1, 1
    with console.capture() as before:
        console.print(dashboard(snapshot, History()))
    assert "codecs" not in before.get() and "mean" in before.get()
    snapshot.nodes[1].codecs, snapshot.nodes[1].connections_up = "int4/int8", 16
    snapshot.status.compute_utilisation = 0.127
    with console.capture() as after:
        console.print(dashboard(snapshot, History()))
    (row,) = [line for line in after.get().splitlines() if "node_1" in line]
    assert "int4/int8" in row and "1 16" in row
    assert "nodes computed 13 % of the last one" in after.get()


def test_history_takes_each_round_once_and_reads_the_past() -> None:
    history = History()
    history.replay(pb.RunEvent(round=1, kind="round_closed", json='{"accuracy": 0.5, "round_seconds": 2.0}'))
    history.replay(pb.RunEvent(round=2, kind="round_closed", json='{"accuracy": null, "round_seconds": 3.0}'))
    history.replay(pb.RunEvent(round=2, kind="decision", json="{}"))
    history.replay(pb.RunEvent(round=2, kind="round_closed", json="cut off {"))
    history.add(pb.Status(round=3, metric=pb.Metric(name="accuracy", value=0.6), round_seconds=1.0))
    history.add(pb.Status(round=3, metric=pb.Metric(name="accuracy", value=0.7), round_seconds=1.5))
    assert history.metric == {1: 0.5, 3: 0.7}
    assert history.round_seconds == {1: 2.0, 2: 3.0, 3: 1.5}


def test_a_sparkline_spans_its_values() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0]) == "▁"
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline(range(100), width=3) == "▁▅█"
