"""Choice of codecs on clusters whose transfer times and noise are given."""

from typing import Any

import numpy as np
import pytest

from hypergpu.coordinator.core.adaptation.codecs.choice import (
    Codecs,
    RoundForecast,
    best_assignment,
    delivered_share,
    evaluate,
)
from hypergpu.coordinator.core.node_arrays import Floats

UP = np.array([1.0, 0.5, 0.25, 0.125, 1 / 136])
"""Bytes of updates in each codec, relative to float32."""
DOWN = np.array([1.0, 0.5, 0.25])
NOISE = np.array([0.0, 3e-6, 5e-4, 0.1, 0.8])
NONE, BF16, INT8, INT4, TOPK = range(5)


def forecast(up: list[float], down: list[float] | None = None, rest: float | list[float] = 1.0, **fields: Any) -> Any:
    """Return the forecast of a cluster, given the seconds of float32 transfers of each node."""
    nodes = len(up)
    down_seconds = np.array(down if down is not None else [0.0] * nodes)
    values: dict[str, Any] = {
        "rest_seconds": np.repeat(np.broadcast_to(rest, nodes)[:, None], 2, axis=1),
        "up_seconds": np.array(up)[:, None] * UP,
        "down_seconds": down_seconds[:, None] * DOWN,
        "up_is_known": np.ones(nodes, bool),
        "down_is_known": np.ones(nodes, bool),
        "noise": np.tile(NOISE, (nodes, 1)),
        "most_update": np.full(nodes, INT4),
        "most_parameters": np.full(nodes, 2),
        "counts": np.ones(nodes, bool),
        "overhead_seconds": 0.0,
        "noise_nodes": float(nodes),
        "close_share": 1.0,
        "rounds_left": 100.0,
    }
    return RoundForecast(**values | fields)


def none(nodes: int) -> Codecs:
    return Codecs(np.zeros(nodes, np.int64), np.zeros(nodes, np.int64))


def best(case: RoundForecast, present: Codecs | None = None) -> tuple[list[int], list[int]]:
    found = best_assignment(case, present or none(len(case.counts))).codecs
    return found.update.tolist(), found.parameters.tolist()


def test_short_transfers_stay_exact() -> None:
    assert best(forecast([0.01, 0.01, 0.02], [0.01] * 3)) == ([NONE] * 3, [NONE] * 3)


def test_the_slow_upload_is_encoded_and_nothing_else() -> None:
    assert best(forecast([0.1, 0.1, 40.0], [0.1, 0.1, 0.1])) == ([NONE, NONE, INT4], [NONE] * 3)


def test_the_slow_download_is_encoded_and_nothing_else() -> None:
    assert best(forecast([0.1] * 3, [0.1, 0.1, 40.0])) == ([NONE] * 3, [NONE, NONE, INT8])


def test_a_node_that_holds_the_round_by_its_card_makes_encoding_worthless() -> None:
    assert best(forecast([20.0, 0.1, 0.1], rest=[1.0, 60.0, 1.0])) == ([NONE] * 3, [NONE] * 3)


def test_a_node_that_is_in_time_keeps_its_codec_until_it_would_be_early_with_a_milder_one() -> None:
    # With int4 on node 0 the round takes 6 seconds.
    keeps = forecast([40.0, 3.0], rest=[1.0, 1.0])
    assert best(keeps, Codecs(np.array([INT4, INT8]), np.zeros(2, np.int64)))[0] == [INT4, INT8]
    assert best(keeps)[0] == [INT4, NONE]
    early = forecast([40.0, 4.0], rest=[1.0, 0.1])
    assert best(early, Codecs(np.array([INT4, INT4]), np.zeros(2, np.int64)))[0] == [INT4, INT8]
    as_fast = forecast([40.0, 0.1], rest=[1.0, 1.0])
    assert best(as_fast, Codecs(np.array([INT4, INT8]), np.zeros(2, np.int64)))[0] == [INT4, NONE]


def test_the_noise_of_a_codec_outweighs_a_small_saving() -> None:
    # int4 would save a twentieth of the round with int8, and costs as much of its progress.
    assert best(forecast([4.0] * 4, rest=9.0))[0] == [INT8] * 4
    assert best(forecast([4.0] * 4, rest=9.0, noise=np.zeros((4, 5))))[0] == [INT4] * 4
    assert best(forecast([400.0] * 4))[0] == [INT4] * 4


def test_only_permitted_codecs_are_used() -> None:
    case = forecast([400.0] * 2, [400.0] * 2, most_update=np.array([BF16, INT8]), most_parameters=np.array([1, 2]))
    stronger = Codecs(np.array([INT4, INT4]), np.array([2, 2]))
    assert best(case, stronger) == ([BF16, BF16], [1, 1])
    assert best(forecast([400.0] * 2, most_update=np.array([NONE, INT8])))[0] == [NONE, NONE]


