import math

import pytest

from hypergpu.common.errors import NotFound, ResourceExhausted
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds.membership import ConnectionState, Membership
from hypergpu.coordinator.run_records import node_row


def test_a_node_that_comes_anew_all_the_time_counts_once_a_round() -> None:
    members = Membership(max_nodes=10, lost_after_seconds=None)
    for node in ("a", "b"):
        members.join(node, "1", now=0.0)
    for incarnation in range(2, 50):
        members.join("a", str(incarnation), now=1.0)
    assert members.drain_restarts(now=5.0) == (1, 10.0)
    assert members.drain_restarts(now=6.0) == (0, 2.0)
    members.join("b", "2", now=7.0)
    members.join("c", "1", now=7.0)  # it came, and none of its processes has ended
    assert members.drain_restarts(now=8.0) == (1, 6.0)


@pytest.mark.parametrize(
    ("state", "connection", "reason"),
    [
        ("idle", ConnectionState.LOST, "has not reconnected since the coordinator restarted"),
        ("working", ConnectionState.LOST, "has not reconnected since the coordinator restarted"),
        ("", ConnectionState.LOST, "has not reconnected since the coordinator restarted"),
        ("left", ConnectionState.LEFT, "left before the coordinator restarted"),
        ("lost", ConnectionState.LEFT, "lost before the coordinator restarted"),
    ],
)
def test_after_a_restart_only_nodes_that_were_there_are_missed(
    state: str, connection: ConnectionState, reason: str
) -> None:
    members = Membership(max_nodes=10, lost_after_seconds=None)
    members.restore([{"node_id": "a", "state": state, "rounds_contributed": 3}])
    member = members.require("a")
    assert (member.connection, member.reason, member.rounds_contributed) == (connection, reason, 3)
    assert not members.connected
    again, new = members.join("a", "2", now=1.0)
    assert (new, again.connection, again.reason, again.rounds_contributed) == (True, ConnectionState.CONNECTED, "", 3)


def test_what_is_kept_of_nodes_that_went_is_bounded_and_the_latest_are_kept() -> None:
    members = Membership(max_nodes=3, lost_after_seconds=None)
    for number in range(6):
        members.join(f"n{number}", "1", now=float(number))
        if number != 1:
            members.remove(f"n{number}", ConnectionState.LEFT, "done", now=10.0 - number)
    assert [member.node_id for member in members] == ["n0", "n1", "n2", "n3", "n4", "n5"]
    members.join("n6", "1", now=20.0)
    # Half of the five that are gone: those that went first.
    assert [member.node_id for member in members] == ["n0", "n1", "n2", "n3", "n6"]
    members.join("n2", "2", now=21.0)
    with pytest.raises(ResourceExhausted, match="3 nodes are connected"):
        members.join("n7", "1", now=22.0)
    members.admit("n1")


def test_a_silent_node_is_named_once_when_its_time_is_over() -> None:
    members = Membership(max_nodes=10, lost_after_seconds=5.0)
    for at, node in enumerate(("a", "b", "c")):
        members.join(node, "1", now=float(at))
    assert members.silent_at == 5.0
    assert members.seen("b", now=4.0)
    assert not members.seen("z", now=4.0)
    assert members.silent(now=4.9) == []
    assert members.silent(now=5.0) == ["a"]
    members.remove("a", ConnectionState.LOST, "silent", now=5.0)
    assert members.silent_at == 6.0
    assert members.silent(now=8.0) == ["c"]
    assert members.silent_at == 9.0
    members.reset_liveness(now=8.5)
    assert members.silent(now=9.0) == []
    assert members.silent_at == 13.5
    members.join("a", "1", now=10.0)
    assert members.silent(now=15.0) == ["b", "a"]
    assert members.silent_at == math.inf
    assert Membership(max_nodes=1, lost_after_seconds=None).silent(now=1e9) == []


def test_a_node_is_ready_when_it_has_asked_and_not_after_it_went_or_began_anew() -> None:
    members = Membership(max_nodes=10, lost_after_seconds=None)
    a, new = members.join("a", "1", now=1.0)
    b, _ = members.join("b", "1", now=2.0)
    assert (new, members.ready, members.version) == (True, 0, 2)
    assert members.mark_requesting(a, 2.5)
    assert not members.mark_requesting(a, 2.25)
    assert members.mark_requesting(b, 1.5)
    assert (a.last_seen, b.last_seen) == (2.5, 2.0)
    assert members.ready == 2
    members.stragglers.update(a=True, b=True)
    assert members.join("a", "1", now=3.0) == (a, False)
    assert (members.ready, a.requesting, a.joined_at, [*members.stragglers]) == (2, True, 1.0, ["a", "b"])
    members.join("a", "2", now=4.0)
    assert (members.ready, a.requesting, a.joined_at, [*members.stragglers]) == (1, False, 4.0, ["b"])
    assert members.remove("b", ConnectionState.LOST, "silent", now=5.0) is b
    assert (members.ready, b.requesting, b.reason, b.gone_at, members.stragglers) == (0, False, "silent", 5.0, {})
    assert members.version == 3
    assert members.remove("b", ConnectionState.LOST, "again", now=6.0) is None
    assert (b.connection, b.gone_at, members.version) == (ConnectionState.LOST, 5.0, 3)
    assert members.remove("b", ConnectionState.LEFT, "bye", now=7.0) is None
    assert (b.connection, b.reason, members.version) == (ConnectionState.LEFT, "silent", 4)
    assert members.remove("z", ConnectionState.LEFT, "bye", now=7.0) is None
    assert members.version == 4
    with pytest.raises(NotFound, match="'z' is not registered"):
        members.require("z")


def test_a_node_that_just_came_has_a_row_of_nothing() -> None:
    member, _ = Membership(max_nodes=1, lost_after_seconds=None).join("a", "1", now=3.0)
    assert node_row(member, "preparing", NodeOverride.AUTOMATIC) == {
        "node_id": "a",
        "state": "preparing",
        "reason": "",
        "rounds_contributed": 0,
        "rounds_selected": 0,
        "retries": 0,
        "late": 0,
        "merged_late": 0,
        "batch_size": None,
        "compute_seconds": None,
        "codec": None,
        "parameters_codec": None,
        "noise": None,
        "connections_down": None,
        "connections_up": None,
        "compute_utilisation": None,
        "rule": "automatic",
    }
    assert (member.last_accepted, member.largest_batch, member.completed, member.gone_at) == (0, 0, False, 0.0)


def test_lost_nodes_that_never_asked_for_work_are_forgotten_when_they_are_many() -> None:
    members = Membership(max_nodes=1000, lost_after_seconds=10.0)
    member, _ = members.join("member", "1", 0.0)
    members.mark_requesting(member, 0.0)
    for number in range(500):
        members.join(f"ghost-{number}", "1", 1.0)
        members.remove(f"ghost-{number}", ConnectionState.LOST, "silent", 2.0)
    assert len(list(members)) == 101
    members.remove("member", ConnectionState.LOST, "silent", 3.0)
    assert members.get("member") is not None, "it had asked for work"
