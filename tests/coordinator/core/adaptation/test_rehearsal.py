"""Decisions about rehearsals: when, which candidates, what is held, and what becomes of it."""

import math
from typing import Any

import pytest

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import SystemConfig
from hypergpu.common.connections import ConnectionPlan
from hypergpu.common.errors import InvalidInput
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.adaptation import build_orchestrator
from hypergpu.coordinator.core.adaptation.copies import packed, unpacked
from hypergpu.coordinator.core.adaptation.rehearsal import RehearsalDecision, RehearsalReason, Rehearsals
from hypergpu.coordinator.core.decisions import DecisionKind
from hypergpu.coordinator.core.rehearsal import (
    NOTHING_HELD,
    Forecast,
    HeldSetting,
    RehearsalRequest,
    RehearsalResult,
    Worth,
    WorthSource,
)
from hypergpu.coordinator.core.rounds.adaptation import RoundPlan, RoundReport
from hypergpu.coordinator.core.rounds.events import Contribution
from hypergpu.simulation.convergence import FITTED

WORTH = Worth(80.0, 40.0, WorthSource.UPDATE_NORMS)
NODES = ("a", "b", "c", "d")
HALF = HeldSetting(local_steps=20)


class Rounds:
    """Rounds of four nodes, each `seconds` long."""

    def __init__(self, **config: Any) -> None:
        tree = {"training": {"rounds": 100, "local_steps": 10}, "orchestrator": {"policy": "rehearsed"}} | config
        self.rehearsals = Rehearsals(SystemConfig.model_validate(tree))
        self.now, self.number = 0.0, 0
        self.requests: list[RehearsalRequest] = []

    def run(self, count: int, *, steps: int = 40, seconds: float = 1.0, turn: bool = False) -> list[RehearsalDecision]:
        """Run rounds that ask for rehearsals; return the verdicts."""
        verdicts = []
        for _ in range(count):
            self.number += 1
            self.now += seconds
            plan = RoundPlan(NODES, local_steps=steps, wait_for=NODES[:1] if turn else (), connections=ConnectionPlan())
            self.rehearsals.begin_round(plan)
            given = [Contribution(node, True, samples=32 * steps, batch_size=32) for node in NODES]
            report = RoundReport(self.number, 1.0, seconds=seconds, samples=128 * steps, contributions=given)
            verdict = self.rehearsals.observe(report, self.now)
            request = self.rehearsals.request(WORTH, self.now)
            self.requests += [request] if request else []
            verdicts += [verdict] if verdict else []
        return verdicts

    def answer(self, *forecasts: Forecast, seconds: float = 2.0, fault: str = "") -> RehearsalDecision | None:
        """Answer the latest request."""
        result = RehearsalResult(self.requests[-1].number, seconds, forecasts=forecasts, fault=fault)
        return self.rehearsals.finish(result, self.number + 1)


def better(gain: float, spread: float = 0.0, setting: HeldSetting = HALF) -> Forecast:
    return Forecast(setting, gain, spread)


def test_a_rehearsal_begins_when_the_plan_has_settled() -> None:
    rounds = Rounds()
    rounds.run(1)
    for steps in (10, 40, 160, 40):
        rounds.run(1, steps=steps)
    assert not rounds.requests
    rounds.run(2)
    (request,) = rounds.requests
    assert (request.round, request.at, request.worth) == (7, 7.0, WORTH)
    assert request.present == HeldSetting(40, 1.0, TransferCodecs())
    assert {str(each) for each in request.candidates} == {
        "local_steps=20",
        "local_steps=40",
        "local_steps=80",
        "close_share=0.6",
        "close_share=0.8",
    }


def test_only_one_runs_and_the_next_begins_after_twenty_times_its_cpu_time() -> None:
    rounds = Rounds()
    rounds.run(30)
    assert len(rounds.requests) == 1
    decision = rounds.answer(seconds=2.0)
    assert decision is not None
    assert decision.reason is RehearsalReason.NOTHING_FASTER
    began = rounds.requests[0].at
    rounds.run(60)
    assert rounds.requests[1].at == began + 20 * 2.0


