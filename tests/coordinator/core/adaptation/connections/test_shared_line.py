"""Number of nodes of a round, found from the rates of rounds: the coordinator's line is never told."""

import pytest

from hypergpu.coordinator.core.adaptation.connections.shared_line import LineOutlook, SharedLine

MB = 1_000_000.0


class Cluster:
    """Nodes with equal lines behind the line of the coordinator; rates in megabytes a second."""

    def __init__(self, nodes: int = 16, own: float = 12.0, shared: float = 12.0, noise_nodes: float = 16.0) -> None:
        self.line = SharedLine()
        self.nodes, self.own, self.shared, self.noise_nodes = nodes, own, shared, noise_nodes
        self.reasons: list[str] = []
        self.node_bytes, self.uneven, self.rest_seconds = 80 * MB, 1.0, 1.0

    def run(self, rounds: int) -> int:
        """Run rounds; return how many nodes the coming one would have."""
        for _ in range(rounds):
            count = min(self.line.most or self.nodes, self.nodes)
            rate = MB * min(self.own, self.shared / count)
            self.line.record(count, [rate * self.uneven, *[rate] * (count - 1)])
            change = self.line.choose(LineOutlook(self.nodes, self.node_bytes, self.rest_seconds, self.noise_nodes))
            if change is not None:
                self.reasons.append(str(change.reason))
        return min(self.line.most or self.nodes, self.nodes)


def worth(cluster: Cluster, count: int) -> float:
    rate = MB * min(cluster.own, cluster.shared / count)
    return count / (count + cluster.noise_nodes) / (1.0 + cluster.node_bytes / rate)


@pytest.mark.parametrize(("own", "shared"), [(12.0, 12.0), (12.0, 60.0), (3.0, 12.0)])
def test_over_a_shared_line_the_number_with_the_most_progress_per_second_is_found(own: float, shared: float) -> None:
    cluster = Cluster(own=own, shared=shared)
    found = cluster.run(8)
    assert worth(cluster, found) >= 0.9 * max(worth(cluster, count) for count in range(2, 17))
    assert found < 16
    assert cluster.reasons[:2] == ["line_may_be_shared", "line_is_shared"]
    assert cluster.run(20) == found, "it stays"


def test_over_lines_of_their_own_fewer_nodes_are_tried_once() -> None:
    cluster = Cluster(own=2.0, shared=1e6)
    assert cluster.run(1) == 12
    assert cluster.run(1) == 16
    assert cluster.run(30) == 16
    assert cluster.reasons == ["line_may_be_shared", "line_is_not_shared"]


def test_nodes_of_different_speed_do_not_seem_to_share_a_line() -> None:
    cluster = Cluster(own=2.0, shared=1e6)
    cluster.uneven = 1.2
    assert cluster.run(10) == 16
    assert cluster.reasons == []
    cluster.uneven = 0.8
    assert cluster.run(10) == 16
    assert cluster.reasons == []


def test_nodes_of_which_one_was_late_do_not_seem_to_share_a_line() -> None:
    line, outlook = SharedLine(), LineOutlook(16, 80 * MB, 1.0, 16.0)
    line.record(16, [MB] * 15)
    assert line.choose(outlook) is None
    line.record(16, [MB] * 16)
    assert line.choose(outlook) is not None


def test_lines_of_their_own_are_not_tried_again_when_nodes_come_and_go() -> None:
    cluster = Cluster(own=2.0, shared=1e6)
    cluster.run(3)
    cluster.nodes = 8
    cluster.run(5)
    assert cluster.reasons == ["line_may_be_shared", "line_is_not_shared"]


@pytest.mark.parametrize(
    ("nodes", "noise_nodes", "node_bytes"), [(3, 0.5, 80 * MB), (16, 1e4, 80 * MB), (16, 16.0, 0.1 * MB)]
)
def test_nothing_is_tried_where_fewer_nodes_could_not_pay(nodes: int, noise_nodes: float, node_bytes: float) -> None:
    """There are few, the noise needs all of them, or transfers take next to nothing."""
    cluster = Cluster(nodes, noise_nodes=noise_nodes)
    cluster.node_bytes = node_bytes
    assert cluster.run(10) == nodes
    assert cluster.reasons == []


def test_more_nodes_take_part_once_their_noise_asks_for_it() -> None:
    cluster = Cluster(own=12.0, shared=60.0)
    few = cluster.run(8)
    cluster.noise_nodes, cluster.rest_seconds = 1e3, 3.0
    assert cluster.run(8) > few
    assert cluster.reasons[-1] == "more_nodes_pay"


def test_a_line_that_changes_is_measured_again() -> None:
    cluster = Cluster()
    found = cluster.run(8)
    cluster.shared = 1e6
    cluster.own = 120.0
    cluster.run(3)
    assert "line_has_changed" in cluster.reasons
    assert cluster.run(8) > found


def test_other_nodes_are_measured_again() -> None:
    cluster = Cluster()
    cluster.run(8)
    cluster.nodes = 32
    assert cluster.run(1) == 32
    assert cluster.reasons[-1] == "line_has_changed"


def test_a_round_of_which_little_was_measured_shows_nothing() -> None:
    line = SharedLine()
    line.record(16, [MB] * 7)
    assert line.choose(LineOutlook(16, 80 * MB, 1.0, 16.0)) is None


def test_rounds_that_happen_to_have_fewer_nodes_show_no_shared_line() -> None:
    line = SharedLine()
    line.record(16, [MB] * 14)
    line.record(8, [2 * MB] * 7)
    assert line.choose(LineOutlook(16, 80 * MB, 1.0, 16.0)) is None
