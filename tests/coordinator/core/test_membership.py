from coordinator.core.membership import Membership


def test_a_node_that_comes_anew_all_the_time_counts_once_a_round() -> None:
    members = Membership(max_nodes=10, lost_after_seconds=None)
    for node in ("a", "b"):
        members.join(node, "1", now=0.0)
    for incarnation in range(2, 50):
        members.join("a", str(incarnation), now=1.0)
    assert members.take_ended(now=5.0) == (1, 10.0)
    assert members.take_ended(now=6.0) == (0, 2.0)
    members.join("b", "2", now=7.0)
    members.join("c", "1", now=7.0)  # it came, and none of its processes has ended
    assert members.take_ended(now=8.0) == (1, 6.0)