def test_none_begins_when_too_few_rounds_are_left() -> None:
    rounds = Rounds(training={"rounds": 10, "local_steps": 10})
    rounds.run(10)
    assert not rounds.requests


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({"training": {"local_steps": 1}}, {"close_share"}),
        ({"training": {"local_steps": 10, "close_share": 0.8}}, {"local_steps"}),
        ({"training": {"local_steps": 10, "partition": "dirichlet"}}, {"local_steps"}),
        ({"batch": {"strategy": "fixed"}}, {"close_share"}),
        ({"compression": {"strategy": "adaptive"}}, {"local_steps", "close_share", "codecs"}),
        ({"compression": {"strategy": "adaptive", "max_noise": 0.0}}, {"local_steps", "close_share"}),
    ],
)
def test_candidates_leave_alone_what_the_user_chose(config: dict[str, Any], kinds: set[str]) -> None:
    rounds = Rounds(**config)
    rounds.run(5)
    assert {str(each).split("=")[0] for each in rounds.requests[0].candidates} == kinds


@pytest.mark.parametrize(
    ("gain", "spread", "held"), [(1.05, 0.0, False), (1.07, 0.0, True), (1.2, 0.21, False), (1.2, 0.19, True)]
)
def test_a_gain_has_to_be_above_the_margin_and_above_its_own_spread(gain: float, spread: float, held: bool) -> None:
    rounds = Rounds()
    rounds.run(5)
    decision = rounds.answer(better(gain, spread))
    assert decision is not None
    reason = RehearsalReason.PREDICTED_FASTER if held else RehearsalReason.NOTHING_FASTER
    assert decision.reason is reason
    assert decision.figures["predicted_gain"] == pytest.approx(gain - 1)
    assert decision.figures["worth_by"] == "update_norms"
    assert decision.local_steps == (20 if held else None)
    assert rounds.rehearsals.held == (HALF if held else NOTHING_HELD)


def tried(seconds: float, gain: float = 1.5) -> tuple[Rounds, RehearsalDecision]:
    """A setting of half the steps on trial, whose rounds take `seconds`, and the verdict."""
    rounds = Rounds()
    rounds.run(5)
    rounds.answer(better(gain))
    assert not rounds.run(1, steps=40)  # the round that was open
    assert not rounds.run(8, steps=20, seconds=seconds)
    (verdict,) = rounds.run(1, steps=20, seconds=seconds)
    return rounds, verdict


def test_a_gain_that_comes_is_on_record_and_the_setting_stays() -> None:
    rounds, verdict = tried(seconds=0.5)
    before, after = WORTH.of_round(40, 128 * 40, 4) / 1.0, WORTH.of_round(20, 128 * 20, 4) / 0.5
    assert verdict.reason is RehearsalReason.GAIN_REALISED
    assert verdict.figures["realised_gain"] == pytest.approx(after / before - 1)
    assert verdict.figures["predicted_gain"] == pytest.approx(0.5)
    assert rounds.rehearsals.held == HALF


def test_a_gain_that_is_missing_takes_the_setting_back_and_bars_it_for_a_while() -> None:
    rounds, verdict = tried(seconds=0.65)
    assert verdict.reason is RehearsalReason.GAIN_MISSING
    assert verdict.local_steps == 40
    assert rounds.rehearsals.held == NOTHING_HELD
    rounds.run(60, seconds=1.0)
    offered = [[str(each) for each in request.candidates] for request in rounds.requests[1:]]
    assert offered
    assert str(HALF) not in offered[0]


def test_a_setting_that_has_paid_is_given_up_when_rounds_get_slower_than_before_it() -> None:
    rounds, _ = tried(seconds=0.5)
    assert not rounds.run(4, steps=20, seconds=0.5)
    verdicts = rounds.run(8, steps=20, seconds=3.0)
    assert [verdict.reason for verdict in verdicts] == [RehearsalReason.GAIN_MISSING]
    assert rounds.rehearsals.held == NOTHING_HELD


def test_rounds_that_wait_for_a_nodes_turn_are_not_measured() -> None:
    rounds = Rounds()
    rounds.run(5)
    rounds.answer(better(1.5))
    rounds.run(2, steps=20, seconds=0.5)
    assert not rounds.run(4, steps=20, seconds=60.0, turn=True)
    verdicts = rounds.run(8, steps=20, seconds=0.5)
    assert [verdict.reason for verdict in verdicts] == [RehearsalReason.GAIN_REALISED]


def test_a_rehearsal_that_fails_changes_nothing_and_is_not_repeated_at_once() -> None:
    rounds = Rounds()
    rounds.run(5)
    decision = rounds.answer(seconds=0.1, fault="the process ended with code 1")
    assert decision is not None
    assert decision.reason is RehearsalReason.FAILED
    assert rounds.rehearsals.held == NOTHING_HELD
    rounds.run(80)
    assert rounds.requests[1].at >= rounds.requests[0].at + 60