def test_a_direction_of_unknown_rate_keeps_its_codec() -> None:
    present = Codecs(np.array([INT8, INT8]), np.array([1, 1]))
    unknown, known = np.array([False, True]), np.array([True, True])
    case = forecast([400.0] * 2, [0.0] * 2, up_is_known=unknown, down_is_known=known)
    assert best(case, present) == ([INT8, INT8], [0, 0])
    case = forecast([400.0] * 2, [0.0] * 2, up_is_known=known, down_is_known=unknown)
    assert best(case, present) == ([INT4, INT4], [1, 0])


def test_topk_needs_transfers_that_dominate_and_rounds_that_are_left() -> None:
    permitted = np.full(4, TOPK)
    assert best(forecast([400.0] * 4, most_update=permitted))[0] == [TOPK] * 4
    assert best(forecast([40.0] * 4, rest=20.0, most_update=permitted))[0] == [INT4] * 4
    assert best(forecast([400.0] * 4, most_update=permitted, rounds_left=1.0, rest=20.0))[0] == [INT4] * 4


def test_a_node_that_seldom_takes_part_gets_the_fewest_bytes_and_is_not_waited_for() -> None:
    counts = np.array([True, True, False])
    case = forecast([4.0, 4.0, 400.0], [0.1, 0.1, 400.0], rest=9.0, counts=counts)
    found = best_assignment(case, none(3))
    assert found.seconds == pytest.approx(9.0 + 1.0 + 0.1)
    assert found.codecs.update.tolist() == [INT8] * 3
    assert found.codecs.parameters.tolist() == [0, 0, 1], "a difference begins with float32"
    kept = best_assignment(case, Codecs(np.array([0, 0, INT4]), np.zeros(3, np.int64)))
    assert kept.codecs.update.tolist() == [INT8, INT8, INT4]


def test_the_round_is_that_of_the_nodes_that_close_it() -> None:
    case = forecast([1.0, 2.0, 30.0], close_share=0.6)
    assert evaluate(case, none(3)).seconds == 3.0
    assert evaluate(forecast([1.0, 2.0, 30.0], overhead_seconds=0.5), none(3)).seconds == 31.5


def test_progress_falls_with_the_noise_of_the_codecs() -> None:
    case = forecast([1.0] * 4, rounds_left=1e9)
    exact = evaluate(case, none(4)).progress
    assert exact == pytest.approx(4 / (4 + 4))
    noisy = evaluate(case, Codecs(np.full(4, INT8), np.zeros(4, np.int64))).progress
    assert noisy == pytest.approx(4 / (4 + 4 + 5e-4 * 5))


@pytest.mark.parametrize(("rounds", "expected"), [(1.0, 0.2), (2.0, 0.2 + 0.5 * 0.2 * 0.76)])
def test_error_feedback_delivers_later(rounds: float, expected: float) -> None:
    assert delivered_share(np.array([0.8]), rounds)[0] == pytest.approx(expected)


def test_error_feedback_delivers_all_that_does_not_fade() -> None:
    share: Floats = delivered_share(np.array([0.0, 0.8, 1.0]), 1e9)
    assert share == pytest.approx([1.0, 0.2 / 0.24, 0.0], abs=1e-3)


def test_what_a_stale_node_drops_counts_for_each_round_that_it_is_late() -> None:
    nodes, k = 4, np.zeros(4, np.int64)
    late = np.array([1.0, 1.0, 1.0, 9.0])  # the last node's work takes six rounds
    exact, dropped = Codecs(k, k), Codecs(np.array([NONE, NONE, NONE, TOPK]), k)
    fields: dict[str, Any] = {"rest": late.tolist(), "most_update": np.full(nodes, TOPK), "close_share": 0.75}

    def worth(codecs: Codecs, **more: Any) -> float:
        return evaluate(forecast([0.5] * nodes, **fields, **more), codecs).progress

    assert worth(exact, late_counts=True) == worth(exact)  # staleness itself is not the codecs' doing
    assert worth(dropped, late_counts=True) < worth(dropped) < worth(exact)
    few, many = (worth(dropped, late_counts=True, rounds_left=left) for left in (12.0, 1000.0))
    assert few < many  # two updates are left, and then many


def test_a_codec_without_feedback_does_no_more_harm_in_a_late_update() -> None:
    k = np.zeros(2, np.int64)
    case = forecast([0.5, 0.5], rest=[1.0, 9.0], close_share=0.5)
    codecs = Codecs(np.array([NONE, INT8]), k)
    late = forecast([0.5, 0.5], rest=[1.0, 9.0], close_share=0.5, late_counts=True)
    assert evaluate(late, codecs).progress == evaluate(case, codecs).progress
