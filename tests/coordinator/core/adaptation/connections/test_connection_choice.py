"""Numbers of connections against lines whose rates are known."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.config import SystemConfig
from hypergpu.common.connections import MAX_CONNECTIONS, ONE_EACH, Connections
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.adaptation.connections.choice import RETRY_ROUNDS, ConnectionSearch, Outlook
from hypergpu.coordinator.core.adaptation.connections.control import ConnectionControl
from hypergpu.coordinator.core.links import NetworkQualityMonitor

MB = 1_000_000
Rate = Callable[[int], float]
"""Bytes per second by number of connections."""


def lossy(connections: int) -> float:
    """One connection carries a fortieth of the line."""
    return min(40.0, connections) * MB


def clean(connections: int) -> float:
    """One connection fills the line."""
    return 10.0 * MB + connections


def nearly_full(connections: int) -> float:
    """Two connections fill the line."""
    return min(1.3, connections) * MB


class Rounds:
    """Rounds over one link."""

    def __init__(
        self, rate: Rate, nbytes: int = 44 * MB, round_seconds: float = 0.0, *, guess: int | None = None
    ) -> None:
        self.search = ConnectionSearch() if guess is None else ConnectionSearch(guess, is_guess=True)
        self.rate, self.nbytes, self.round_seconds = rate, nbytes, round_seconds
        self.number = 0
        self.changes: list[tuple[int, int, int, str]] = []

    def run(self, rounds: int, noise: Callable[[], float] = lambda: 0.0, *, is_queueing: bool = True) -> "Rounds":
        for _ in range(rounds):
            self.number += 1
            change = self.search.decide(Outlook(self.number, self.round_seconds, 0.1, is_queueing))
            if change is not None:
                self.changes.append((self.number, change.before, change.after, str(change.reason)))
            seconds = self.nbytes / self.rate(self.search.count) * math.exp(noise())
            self.search.record(Transfer(self.nbytes // 2, seconds / 2, self.nbytes - self.nbytes // 2, seconds / 2))
        return self


def test_a_lossy_line_gets_the_most_connections_within_four_rounds() -> None:
    done = Rounds(lossy).run(RETRY_ROUNDS)
    assert done.changes == [(2, 1, 4, "tries_more"), (3, 4, 16, "gained"), (4, 16, 16, "gained")]


def test_a_full_line_gets_one_connection_again_and_keeps_it() -> None:
    done = Rounds(clean).run(RETRY_ROUNDS)
    assert done.changes == [(2, 1, 4, "tries_more"), (7, 4, 1, "gained_nothing")]
    done.run(RETRY_ROUNDS)
    assert done.changes[2:] == [(57, 1, 4, "tries_again"), (62, 4, 1, "gained_nothing")]


def test_no_more_connections_are_kept_than_fill_the_line() -> None:
    done = Rounds(nearly_full).run(RETRY_ROUNDS)
    assert [change[1:] for change in done.changes] == [
        (1, 4, "tries_more"),
        (4, 2, "fewer_may_suffice"),
        (2, 2, "fewer_suffice"),
    ]
    assert done.search.count == 2


def test_a_search_that_begins_with_several_connections_ends_where_others_end() -> None:
    assert Rounds(lossy, guess=4).run(RETRY_ROUNDS).changes == [(2, 4, 16, "tries_more"), (3, 16, 16, "gained")]
    done = Rounds(clean, guess=4).run(RETRY_ROUNDS)
    assert [change[1:] for change in done.changes] == [
        (4, 16, "tries_more"),
        (16, 4, "gained_nothing"),
        (4, 2, "fewer_may_suffice"),
        (2, 1, "fewer_suffice"),
        (1, 1, "fewer_suffice"),
    ]
    assert Rounds(nearly_full, guess=4).run(RETRY_ROUNDS).search.count == 2


def test_fewer_are_tried_once_packets_wait_for_the_line() -> None:
    done = Rounds(clean, guess=16).run(10, is_queueing=False)
    assert (done.search.count, done.changes) == (16, [])
    done.run(1)
    assert done.changes == [(11, 16, 8, "fewer_may_suffice")]
    assert done.run(20).search.count == 1


@pytest.mark.parametrize(("trip", "changes"), [(0.0049, [(16, 1)]), (0.0051, []), (math.nan, [])])
def test_first_connections_to_a_near_end_are_too_many_as_soon_as_it_is_known(
    trip: float, changes: list[tuple[int, int]]
) -> None:
    def decided(trip: float) -> list[tuple[int, int]]:
        found = search.decide(Outlook(2, 0.0, trip, is_queueing=False))
        return [] if found is None else [(found.before, found.after)]

    search = ConnectionSearch(16, is_guess=True)
    search.record(Transfer(22 * MB, 0.5, 22 * MB, 0.5))
    assert decided(trip) == changes
    if math.isnan(trip):
        assert decided(0.001) == [(16, 1)], "the guess is judged later"


@pytest.mark.parametrize(("seconds", "left"), [(0.19, 1), (0.21, 16)])
def test_short_first_transfers_get_one_connection_again(seconds: float, left: int) -> None:
    done = Rounds(lambda count: 44e6 / seconds * count / 4, guess=4).run(2)
    assert done.search.count == left
    assert done.changes[0][3] == ("short_transfers" if left == 1 else "tries_more")
    if left == 1:
        done.run(2)
        assert done.changes[1:] == [(3, 1, 4, "tries_more"), (4, 4, 4, "gained")], "with one they are long"


def test_fewer_connections_are_given_up_if_they_are_slower() -> None:
    rates = {1: 1.0, 4: 1.5, 2: 1.0, 16: 1.5}  # as no line behaves
    done = Rounds(lambda connections: rates[connections] * MB).run(40)
    assert [change[1:] for change in done.changes] == [
        (1, 4, "tries_more"),
        (4, 2, "fewer_may_suffice"),
        (2, 4, "fewer_are_slower"),
        (4, 16, "tries_more"),
        (16, 4, "gained_nothing"),
    ]


@pytest.mark.parametrize(("nbytes", "most"), [(65_536, 1), (65_537, 2), (180_000, 3), (500_000, 8), (44 * MB, 16)])
def test_no_connection_is_without_a_chunk(nbytes: int, most: int) -> None:
    assert Rounds(lambda connections: 1e4 * connections, nbytes).run(20).search.count == most


@pytest.mark.parametrize(
    ("rate", "round_seconds", "tries"),
    [(44e6 / 0.19, 0.0, False), (44e6 / 0.21, 0.0, True), (44e6, 21.0, False), (44e6, 19.0, True)],
    ids=["below a fifth of a second", "above", "below a twentieth of the round", "above it"],
)
def test_transfers_that_are_too_short_to_matter_are_left_alone(rate: float, round_seconds: float, tries: bool) -> None:
    assert bool(Rounds(lambda _: rate, round_seconds=round_seconds).run(2).changes) is tries


def test_transfers_within_two_round_trips_are_left_alone() -> None:
    for round_trip, tries in ((0.6, False), (0.4, True)):
        search = ConnectionSearch()
        search.record(Transfer(44 * MB, 1.0))
        assert (search.decide(Outlook(2, 0.0, round_trip)) is not None) is tries


def test_two_transfers_in_a_row_show_a_change_of_the_link_and_one_does_not() -> None:
    done = Rounds(clean).run(20)
    del done.changes[:]
    done.rate = lambda _: 1e5
    done.run(1)
    done.rate = clean
    done.run(3)
    assert done.changes == []
    done.rate = lambda connections: 1e5 * connections
    done.run(6)
    assert [change[1:] for change in done.changes][:2] == [(1, 4, "link_changed"), (4, 16, "gained")]
    assert done.changes[0][0] == 27, "after the second transfer at the new rate"


def test_random_rates_do_not_make_a_number_flap() -> None:
    draws, changes, kept = random.Random(1), 0, 0
    for _ in range(40):
        done = Rounds(lossy).run(RETRY_ROUNDS, lambda: draws.gauss(0.0, 0.3))
        changes += len(done.changes) - 3
        kept += done.search.count == MAX_CONNECTIONS
    assert kept >= 38
    assert changes <= 40, "one more in fifty rounds"


@given(st.lists(st.floats(-12.0, 3.0), min_size=1, max_size=60), st.integers(1, 50 * MB), st.floats(0.0, 100.0))
def test_a_number_is_always_one_to_sixteen(logs: list[float], nbytes: int, round_seconds: float) -> None:
    search = ConnectionSearch()
    for number, log in enumerate(logs):
        change = search.decide(Outlook(10 * number, round_seconds))
        assert change is None or change.after == search.count
        assert 1 <= search.count <= MAX_CONNECTIONS
        search.record(Transfer(nbytes, math.exp(-log)))


# ---------------------------------------------------------------- all nodes


def control(
    connections: int | str = "auto", model_bytes: int | None = None
) -> tuple[ConnectionControl, NetworkQualityMonitor]:
    config = SystemConfig.model_validate({"transfers": {"connections": connections}})
    monitor = NetworkQualityMonitor(config=config.monitor, clock=lambda: 0.0, model_bytes=44 * MB)
    monitor.register_node("a")
    monitor.register_node("b")
    return ConnectionControl(config.transfers, monitor, model_bytes), monitor


def transfer(seconds: float) -> Transfer:
    return Transfer(22 * MB, seconds / 2, 22 * MB, seconds / 2)


def test_directions_and_nodes_are_chosen_for_themselves_and_expectations_follow() -> None:
    tested, monitor = control()
    rows = monitor.rows(["a", "b"])
    monitor.record_round_communication("a", 100.0)
    monitor.record_round_communication("b", 100.0)
    tested.record_upload("a", transfer(80.0))
    monitor.record_upload("a", transfer(80.0))
    (decision,) = tested.choose(["a", "b"], 2, 110.0)
    assert (decision.node, str(decision.reason)) == ("a", "tries_more")
    assert decision.figures == {
        "direction": "up",
        "from": 1,
        "to": 4,
        "mbit": pytest.approx(4.4),
        "transfer_seconds": pytest.approx(80.0),
    }
    assert (tested.plan.of("a"), tested.plan.of("b")) == (Connections(down=1, up=4), ONE_EACH)
    assert monitor.round_communication_samples(rows, 1)[:, 0].tolist() == [100.0, 100.0], (
        "nothing is known of four connections yet"
    )
    monitor.record_round_communication("a", 45.0)
    tested.record_upload("a", transfer(20.0))
    monitor.record_upload("a", transfer(20.0))
    (decision,) = tested.choose(["a", "b"], 3, 50.0)
    assert (str(decision.reason), decision.figures["to"]) == ("gained", 16)
    assert decision.figures["gain"] == pytest.approx(4.0)
    assert monitor.round_communication_samples(rows, 2)[0].tolist() == [45.0, 45.0]
    assert monitor.get_node_profile("a").up_least_mbit == pytest.approx(17.6), "at four connections, not at one"
    assert tested.choose(["a", "b"], 4, 50.0) == [], "without a new transfer"


def test_the_choice_survives_a_checkpoint_and_is_dropped_without_adaptation() -> None:
    tested, _ = control()
    tested.record_upload("a", transfer(80.0))
    tested.choose(["a"], 2, 100.0)
    again, _ = control()
    again.restore(tested.state())
    assert again.state() == {"a": (1, 4)}
    assert again.plan.of("a") == Connections(1, 4)
    again.use_one()
    assert again.plan.of("a") == ONE_EACH and again.state() == {}


def test_a_configured_number_is_never_changed() -> None:
    tested, _ = control(8)
    tested.record_upload("a", transfer(80.0))
    assert tested.choose(["a"], 2, 100.0) == []
    tested.restore({"a": (1, 4)})
    assert tested.plan.of("a") == Connections(8, 8)
    tested.use_one()
    assert tested.plan.of("a") == Connections(8, 8)


def test_first_transfers_of_a_large_model_have_several_connections_by_a_decision() -> None:
    tested, monitor = control(model_bytes=44 * MB)
    first = tested.choose(["a", "b"], 1, 0.0)
    assert [(each.node, str(each.reason), each.figures["direction"], each.figures["to"]) for each in first] == [
        (node, "rate_not_measured", direction, 16) for node in "ab" for direction in ("down", "up")
    ]
    assert tested.plan.of("a") == tested.plan.of("c") == Connections(16, 16)
    assert tested.choose(["a", "b"], 2, 0.0) == []
    tested.record_upload("a", transfer(80.0))
    monitor.record_upload("a", transfer(80.0))
    monitor.record_round_trip("a", 60.0)
    assert tested.choose(["a", "b"], 3, 100.0) == [], "nothing waits in a queue, so the line is not full"
    tested.record_upload("a", transfer(80.0))
    monitor.record_round_trip("a", 160.0, loaded=True)
    (fewer,) = tested.choose(["a", "b"], 3, 100.0)
    assert (fewer.figures["from"], fewer.figures["to"]) == (16, 8)
    assert (tested.plan.of("a"), tested.plan.of("b")) == (Connections(16, 8), Connections(16, 16))
    tested.use_one()
    assert tested.plan.of("a") == tested.plan.of("b") == ONE_EACH
    assert len(tested.choose(["b"], 4, 100.0)) == 2, "adaptation is on again"
    assert tested.plan.of("b") == Connections(16, 16)


@pytest.mark.parametrize(
    ("connections", "model_bytes", "nodes"),
    [(1, 44 * MB, 2), ("auto", MB - 1, 2), ("auto", None, 2), ("auto", 44 * MB, 129)],
)
def test_first_transfers_have_one_connection_otherwise(
    connections: int | str, model_bytes: int | None, nodes: int
) -> None:
    tested, _ = control(connections, model_bytes)
    assert tested.choose([f"n{number}" for number in range(nodes)], 1, 0.0) == []
    assert tested.plan.of("n0") == ONE_EACH


@pytest.mark.parametrize(
    ("nodes", "model_bytes", "connections"), [(16, 44 * MB, 16), (17, 44 * MB, 15), (128, 44 * MB, 2)]
)
def test_all_nodes_share_the_first_connections(nodes: int, model_bytes: int, connections: int) -> None:
    tested, _ = control(model_bytes=model_bytes)
    tested.choose([f"n{number}" for number in range(nodes)], 1, 0.0)
    assert tested.plan.of("n0") == Connections(connections, connections)


def test_no_trial_begins_in_a_direction_in_which_something_else_is_measured() -> None:
    tested, monitor = control()
    for node in ("a", "b"):
        tested.record_upload(node, transfer(80.0))
        tested.record_download(node, transfer(80.0))
        for _ in range(3):
            monitor.record_communication(node, 100.0, True)
    decisions = tested.choose(["a", "b"], 2, 110.0, {"a": ["up"]})
    assert [(each.node, each.figures["direction"]) for each in decisions] == [("a", "down"), ("b", "down"), ("b", "up")]
    assert tested.trials(["a", "b", "c"]) == {"a": ["down"], "b": ["down", "up"]}
    tested.record_download("a", transfer(20.0))
    (decision,) = tested.choose(["a"], 3, 110.0, {"a": ["down", "up"]})
    assert (str(decision.reason), decision.figures["direction"]) == ("gained", "down"), "one that runs goes on"


def test_a_rate_over_other_connections_is_provisional() -> None:
    tested, monitor = control()
    for seconds in (80.0, 80.0):
        monitor.record_upload("a", transfer(seconds))
    tested.record_upload("a", transfer(80.0))
    assert not monitor.transfer_rates(monitor.rows(["a"])).up.is_provisional[0]
    tested.choose(["a"], 2, 110.0)
    assert monitor.transfer_rates(monitor.rows(["a"])).up.is_provisional[0]
    monitor.record_upload("a", transfer(20.0))
    assert monitor.get_node_profile("a").up_mbit == pytest.approx(17.6)
