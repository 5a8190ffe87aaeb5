"""Check of what changed codecs save: like is compared with like, for as many rounds as it takes."""

from collections.abc import Sequence

import pytest

from hypergpu.common.connections import Connections
from hypergpu.coordinator.core.adaptation.codecs.checks import SavingChecks, Verdict
from hypergpu.coordinator.core.adaptation.codecs.direction_times import DirectionTimes, Kind
from hypergpu.coordinator.core.adaptation.codecs.sizes import CodecPair
from hypergpu.coordinator.core.rounds.events import Contribution

BEFORE, AFTER = CodecPair(3, 1), CodecPair(3, 2)


class Node:
    """Node whose parameters change from bf16 to int8, with an expected saving of 4 s."""

    def __init__(self, before: Sequence[float] = (8.0, 8.0, 8.0), connections: int = 4) -> None:
        self.connections = connections
        self.checks = SavingChecks()
        for seconds in (4.0, *before):  # the first transfer over new connections does not count
            assert self.round(seconds, codec=1) is None
        self.checks.begin("a", BEFORE, AFTER, 4.0)

    def round(self, down: float, *, up: float = 2.0, codec: int = 2, connections: int | None = None) -> Verdict | None:
        self.checks.begin_round({"a": codec})
        used = Connections(connections or self.connections, 1)
        return self.checks.observe(
            Contribution(
                "a", success=True, codec="int4", connections=used, upload_seconds=up, waiting_seconds=up + down
            )
        )

    def until_verdict(self, seconds: Sequence[float]) -> tuple[int, Verdict | None]:
        for rounds, each in enumerate(seconds, 1):
            verdict = self.round(each)
            if verdict is not None:
                return rounds, verdict
        return len(seconds), None


def test_steady_transfers_are_judged_soon() -> None:
    rounds, verdict = Node().until_verdict([4.0] * 12)
    assert verdict is not None
    assert rounds <= 4
    assert (verdict.expected_seconds, verdict.measured_seconds) == (4.0, 4.0)
    assert not verdict.has_failed
    assert verdict.figures()["measured_rounds"] == rounds


def test_transfers_that_differ_take_more_rounds_and_the_error_is_told() -> None:
    rounds, verdict = Node((7.0, 9.0, 8.0, 7.5, 8.5)).until_verdict([3.5, 4.5] * 6)
    assert verdict is not None
    assert rounds > 4
    assert verdict.error_seconds == pytest.approx(0.4, abs=0.15)
    assert verdict.measured_seconds == pytest.approx(4.0, abs=0.3)


def test_the_other_direction_does_not_count() -> None:
    node = Node()
    verdicts = [node.round(4.0, up=20.0) for _ in range(4)]
    assert [each.measured_seconds for each in verdicts if each is not None] == [4.0]


def test_whole_parameters_before_the_first_difference_do_not_count() -> None:
    node = Node()
    assert node.round(16.0, codec=0) is None
    _, verdict = node.until_verdict([4.0] * 4)
    assert verdict is not None
    assert verdict.measured_seconds == 4.0


def test_other_connections_end_the_check_without_a_verdict() -> None:
    node = Node()
    assert node.round(4.0) is None
    assert list(node.checks.directions["a"]) == ["down"]
    assert node.round(9.0, connections=8) is None
    assert node.checks.directions == {}
    assert node.until_verdict([9.0] * 12)[1] is None


def test_a_link_that_changes_ends_the_check_without_a_verdict() -> None:
    node = Node((6.0, 9.0, 8.0, 7.5))
    assert node.until_verdict([4.0, 3.5, 4.5, 20.0, 20.0, 20.0, 20.0])[1] is None
    assert node.checks.directions == {}


def test_only_what_was_measured_since_the_link_has_changed_is_compared() -> None:
    _, verdict = Node((1.0, 1.0, 1.0, 8.0, 8.0)).until_verdict([4.0] * 12)
    assert verdict is not None
    assert verdict.measured_seconds == 4.0


def test_a_change_that_saves_nothing_fails_as_soon_as_that_is_no_accident() -> None:
    rounds, verdict = Node().until_verdict([8.0] * 12)
    assert verdict is not None
    assert (rounds, verdict.has_failed) == (2, True)
    assert verdict.measured_seconds == 0.0


def test_without_anything_to_compare_with_there_is_no_check() -> None:
    node = Node(())
    assert node.checks.directions == {}
    assert node.until_verdict([4.0] * 12)[1] is None


def test_the_first_transfer_over_one_connection_counts() -> None:
    times = DirectionTimes()
    times.record("a", "up", Kind(0, 1), 2.0)
    assert times.of("a", "up") == (Kind(0, 1), [2.0])
    times.record("a", "up", Kind(0, 4), 1.0)
    assert times.of("a", "up") == (Kind(0, 4), []), "of several new connections, it does not"
    times.record("a", "up", Kind(0, 4), 1.5)
    times.record("a", "up", Kind(0, 2), 1.7)
    assert times.of("a", "up") == (Kind(0, 2), [1.7]), "fewer connections are no new ones"


def test_a_check_holds_other_trials_back_for_a_few_rounds_only() -> None:
    node = Node((6.0, 10.0, 6.0, 10.0))
    for _ in range(4):
        assert node.checks.directions
        node.round(3.0)
        node.round(5.0)
        if not node.checks.directions:
            break
    assert node.checks.directions == {}
