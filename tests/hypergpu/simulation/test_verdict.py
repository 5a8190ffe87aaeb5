"""Verdicts on outcomes that are given: reach, end and time together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from hypergpu.common.metric import MetricSpec
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.verdict import Match, Standing, match

OUTCOME = Outcome(
    "s", "none", 0, "completed", "rounds_done", 5, 130.0, 0.9, 0.1, 0.9, 0.8, 50.0, 10, 10, [], trained_seconds=100.0
)
TEN = [10.0, 11.0, 9.0, 10.5, 9.5, 10.2, 9.8, 10.1, 9.9, 10.0]
NOISE = [0.001, -0.001, 0.0, 0.002, -0.002, 0.001, -0.001, 0.0, 0.001, -0.001]


def runs(
    times: Sequence[float | None], finals: float | Sequence[float | None] | None = 0.97, **changes: Any
) -> list[Outcome]:
    given = list(finals) if isinstance(finals, Sequence) else [finals] * len(times)
    return [
        replace(OUTCOME, time_to_target_seconds=time, final_metric=final, **changes)
        for time, final in zip(times, given, strict=True)
    ]


def faster(factor: float) -> list[float | None]:
    return [time / factor for time in TEN]


def text(found: Match) -> tuple[Standing, str]:
    return found.verdict.standing, found.verdict.text


def test_speedups_are_taken_pair_by_pair() -> None:
    found = match(runs([10.0, 40.0]), runs([5.0, 5.0], 0.98))
    assert found.speedup.mean == pytest.approx(4.0)  # the geometric mean of 2 and 8
    assert found.difference.mean == pytest.approx(0.01)


def test_faster_slower_and_within_the_noise() -> None:
    reference = runs(TEN)
    quick = [time * (0.7 + 0.1 * (index % 3)) for index, time in enumerate(TEN)]
    slow = [time * (1.1 + 0.1 * (index % 3)) for index, time in enumerate(TEN)]
    noisy = [time * (0.5 if index % 2 else 2.1) for index, time in enumerate(TEN)]
    assert text(match(reference, runs(quick))) == (Standing.BETTER, "faster")
    assert text(match(reference, runs(slow))) == (Standing.WORSE, "slower")
    assert text(match(reference, runs(noisy))) == (Standing.EQUAL, "within the noise")
    assert text(match(reference, reference)) == (Standing.EQUAL, "within the noise")


def test_a_candidate_that_never_reaches_the_target_has_no_time_at_all() -> None:
    found = match(runs(TEN), runs([None] * 10, 0.955))
    assert text(found) == (Standing.WORSE, "did not reach the target (0 of 10)")
    assert found.speedup.mean is None
    assert (found.reached, found.reference_reached, found.only_reference, found.compared) == (0, 10, 10, 0)


def test_a_candidate_that_reaches_the_target_less_often_is_worse_however_fast_it_is() -> None:
    found = match(runs(TEN), runs([*faster(10)[:9], None]))
    assert text(found) == (Standing.WORSE, "reached the target less often (9 of 10, not 10)")
    assert found.speedup.mean == pytest.approx(10.0)  # of the nine pairs that have both times
    assert found.compared == 9


def test_a_baseline_that_misses_the_target_has_no_time_either() -> None:
    found = match(runs([None] * 10), runs(TEN))
    assert text(found) == (Standing.BETTER, "reached the target more often (10 of 10, not 0)")
    assert found.speedup.mean is None
    few = match(runs([None] * 5), runs(TEN[:5]))  # by chance in 1 of 16
    assert text(few) == (Standing.UNKNOWN, "the reference did not reach the target")
    once = match(runs([None, *TEN[1:]]), runs(faster(2.0)))
    assert text(once) == (Standing.BETTER, "faster")
    assert once.compared == 9


def test_ruined_runs_are_worse_however_early_they_reached_the_target() -> None:
    found = match(runs(TEN), runs(faster(3.0), [0.28, *[0.97] * 9]))
    assert text(found) == (Standing.WORSE, "ruined 1 of 10 runs")
    assert (found.ruined, found.reference_ruined) == (1, 0)
    both = match(runs(TEN, [0.28, *[0.97] * 9]), runs(faster(3.0), [0.97, 0.28, *[0.97] * 8]))
    assert text(both) == (Standing.BETTER, "faster")  # as many ruined runs on either side


def test_a_run_without_a_final_value_is_ruined() -> None:
    found = match(runs([None], 0.97), runs([None], None))
    assert text(found) == (Standing.WORSE, "ruined 1 of 1 run")
    assert match(runs([None], None), runs([None], None)).ruined == 0


@pytest.mark.parametrize(("short", "ruined"), [(0.0999, 0), (0.1001, 1)])
def test_ten_points_are_ruin(short: float, ruined: int) -> None:
    assert match(runs([10.0], 0.97), runs([10.0], 0.97 - short)).ruined == ruined


def test_ends_worse_counts_as_worse_even_if_equally_fast_or_faster() -> None:
    reference = runs(TEN, [0.97 + each for each in NOISE])
    worse = [0.957 + each for each in reversed(NOISE)]
    assert text(match(reference, runs(TEN, worse))) == (Standing.WORSE, "ends 1.3 points worse")
    assert text(match(reference, runs(faster(2.0), worse))) == (
        Standing.WORSE,
        "faster, but ends 1.3 points worse",
    )
    assert text(match(reference, runs(faster(0.5), worse))) == (Standing.WORSE, "ends 1.3 points worse")


def test_a_better_end_is_said_and_pays_for_no_time() -> None:
    reference = runs(TEN, [0.957 + each for each in NOISE])
    better = [0.97 + each for each in reversed(NOISE)]
    assert text(match(reference, runs(TEN, better))) == (Standing.BETTER, "ends 1.3 points better")
    assert text(match(reference, runs(faster(2.0), better))) == (
        Standing.BETTER,
        "faster, and ends 1.3 points better",
    )
    assert text(match(reference, runs(faster(0.5), better))) == (
        Standing.WORSE,
        "slower, but ends 1.3 points better",
    )


def test_small_or_uncertain_differences_of_ends_do_not_count() -> None:
    small = match(runs(TEN), runs(faster(2.0), 0.966))
    assert text(small) == (Standing.BETTER, "faster")
    uncertain = match(runs(TEN), runs(faster(2.0), [0.9, *[0.97] * 9]))  # 0.7 points on average, of one run
    assert text(uncertain) == (Standing.BETTER, "faster")


def test_one_pair_says_nothing_of_the_noise_and_no_pair_nothing_of_time() -> None:
    assert text(match(runs([10.0]), runs([5.0]))) == (Standing.UNKNOWN, "noise unknown (one pair)")
    assert text(match(runs([None]), runs([None]))) == (Standing.UNKNOWN, "target not reached")
    assert text(match(runs([None, None]), runs([None, None]))) == (Standing.UNKNOWN, "target not reached")


def test_metrics_of_which_less_is_better_and_that_are_no_shares() -> None:
    mse = MetricSpec(name="mse", better="lower", unit="m²")
    course = ((1.0, 2.0), (2.0, 0.5))
    reference = runs(TEN, [0.5 + each for each in NOISE], metric=mse, course=course)
    worse = [0.52 + each for each in reversed(NOISE)]
    assert text(match(reference, runs(TEN, worse, metric=mse))) == (Standing.WORSE, "ends 0.02 m² worse")
    assert text(match(reference, runs(TEN, 0.5015, metric=mse))) == (Standing.EQUAL, "within the noise")
    # It gained 1.5, so a run that ends 0.76 above it has lost more than half of that.
    assert match(reference, runs(TEN, 1.24, metric=mse)).ruined == 0
    assert match(reference, runs(TEN, 1.26, metric=mse)).ruined == 10


def test_the_record_holds_what_the_verdict_is_made_of() -> None:
    record = match(runs([10.0, 20.0, None, 5.0]), runs([5.0, 10.0, 7.0, None])).to_dict()
    assert record["speedup"] == {"mean": 2.0, "ci_low": 2.0, "ci_high": 2.0, "pairs": 2, "bounds": 2}
    assert (record["reached_alone"], record["missed_alone"]) == (1, 1)
    assert (record["standing"], record["verdict"]) == ("better", "faster")
    assert (record["ruined"], record["reference_ruined"]) == (0, 0)
    assert record["accuracy_difference"]["mean"] == 0.0
