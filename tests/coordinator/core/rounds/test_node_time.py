"""Parts of the time of a round's nodes: they add up, whatever a node reports."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.coordinator.core.rounds.events import CloseReason, CloseRound, Contribution
from hypergpu.coordinator.core.rounds.node_time import NodeTime, node_time, time_of_round, total_time
from hypergpu.coordinator.core.rounds.traffic import RoundTraffic, Traffic
from tests.examples import examples

seconds = st.floats(0, 1e6)


def test_the_time_of_a_node_has_four_parts() -> None:
    """Assigned after 1 s, it takes 6 s in all: 2 to compute, 3 to send, and the rest to receive."""
    found = node_time(10.0, success=True, compute_seconds=2.0, waiting_seconds=4.0, upload_seconds=3.0)
    assert found == NodeTime(download=1.0, compute=2.0, upload=3.0, wait=4.0, lost=0.0)
    assert found.total == 10.0
    assert found.utilisation == 0.2


def test_a_round_to_which_a_node_did_not_contribute_is_lost() -> None:
    found = node_time(10.0, success=False, compute_seconds=9.0, waiting_seconds=9.0, upload_seconds=9.0)
    assert found == NodeTime(lost=10.0)
    assert found.utilisation == 0.0


@examples(200)
@given(round_seconds=seconds, compute=seconds, waiting=seconds, upload=seconds, success=st.booleans())
def test_the_parts_of_a_round_add_up_and_none_is_negative(
    round_seconds: float, compute: float, waiting: float, upload: float, success: bool
) -> None:
    found = node_time(
        round_seconds,
        success=success,
        compute_seconds=compute,
        waiting_seconds=waiting,
        upload_seconds=upload,
    )
    assert min(found.download, found.compute, found.upload, found.wait, found.lost) >= 0.0
    assert math.isclose(found.total, round_seconds, abs_tol=1e-9)


def test_the_time_of_a_round_is_that_of_all_its_nodes() -> None:
    closed = CloseRound(
        1,
        [
            Contribution("a", True, compute_seconds=2.0, waiting_seconds=4.0, upload_seconds=3.0),
            Contribution("b", True, compute_seconds=5.0, waiting_seconds=5.0, upload_seconds=1.0),
            Contribution("c", False, waiting_seconds=9.0),
        ],
        CloseReason.QUORUM_AT_DEADLINE,
        10.0,
        32,
        1.0,
        evaluate=True,
    )
    found = time_of_round(closed)
    assert found == NodeTime(download=5.0, compute=7.0, upload=4.0, wait=4.0, lost=10.0)
    assert found.utilisation == pytest.approx(7 / 30)


def test_nothing_has_no_utilisation() -> None:
    assert total_time([]).utilisation is None


def test_bytes_are_counted_once_by_node_and_direction() -> None:
    traffic = RoundTraffic()
    for nbytes in (100, 20):
        traffic.sent("a", nbytes)
    traffic.received("a", 7)
    traffic.received("b", 3)
    assert traffic.take() == {"a": Traffic(120, 7), "b": Traffic(0, 3)}
    assert traffic.take() == {}
