"""Race of candidate settings: who is run how often and how long, and who wins."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from hypergpu.simulation.racing import FINALISTS, SEED_OFFSET, Contender, Costs, Race, runs_of
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario import Scenario

SCENARIO = Scenario.model_validate({"nodes": [{"id": "n"}], "target_accuracy": 0.9, "rounds": 100})


@dataclass(frozen=True)
class Runner:
    """A setting that needs so many seconds to the target."""

    seconds: int

    @property
    def label(self) -> str:
        return f"takes {self.seconds} s"

    def of(self, scenario: Scenario, seed: int) -> Scenario:
        return scenario.changed(seed=seed, description=str(self.seconds))


class Track:
    """Runs scenarios of `Runner` settings without a simulation, and keeps what was run."""

    def __init__(self) -> None:
        self.ran: list[tuple[int, int, float | None]] = []

    def run(self, scenarios: Sequence[Scenario]) -> list[Outcome]:
        return [self._one(scenario) for scenario in scenarios]

    def _one(self, scenario: Scenario) -> Outcome:
        needed, limit = int(scenario.description), scenario.time_limit_seconds
        self.ran.append((needed, scenario.seed, limit))
        assert scenario.config.training.target_accuracy == 0.9  # the run ends at its target
        lasted = min(needed, limit if limit is not None else 1e9)
        return Outcome(
            scenario="x", policy="none", seed=scenario.seed, state="", reason="", rounds=1, seconds=lasted,
            final_metric=0.9 * lasted / needed, final_loss=1.0, best_metric=None, target=0.9,
            time_to_target_seconds=needed if lasted == needed else None, bytes=10**9, messages=0, nodes=[],
        )  # fmt: skip


def test_the_fastest_wins_on_the_reported_seeds() -> None:
    track = Track()
    tried = [Runner(seconds) for seconds in (50, 90, 20, 70, 30, 110, 25, 60, 80, 100, 65, 55)]
    raced = Race[Runner](SCENARIO, track.run).run(tried, [Runner(40)], 2)
    assert [row.seconds for row, _ in raced.finalists] == [20, 25, 30]
    assert ([row.seconds for row, _ in raced.references], raced.seeds) == ([40], [0, 1])
    assert {seed for _, seed, _ in track.ran} == {0, 1, SEED_OFFSET, SEED_OFFSET + 1}
    assert raced.runs == len(track.ran) == runs_of(12, 1, 2)
    assert len(raced.losers) + 1 == raced.candidates == 12
    assert {each.candidate.seconds: each.stage for each in raced.losers}[25] == 3


def test_nobody_runs_longer_than_it_can_still_win() -> None:
    track = Track()
    Race[Runner](SCENARIO, track.run).run([Runner(seconds) for seconds in range(20, 140, 10)], [Runner(30)], 1)
    first = [limit for _, seed, limit in track.ran[1:] if seed == SEED_OFFSET]
    assert first[:8] == [15.0] * 8  # half of what the reference took
    reported = {needed: limit for needed, seed, limit in track.ran if seed == 0}
    assert reported[20] == 3 * 20.0
    assert reported[30] == 1000 * 20.0  # the reference's own time is asked for


def test_without_a_run_to_the_target_the_metric_decides() -> None:
    track = Track()

    def cut_short(scenarios: Sequence[Scenario]) -> list[Outcome]:
        return track.run([each.changed(time_limit_seconds=10.0) for each in scenarios])

    raced = Race[Runner](SCENARIO, cut_short).run([Runner(50), Runner(20), Runner(90), Runner(30)], [Runner(40)], 1)
    assert [row.seconds for row, _ in raced.finalists] == [20, 30, 50]
    assert raced.losers[0].why.startswith("was cut off after 10 s at accuracy ")


def test_a_race_for_money_lets_a_cheap_setting_take_its_time() -> None:
    def per_second(each: Contender) -> float:
        assert isinstance(each, Runner)
        return 0.1 if each.seconds == 60 else 1.0

    costs = Costs(per_second=per_second, beside=lambda outcome: 1e-9 * outcome.bytes)
    track = Track()
    raced = Race[Runner](SCENARIO, track.run, costs).run([Runner(30), Runner(60), Runner(50)], [Runner(40)], 1)
    assert [row.seconds for row, _ in raced.finalists] == [60, 30, 50]
    assert costs.of(Runner(60), raced.finalists[0][1][0]) == pytest.approx(7.0)


def test_few_candidates_all_reach_the_end() -> None:
    assert runs_of(2, 1, 5) == 1 + 2 + 2 + 3 * 5
    track = Track()
    raced = Race[Runner](SCENARIO, track.run).run([Runner(30), Runner(20)], [], 5)
    assert (len(raced.finalists), raced.runs) == (2, runs_of(2, 0, 5))
    assert FINALISTS > 2
