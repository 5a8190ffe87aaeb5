import pytest

from hypergpu.coordinator.core.membership import Membership, Presence


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


@pytest.mark.parametrize(
    ("state", "presence", "reason"),
    [
        ("idle", Presence.LOST, "not back since the coordinator was restarted"),
        ("working", Presence.LOST, "not back since the coordinator was restarted"),
        ("", Presence.LOST, "not back since the coordinator was restarted"),
        ("left", Presence.LEFT, "left before the coordinator was restarted"),
        ("lost", Presence.LEFT, "lost before the coordinator was restarted"),
    ],
)
def test_after_a_restart_only_nodes_that_were_there_are_missed(state: str, presence: Presence, reason: str) -> None:
    members = Membership(max_nodes=10, lost_after_seconds=None)
    members.remember([{"node_id": "a", "state": state, "rounds_contributed": 3}])
    member = members.require("a")
    assert (member.presence, member.reason, member.rounds_contributed) == (presence, reason, 3)
    assert not members.connected
    again, new = members.join("a", "2", now=1.0)
    assert (new, again.presence, again.reason, again.rounds_contributed) == (True, Presence.CONNECTED, "", 3)
