"""Who may register under a name, and who may speak for a node."""

import math
from string import printable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.errors import InvalidInput, NameInUse, NotFound
from hypergpu.coordinator.core.leases import TOLD_EVERY_SECONDS, Leases
from hypergpu.coordinator.core.rounds.membership import ConnectionState, Membership

KEY = b"k" * 32


class Names:
    """The leases of a run, and its members."""

    def __init__(self, key: bytes = KEY, reserved_until: float = -math.inf) -> None:
        self.members = Membership(max_nodes=10, lost_after_seconds=10.0)
        self.leases = Leases(key, self.members, reserved_until=reserved_until)

    def register(self, node: str, incarnation: str, shown: str = "", now: float = 0.0) -> str:
        self.leases.require_free(node, incarnation, shown, now)
        self.members.join(node, incarnation, now)
        return self.leases.secret(node, incarnation)


def test_a_call_needs_the_secret_of_its_own_node() -> None:
    names = Names()
    secret, other = names.register("a", "one"), names.register("b", "two")
    names.leases.require("a", secret)
    wrong = ("", "one", "one.", f"{secret}x", secret[:-1], secret.swapcase(), other, f"two.{secret.partition('.')[2]}")
    for shown in wrong:
        with pytest.raises(NotFound, match="register again"):
            names.leases.require("a", shown)
    with pytest.raises(NotFound):
        names.leases.require("", secret)


@given(shown=st.text(max_size=80) | st.text(printable, max_size=80))
def test_no_text_that_was_not_issued_is_a_secret(shown: str) -> None:
    names = Names()
    if shown != names.register("a", "one"):
        with pytest.raises(NotFound):
            names.leases.require("a", shown)


def test_a_secret_of_another_coordinator_or_name_is_none() -> None:
    foreign = Names(b"f" * 32).register("a", "one")
    names = Names()
    names.register("a", "one")
    with pytest.raises(NotFound):
        names.leases.require("a", foreign)
    assert names.leases.secret("a", "one") != names.leases.secret("a", "two")
    assert names.leases.secret("a", "one") != names.leases.secret("aa", "one")


def test_while_a_node_is_connected_another_process_is_refused() -> None:
    names = Names()
    secret = names.register("a", "one")
    for shown in ("", "one", names.leases.secret("b", "one"), names.leases.secret("a", "earlier")):
        with pytest.raises(NameInUse, match="another process is registered as 'a'"):
            names.register("a", "two", shown)
    names.leases.require("a", secret)


def test_a_lost_answer_can_be_asked_for_again() -> None:
    names = Names()
    assert names.register("a", "one") == names.register("a", "one")


def test_the_next_process_shows_the_secret_and_the_one_before_is_out() -> None:
    names = Names()
    before = names.register("a", "one")
    after = names.register("a", "two", before)
    names.leases.require("a", after)
    with pytest.raises(NotFound, match="another process has its lease now"):
        names.leases.require("a", before)
    with pytest.raises(NameInUse):
        names.register("a", "one", before)
    assert names.register("a", "two") == after, "its answer was lost"


@pytest.mark.parametrize("how", [ConnectionState.LEFT, ConnectionState.LOST])
def test_a_name_is_free_when_its_lease_has_ended(how: ConnectionState) -> None:
    names = Names()
    before = names.register("a", "one")
    names.members.remove("a", how, "gone", 1.0)
    names.leases.require("a", before)  # the session tells it to register again
    after = names.register("a", "two")
    assert after != before
    with pytest.raises(NotFound):
        names.leases.require("a", before)


def test_the_names_of_a_resumed_run_are_kept_for_their_nodes() -> None:
    names = Names(reserved_until=10.0)
    names.members.restore([{"node_id": "a", "state": "idle"}, {"node_id": "gone", "state": "left"}])
    names.leases.require("a", names.leases.secret("a", "one"))
    names.register("gone", "x")
    names.register("new", "x")
    with pytest.raises(
        NameInUse, match="kept for the node that had it before the coordinator restarted, for another 4"
    ):
        names.register("a", "two", now=6.0)
    names.register("a", "two", names.leases.secret("a", "one"), now=6.0)


def test_a_reserved_name_is_free_after_a_while() -> None:
    names = Names(reserved_until=10.0)
    names.members.restore([{"node_id": "a", "state": "idle"}])
    names.register("a", "two", now=10.0)


@pytest.mark.parametrize("incarnation", ["", "a b", "a.b", "x" * 65, "é", "a\n"])
def test_a_malformed_incarnation_is_refused(incarnation: str) -> None:
    with pytest.raises(InvalidInput, match="incarnation"):
        Names().register("a", incarnation)


def test_a_contest_is_recorded_now_and_then_and_told_once() -> None:
    names = Names()
    names.register("a", "one")
    assert names.leases.contest("a", "10.0.0.7", 0.0)
    assert not any(names.leases.contest("a", "10.0.0.8", float(second)) for second in range(60))
    assert names.leases.take_contest("a") == "10.0.0.7"
    assert names.leases.take_contest("a") == ""
    assert names.leases.contest("a", "10.0.0.8", TOLD_EVERY_SECONDS)
    assert not names.leases.contest("nobody", "10.0.0.8", 0.0)


def test_contests_are_forgotten_with_their_nodes() -> None:
    names = Names()
    for node in ("a", "b"):
        names.register(node, "one")
        assert names.leases.contest(node, "", 0.0)
        names.members.remove(node, ConnectionState.LEFT, "left", 0.0)
    assert len(names.leases._contests) == 1