def test_a_result_that_nobody_waits_for_is_ignored() -> None:
    rounds = Rounds()
    rounds.run(5)
    assert rounds.rehearsals.cancel() is None
    assert rounds.answer(better(2.0)) is None
    assert rounds.rehearsals.held == NOTHING_HELD


def test_the_worth_of_a_round_is_that_of_the_model_of_convergence() -> None:
    curve = FITTED["digit_sums"].model_copy(update={"drift_steps": 40.0})
    worth = Worth(curve.noise_scale, curve.drift_steps, WorthSource.LEARNING_CURVE)
    expected = curve.progress(curve.worth(30), 4 * 32, curve.learning_rate)
    assert worth.of_round(30, 4 * 32 * 30, 4) == pytest.approx(expected)
    without = Worth(curve.noise_scale, math.inf, WorthSource.LEARNING_CURVE)
    assert without.of_round(30, 4 * 32 * 30, 4) == pytest.approx(30 / (1 + curve.noise_scale / 128))
    assert worth.of_round(30, 0, 0) == 0.0
    assert worth.of_round(30, 4 * 32 * 30, 4, codec_noise=0.1) < expected


def test_settings_add_up() -> None:
    both = HALF.with_(HeldSetting(close_share=0.6))
    assert str(both) == "local_steps=20 close_share=0.6"
    assert both.with_(HeldSetting(local_steps=80)) == HeldSetting(80, 0.6)
    assert str(NOTHING_HELD) == "as planned"


def orchestrated(clock: ManualClock) -> Any:
    tree = {"training": {"rounds": 100, "local_steps": 10}, "orchestrator": {"policy": "rehearsed"}}
    orchestrator = build_orchestrator(SystemConfig.model_validate(tree), clock=clock, model_bytes=1000)
    for number in range(1, 12):
        finished(orchestrator, clock, number)
    return orchestrator


def finished(orchestrator: Any, clock: ManualClock, number: int) -> Any:
    plan = orchestrator.plan_round(NODES, number)
    given = []
    for node in plan.selected:
        orchestrator.monitor.record_communication(node, 50.0, True)
        size = plan.batch_sizes[node]
        samples = size * (plan.local_steps or 1)
        given.append(Contribution(node, True, samples, size, 1e-4 * samples, 0.3, loss=1.0))
    clock.advance(0.5 + max(each.compute_seconds for each in given))
    samples = sum(each.samples for each in given)
    report = RoundReport(number, 2.0 * 0.95**number, seconds=0.5, samples=samples, contributions=given)
    return plan, orchestrator.finish_round(report)


def test_the_orchestrator_asks_holds_and_lets_go_when_training_diverges() -> None:
    clock = ManualClock(100.0)
    orchestrator = orchestrated(clock)
    pending = orchestrator._rehearsals._pending  # the test is about what the driver would have been told
    assert pending is not None
    setting = HeldSetting(local_steps=14, close_share=0.75)
    forecast = Forecast(setting, 1.5, 0.0)
    (decision,) = orchestrator.finish_rehearsal(RehearsalResult(pending[0].number, 2.0, forecasts=(forecast,)), 12)
    assert decision.kind is DecisionKind.REHEARSAL
    for number in (12, 13):
        plan, _ = finished(orchestrator, clock, number)
        assert (plan.local_steps, plan.close_share) == (14, 0.75)
    plan = orchestrator.plan_round(NODES, 14)
    judgement = orchestrator.finish_round(RoundReport(14, math.nan, seconds=0.5, samples=0))
    assert "plan_changed" in {str(each.reason) for each in judgement.decisions}
    assert orchestrator.plan_round(NODES, 15).close_share != 0.75


def test_a_copy_goes_on_by_its_own_clock_and_leaves_the_original_alone() -> None:
    clock, other = ManualClock(100.0), ManualClock(200.0)
    orchestrator = orchestrated(clock)
    copy = unpacked(packed(orchestrator), other)
    assert (copy.clock, copy.monitor is orchestrator.monitor) == (other, False)
    copy.fork(HeldSetting(local_steps=7))
    assert copy.plan_round(NODES, 12).local_steps == 7
    assert orchestrator.plan_round(NODES, 12).local_steps != 7
    with pytest.raises(InvalidInput):
        unpacked(b"\x80\x04K\x01.", other)
