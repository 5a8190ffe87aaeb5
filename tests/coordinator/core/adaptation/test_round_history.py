"""Figures of the ledger, worked out by hand."""

import math

import pytest

from hypergpu.coordinator.core.adaptation.phases import Phase
from hypergpu.coordinator.core.adaptation.round_history import RoundHistory, RoundRecord


def record(
    number: int, phase: Phase, *, seconds: float = 2.0, samples: int = 100, progress: float = 4.0
) -> RoundRecord:
    return RoundRecord(number, phase, number, samples, seconds, progress, 0.5, None, 10, 1.0, 0.01)


def test_a_ledger_without_rounds_has_no_figures() -> None:
    nothing = dict.fromkeys(("round_time_ratio", "throughput_ratio", "progress_per_second_ratio"))
    overhead = {"total_seconds": 0.0, "mean_ms_per_round": None, "share_of_round_time": None}
    assert RoundHistory(5).overhead() == overhead
    assert RoundHistory(5).comparison() == {
        "baseline": None,
        "adaptive": None,
        "improvement": nothing,
        "overhead": overhead,
    }


def test_the_warm_up_is_compared_with_the_rounds_since_and_kept_though_others_are_forgotten() -> None:
    ledger = RoundHistory(3)
    for number in (1, 2):
        ledger.add(record(number, Phase.WARM_UP, seconds=4.0 * number))
    ledger.add(record(3, Phase.ADAPTIVE, samples=400, progress=1.0))
    ledger.add(record(4, Phase.ADAPTIVE, seconds=1.0, samples=300, progress=9.0))
    ledger.add(record(5, Phase.CONVERGENCE, seconds=2.0, samples=500, progress=6.0))
    assert [each.round for each in ledger.rounds] == [3, 4, 5]
    assert ledger.count == 5
    found = ledger.comparison()
    assert found["baseline"] == pytest.approx(
        {
            "rounds": 2,
            "round_seconds": 6.0,
            "samples_per_second": 200 / 12,
            "progress_per_second": 8 / 12,
            "nodes": 1.5,
        }
    )
    assert found["adaptive"] == pytest.approx(
        {"rounds": 3, "round_seconds": 5 / 3, "samples_per_second": 240.0, "progress_per_second": 3.2, "nodes": 4.0}
    )
    assert found["improvement"] == pytest.approx(
        {"round_time_ratio": 3.6, "throughput_ratio": 14.4, "progress_per_second_ratio": 4.8}
    )
    assert ledger.overhead() == pytest.approx(
        {"total_seconds": 0.05, "mean_ms_per_round": 10.0, "share_of_round_time": 0.05 / 17.0}
    )


def test_rounds_that_took_no_time_have_no_rates() -> None:
    ledger = RoundHistory(5)
    ledger.add(record(1, Phase.WARM_UP, seconds=0.0))
    ledger.add(record(2, Phase.ADAPTIVE, seconds=0.0))
    found = ledger.comparison()
    assert (found["baseline"]["samples_per_second"], found["baseline"]["progress_per_second"]) == (0.0, 0.0)
    assert found["improvement"] == dict.fromkeys(("round_time_ratio", "throughput_ratio", "progress_per_second_ratio"))
    assert found["overhead"]["share_of_round_time"] is None
    assert record(1, Phase.WARM_UP, seconds=0.0).progress_per_second == 0.0


def test_a_round_is_a_json_object() -> None:
    row = RoundRecord(3, Phase.ADAPTIVE, 2, 64, 0.5, 1.0, math.inf, 0.25, 10, 1.5, 0.01).to_dict()
    assert (row["loss"], row["phase"], row["progress_per_second"], row["accuracy"]) == (
        None,
        "adaptive_training",
        2.0,
        0.25,
    )
