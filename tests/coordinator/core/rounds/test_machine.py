"""The round machine: exact, instant, in virtual time."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.errors import NotFound, ResourceExhausted
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.common.metric import ACCURACY, LOSS, MetricSpec
from hypergpu.coordinator.core.decisions import DecisionKind
from hypergpu.coordinator.core.model.sketch import WIDTH, Sketch
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import (
    Adaptation,
    FixedAdaptation,
    ModelAction,
    RoundJudgement,
    RoundPlan,
    RoundReport,
)
from hypergpu.coordinator.core.rounds.closing import MAX_EXTENSIONS
from hypergpu.coordinator.core.rounds.deadlines import DeadlineEstimator
from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.membership import Member
from hypergpu.coordinator.core.rounds.opening import Wait, can_open, on_abandoned
from hypergpu.coordinator.core.rounds.state import RunState
from hypergpu.coordinator.core.rounds.suspicion import PROBATION_ROUNDS
from hypergpu.coordinator.core.score import Score
from tests.examples import examples


class Driver:
    """Feeds a machine, remembers what it wanted, and answers `CloseRound` at once unless told not to."""

    def __init__(
        self,
        *,
        lost_after: float | None = None,
        max_nodes: int = 100,
        evaluate: bool = True,
        adaptation: Adaptation | None = None,
        metric: MetricSpec = ACCURACY,
        found: tuple[float, float | None] = (0.5, 0.9),
        first_round: int = 1,
        **training: Any,
    ):
        config = TrainingConfig(**{"rounds": 3, "local_steps": 2, "batch_size": 8, **training})
        self.machine = RoundMachine(
            config,
            adaptation or FixedAdaptation(config.batch_size),
            lost_after_seconds=lost_after,
            max_nodes=max_nodes,
            metric=metric,
            first_round=first_round,
        )
        self.found = found
        self.now = 0.0
        self.log: list[ev.Effect] = []
        self.evaluate = evaluate

    def send(self, *events: ev.Event) -> list[ev.Effect]:
        fresh: list[ev.Effect] = []
        for event in events:
            effects = self.machine.handle(event, self.now)
            fresh += effects
            for close in (e for e in effects if isinstance(e, ev.CloseRound) and self.evaluate):
                fresh += self.machine.handle(ev.Evaluated(close.round, *self.found), self.now)
        self.log += fresh
        return fresh

    def wait(self, seconds: float) -> list[ev.Effect]:
        self.now += seconds
        return self.send(ev.Tick())

    def join(self, *nodes: str) -> None:
        self.send(*(ev.NodeJoined(node, incarnation="1") for node in nodes))

    def ask(self, *nodes: str) -> list[ev.WorkAssigned]:
        return [e for e in self.send(*(ev.WorkRequested(node) for node in nodes)) if isinstance(e, ev.WorkAssigned)]

    def push(self, node: str, round_number: int | None = None, samples: int = 16, attempt: int = 1) -> ev.UpdateReply:
        number = round_number or self.machine.round
        effects = self.send(ev.UpdateArrived(node, number, attempt, samples, loss=1.0, compute_seconds=0.1))
        return next(e for e in effects if isinstance(e, ev.UpdateReply))

    def send_back(self, node: str, reason: str, detail: str = "") -> list[ev.Effect]:
        """Return the present attempt of a node's work."""
        current = self.machine.round_state.open_round
        attempt = current.units[node].attempt if current is not None else 0
        return self.send(ev.WorkReturned(node, self.machine.round, attempt, reason, detail))

    def state(self) -> RunState:
        return self.machine.state

    def of(self, kind: type) -> list[Any]:
        return [e for e in self.log if isinstance(e, kind)]

    def reasons(self) -> list[str]:
        return [str(d.reason) for d in self.machine.decisions]


def kinds(effects: Iterable[ev.Effect]) -> list[str]:
    return [e.kind for e in effects if isinstance(e, ev.RunEvent)]


@pytest.mark.parametrize("reason", ["shutting_down", "leaving", "Unavailable", "WorkAbandoned"])
def test_a_deterministic_round_waits_for_a_node_that_goes_and_comes_back(reason: str) -> None:
    d = Driver(min_nodes=2, deterministic=True, quorum=1.0)
    d.join("a", "b")
    d.ask("a", "b")
    for _ in range(4):
        d.send_back("b", reason)
        d.ask("b")
    d.send_back("b", reason)
    d.send(ev.NodeLeft("b", "SIGTERM"))
    d.push("a")
    d.join("c")
    assert not d.of(ev.CloseRound)
    assert not d.ask("c"), "another node has no part in the round"
    d.send(ev.NodeJoined("b", incarnation="2"))
    [order] = d.ask("b")
    d.push("b", attempt=order.attempt)
    [closed] = d.of(ev.CloseRound)
    assert sorted(each.node for each in closed.contributions if each.success) == ["a", "b"]


def test_a_run_from_first_to_last_round() -> None:
    d = Driver(min_nodes=2)
    d.join("a")
    assert d.state() is RunState.WAITING
    assert d.machine.waiting_for == "1 more node to join (1 connected)"
    d.join("b")
    assert d.machine.waiting_for == "2 more nodes to become ready (0 ready)"
    for number in (1, 2, 3):
        orders = d.ask("a", "b")
        assert [(o.round, o.node, o.attempt, o.batch_size, o.local_steps) for o in orders] == [
            (number, "a", 1, 8, 2),
            (number, "b", 1, 8, 2),
        ]
        assert {o.shard.index for o in orders} == {0, 1}
        assert {o.shard.cursor for o in orders} == {16 * (number - 1)}
        assert d.push("a").status is ev.UpdateStatus.ACCEPTED
        assert d.push("b").status is ev.UpdateStatus.ACCEPTED
    assert d.state() is RunState.COMPLETED
    assert [c.reason for c in d.of(ev.CloseRound)] == [ev.CloseReason.ALL_CONTRIBUTED] * 3
    assert d.of(ev.Finish)[0].reason is ev.FinishReason.ROUNDS_DONE
    assert d.ask("a") == []
    assert d.log[-1] == ev.RunOver("a")


@pytest.mark.parametrize(("share", "needed"), [(0.8, 4), (0.81, 5), (0.6, 3), (0.2, 1)])
def test_a_round_closes_once_the_configured_share_has_contributed(share: float, needed: int) -> None:
    d = Driver(min_nodes=5, rounds=1, close_share=share)
    d.join(*"abcde")
    d.ask(*"abcde")
    for index, node in enumerate("abcde"[:needed]):
        assert not d.of(ev.CloseRound), index
        d.push(node)
    closed = d.of(ev.CloseRound)[0]
    everyone = needed == 5
    assert closed.reason is (ev.CloseReason.ALL_CONTRIBUTED if everyone else ev.CloseReason.ENOUGH_CONTRIBUTED)
    assert [c.success for c in closed.contributions] == [True] * needed + [False] * (5 - needed)
    assert [c.late for c in closed.contributions] == [False] * needed + [True] * (5 - needed)


def test_a_plan_may_close_its_round_with_another_share_than_the_configured_one() -> None:
    class Planned(FixedAdaptation):
        def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
            plan = super().plan_round(available, round_number)
            return replace(plan, close_share=0.5 if round_number == 1 else None)

    d = Driver(min_nodes=2, rounds=2, adaptation=Planned(8))
    d.join("a", "b")
    d.ask("a", "b")
    d.push("a")
    assert d.machine.round == 2
    d.push("b", 1)  # late: it returns to the cluster
    d.ask("a", "b")
    d.push("a")
    assert len(d.of(ev.CloseRound)) == 1, "the second round waits for both"
    d.push("b")
    assert d.of(ev.CloseRound)[1].reason is ev.CloseReason.ALL_CONTRIBUTED


class Probing(FixedAdaptation):
    """Probes these nodes."""

    def __init__(self, *probes: str, closing_at: float | None = None) -> None:
        super().__init__(8)
        self._probes, self._share = probes, closing_at
        self.reports: list[RoundReport] = []

    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        return replace(super().plan_round(available, round_number), probes=self._probes, close_share=self._share)

    def finish_round(self, report: RoundReport) -> RoundJudgement:
        self.reports.append(report)
        return super().finish_round(report)


def probing_c() -> Driver:
    """A run of two rounds in which c is probed beside a and b, and all three have their work."""
    d = Driver(min_nodes=3, rounds=2, adaptation=Probing("c"))
    d.join(*"abc")
    assert [order.node for order in d.ask(*"abc")] == ["a", "b", "c"]
    return d


def reports_of(d: Driver) -> list[RoundReport]:
    assert isinstance(d.machine.adaptation, Probing)
    return d.machine.adaptation.reports


def test_a_round_does_not_wait_for_a_probe_and_the_next_one_not_for_its_node() -> None:
    d = probing_c()
    d.push("a")
    assert not d.of(ev.CloseRound)
    d.push("b")
    closed = d.of(ev.CloseRound)[0]
    assert closed.reason is ev.CloseReason.ALL_CONTRIBUTED
    assert [(c.node, c.success, c.late, c.awaited) for c in reports_of(d)[0].contributions] == [
        ("a", True, False, True),
        ("b", True, False, True),
        ("c", False, True, False),
    ]
    assert [order.round for order in d.ask("a", "b")] == [2, 2], "two of three are no quorum, but c is not missed"
    assert d.push("c", 1).status is ev.UpdateStatus.LATE


def test_an_update_of_a_probe_counts_if_it_is_in_time() -> None:
    d = probing_c()
    for node in "cab":
        assert d.push(node).status is ev.UpdateStatus.ACCEPTED
    assert d.of(ev.CloseRound)[0].samples == 3 * 16
    assert [c.awaited for c in reports_of(d)[0].contributions] == [False, True, True]


def test_the_share_that_closes_a_round_is_one_of_the_awaited_nodes() -> None:
    d = Driver(min_nodes=5, rounds=1, adaptation=Probing("d", "e", closing_at=0.6))
    d.join(*"abcde")
    d.ask(*"abcde")
    d.push("a")
    assert not d.of(ev.CloseRound)
    d.push("b")  # 2 of 3, where it would take 3 of 5
    assert d.of(ev.CloseRound)[0].reason is ev.CloseReason.ENOUGH_CONTRIBUTED


def test_a_round_of_probes_alone_waits_for_them() -> None:
    d = Driver(min_nodes=2, rounds=1, adaptation=Probing("a", "b"))
    d.join("a", "b")
    d.ask("a", "b")
    d.push("a")
    assert not d.of(ev.CloseRound)
    d.push("b")
    assert d.of(ev.CloseRound)[0].reason is ev.CloseReason.ALL_CONTRIBUTED


def test_a_probe_lengthens_no_deadline() -> None:
    d = Driver(min_nodes=3, rounds=6, adaptation=Probing())
    d.join(*"abc")
    for number in range(1, 5):
        d.ask(*"abc")
        d.machine.adaptation = Probing("c" if number == 4 else "")
        for node, seconds in (("a", 1.0), ("b", 0.0), ("c", 9.0)):
            d.now += seconds
            d.push(node)
    assert d.machine.deadline_at == 40.0 + 1.5  # what a and b need, and half as much


def test_a_probe_that_is_dropped_is_not_missed_and_one_that_returns_is_not_awaited() -> None:
    d = probing_c()
    d.send(ev.NodeLeft("c"))
    d.join("c")
    d.push("a")
    assert not d.of(ev.CloseRound)
    d.push("b")
    assert d.of(ev.CloseRound)[0].reason is ev.CloseReason.ALL_CONTRIBUTED


def test_a_newcomer_that_takes_over_a_probe_is_awaited() -> None:
    d = probing_c()
    d.send(ev.NodeLeft("c"))
    d.join("n")
    assert [order.node for order in d.ask("n")] == ["n"]
    d.push("a")
    d.push("b")
    assert not d.of(ev.CloseRound)
    d.push("n")
    assert d.of(ev.CloseRound)[0].reason is ev.CloseReason.ALL_CONTRIBUTED


def test_a_node_that_has_not_asked_for_its_work_yet_is_late_and_did_not_fail() -> None:
    probing = Probing()
    d = Driver(min_nodes=2, rounds=2, adaptation=probing, quorum=0.5)
    d.join("a", "b")
    d.ask("a", "b")
    d.push("a")
    d.push("b")
    d.ask("a")
    d.push("a")
    d.wait(1000.0)
    assert [(c.node, c.success, c.late) for c in probing.reports[1].contributions] == [
        ("a", True, False),
        ("b", False, True),
    ]


class Trying(FixedAdaptation):
    """Lets node a try another learning rate."""

    def __init__(self) -> None:
        super().__init__(8)
        self.action = ModelAction.KEEP
        self.reports: list[RoundReport] = []
        self.faults: list[str] = []

    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        return replace(
            super().plan_round(available, round_number), trials={"a": LocalOptimizer("sgd", 0.7)}, server_momentum=0.8
        )

    def finish_round(self, report: RoundReport) -> RoundJudgement:
        self.reports.append(report)
        return RoundJudgement(model=self.action)

    def abandon_round(self, round_number: int, fault: str) -> RoundJudgement:
        self.faults.append(fault)
        return RoundJudgement(model=self.action)


@pytest.mark.parametrize(("after", "failed"), [(0.5, False), (1.0, True), (math.nan, True), (None, False)])
def test_an_update_of_a_trial_is_measured_and_not_applied(after: float | None, failed: bool) -> None:
    trying = Trying()
    d = Driver(min_nodes=2, adaptation=trying)
    d.join("a", "b")
    orders = d.ask("a", "b")
    assert [order.learning_rate for order in orders] == [0.7, 0.1]
    update = ev.UpdateArrived("a", 1, 1, 16, 1.0, 0.1, loss_before=1.0, loss_after=after)
    (reply,) = [e for e in d.send(update) if isinstance(e, ev.UpdateReply)]
    assert (reply.status, reply.weight) == (ev.UpdateStatus.ACCEPTED, 0)
    d.push("b")
    (closed,) = d.of(ev.CloseRound)
    assert (closed.samples, closed.server_momentum, closed.local_steps, closed.learning_rate) == (16, 0.8, 2, 0.1)
    tried, usual = trying.reports[0].contributions
    assert (tried.node, tried.success, tried.samples, tried.trial_failed) == ("a", True, 0, failed)
    assert (usual.samples, usual.trial_failed) == (16, False)


def test_orders_trials_and_the_step_of_the_server_follow_the_course_of_the_learning_rate() -> None:
    d = Driver(min_nodes=2, adaptation=Trying(), rounds=4, warmup_rounds=1, learning_rate_schedule="cosine")
    d.join("a", "b")
    factors = [0.5, 1.0, 0.75, 0.25]  # half a cosine over three rounds after the warm-up
    for factor in factors:
        orders = d.ask("a", "b")
        assert [order.learning_rate for order in orders] == pytest.approx([0.7 * factor, 0.1 * factor])
        d.push("a")
        d.push("b")
    assert [closed.learning_rate for closed in d.of(ev.CloseRound)] == pytest.approx([0.1 * each for each in factors])


def test_a_trial_that_is_not_finite_is_not_repeated_in_its_round() -> None:
    d = Driver(min_nodes=2, adaptation=Trying())
    d.join("a", "b")
    d.ask("a", "b")
    d.send(ev.WorkReturned("a", 1, 1, "NonFiniteUpdate"))
    assert "trial_failed" in d.reasons()
    assert d.ask("a") == []
    d.push("b")
    (closed,) = d.of(ev.CloseRound)
    assert [(c.node, c.success, c.trial_failed) for c in closed.contributions] == [
        ("b", True, False),
        ("a", False, True),
    ]


def test_the_adaptation_says_which_model_is_kept_and_which_is_given_up() -> None:
    trying = Trying()
    d = Driver(min_nodes=1, rounds=9, adaptation=trying)
    d.join("b")
    for action, effect in (
        (ModelAction.KEEP, [ev.KeepModel(1)]),
        (ModelAction.LEAVE, []),
        (ModelAction.REVERT, [ev.RevertModel(3)]),
    ):
        trying.action, d.found = action, (0.5 * d.machine.round, 0.9)
        d.ask("b")
        before = len(d.log)
        d.push("b")
        assert [e for e in d.log[before:] if isinstance(e, ev.KeepModel | ev.RevertModel)] == effect
    assert d.machine.loss == 0.5, "the loss is that of the model after round 1, to which the run returned"
    assert d.machine.score == Score(3, 0.5, 0.9), "which is the model after round 3 too"
    (told,) = [each for each in d.of(ev.RunEvent) if each.kind == "model_reverted"]
    assert told.fields == {"kept_round": 1, "loss": 0.5, "accuracy": 0.9}


def test_a_round_that_no_node_can_finish_leaves_the_figures_of_the_kept_model() -> None:
    trying = Trying()
    d = Driver(min_nodes=1, rounds=9, adaptation=trying)
    d.join("b")
    for action, loss in ((ModelAction.KEEP, 0.5), (ModelAction.LEAVE, 0.75)):
        trying.action, d.found = action, (loss, 0.9)
        d.ask("b")
        d.push("b")
    assert d.machine.score == Score(2, 0.75, 0.9)
    trying.action = ModelAction.REVERT
    d.ask("b")
    for _ in range(3):
        d.send(ev.WorkReturned("b", 3, d.of(ev.WorkAssigned)[-1].attempt, "NonFiniteUpdate"))
        d.ask("b")
    assert d.of(ev.RevertModel) == [ev.RevertModel(3)]
    assert d.machine.score == Score(2, 0.5, 0.9)
    (told,) = [each for each in d.of(ev.RunEvent) if each.kind == "model_reverted"]
    assert told.text == "no node could finish round 3; reverting to the parameters after round 1"


@pytest.mark.parametrize("of_present_model", [False, True])
def test_a_resumed_run_returns_to_the_figures_of_its_checkpoint(of_present_model: bool) -> None:
    trying = Trying()
    d = Driver(min_nodes=1, rounds=9, adaptation=trying, first_round=4)
    d.machine.restore_figures(0.5, 0.9, of_present_model=of_present_model)
    assert (d.machine.loss, d.machine.metric_value) == (0.5, 0.9)
    assert d.machine.score == (Score(3, 0.5, 0.9) if of_present_model else None)
    trying.action, d.found = ModelAction.REVERT, (7.0, 0.1)
    d.join("b")
    d.ask("b")
    d.push("b")
    assert d.machine.score == (Score(4, 0.5, 0.9) if of_present_model else None)


def test_a_round_that_every_node_gives_up_is_tried_again_differently() -> None:
    trying = Trying()
    trying.action = ModelAction.REVERT
    d = Driver(min_nodes=1, adaptation=trying)
    d.join("b")
    d.ask("b")
    for attempt in range(5):  # without a change the run would end after three
        for _ in range(3):
            d.send(ev.WorkReturned("b", 1, d.of(ev.WorkAssigned)[-1].attempt, "NonFiniteUpdate"))
            d.ask("b")
        assert len(trying.faults) == attempt + 1
        d.wait(64.0)
    assert set(trying.faults) == {"NonFiniteUpdate"}
    assert not d.machine.finished
    assert len(d.of(ev.RevertModel)) == 5


def test_a_run_without_an_end_has_no_last_round_and_still_ends_at_its_target() -> None:
    for target, rounds in ((None, 6), (0.9, 1)):
        d = Driver(rounds=0, evaluate_every=7, target_accuracy=target)
        d.join("a")
        for _ in range(rounds):
            d.ask("a")
            d.push("a")
        assert [close.evaluate for close in d.of(ev.CloseRound)] == [False] * rounds, "none of them is the last"
        assert d.machine.finished is (target is not None)
    assert d.of(ev.Finish)[0].reason is ev.FinishReason.TARGET_REACHED


def rounds_until_patience_ends(scores: Sequence[tuple[float, float | None]], **training: Any) -> Driver:
    """Train until the run ends, or the scores do."""
    d = Driver(rounds=0, **training)
    d.join("a")
    for score in scores:
        d.found = score
        d.ask("a")
        d.push("a")
        if d.machine.finished:
            break
    return d


def test_a_run_ends_when_no_model_was_better_for_as_many_evaluations_as_its_patience() -> None:
    scores = [(1.0, 0.5), (0.9, 0.5), (0.8, 0.4), (1.5, 0.6), (0.1, 0.5), (0.1, 0.5), (0.1, 0.5), (0.1, 0.9)]
    d = rounds_until_patience_ends(scores, patience=3)
    (finish,) = d.of(ev.Finish)
    assert (finish.reason, finish.detail) == (
        ev.FinishReason.NO_IMPROVEMENT,
        "no model was better than that of round 4 in 3 evaluations",
    )
    assert (d.machine.state, d.machine.round) == (RunState.COMPLETED, 8)
    assert d.machine.improvement == {"round": 4, "loss": 1.5, "metric": 0.6, "evaluations": 3}
    assert not rounds_until_patience_ends(scores).machine.finished, "without patience a run trains on"
    assert not rounds_until_patience_ends(scores, patience=4).machine.finished


def test_patience_counts_evaluations_and_not_rounds() -> None:
    d = Driver(rounds=0, patience=2, evaluate_every=3, evaluate=False)
    d.join("a")
    while not d.machine.finished:
        d.ask("a")
        d.push("a")
        closed: ev.CloseRound = d.of(ev.CloseRound)[-1]
        d.send(ev.Evaluated(closed.round, 0.5 if closed.evaluate else None, 0.5 if closed.evaluate else None))
    assert closed.round == 9, "the evaluations of rounds 6 and 9 found nothing better"


def test_patience_goes_on_where_an_earlier_process_ended() -> None:
    d = Driver(rounds=0, patience=3, first_round=6)
    d.machine.restore_improvement(Score(3, 0.4, 0.95), 2)
    d.join("a")
    d.ask("a")
    d.push("a")
    assert d.of(ev.Finish)[0].detail == "no model was better than that of round 3 in 3 evaluations"


def test_asking_nodes_get_their_order_when_the_round_begins_and_run_over_when_it_ends() -> None:
    d = Driver(min_nodes=2, rounds=1)
    d.join("a")
    d.ask("a")
    d.join("b")
    assert d.of(ev.WorkAssigned) == []
    d.ask("b")
    assert [o.node for o in d.of(ev.WorkAssigned)] == ["a", "b"]
    d.push("a")
    d.ask("a")
    d.push("b")
    assert ev.RunOver("a") in d.log


def test_a_node_counts_from_its_first_request_on() -> None:
    d = Driver(min_nodes=2)
    d.join("a", "b", "c")
    d.ask("a", "b")
    assert list(d.machine.selected) == ["a", "b"], "c still prepares"
    d.ask("c")
    d.push("a")
    d.push("b")
    assert list(d.machine.selected) == ["a", "b", "c"]
    assert d.machine.members.ready == 3
    d.send(ev.NodeJoined("c", incarnation="2"))
    assert d.machine.members.ready == 2, "another process, which prepares anew"
    d.send(ev.NodeLost("c"), ev.NodeLost("b"))
    assert d.machine.members.ready == 1


def test_who_never_asks_holds_the_first_round_up_for_a_while_only() -> None:
    d = Driver(min_nodes=5)
    d.join(*"abcde")
    d.now = 4.0
    d.ask("a", "b")
    d.wait(600)
    assert d.machine.waiting_for == "3 more nodes to become ready (2 ready)"
    d.now = 1000.0
    d.ask("c")  # a quorum, after 1000 s: the rest may take 2000 more
    assert d.of(ev.SetTimer)[-1].at == 3000.0
    d.wait(1999)
    assert d.state() is RunState.WAITING
    d.wait(1)
    assert d.machine.selected == tuple("abc")
    d.ask("d")
    for node in "abc":
        d.push(node)
    assert d.machine.selected == tuple("abcd")


def test_who_prepares_and_falls_silent_is_lost() -> None:
    d = Driver(lost_after=10, min_nodes=2)
    d.join("a", "b")
    d.ask("a")
    for _ in range(4):
        d.now += 3
        d.machine.seen("a", d.now)
        d.send(ev.Tick())
    assert set(d.machine.members.connected) == {"a"}
    assert d.machine.waiting_for == "1 more node to join (1 connected)"


def test_an_update_counts_once() -> None:
    d = Driver()
    d.join("a", "b")
    d.ask("a")
    assert d.machine.selected == ("a",), "b was not ready when round 1 began"
    d.ask("b")
    d.push("a")
    d.ask("a")
    assert d.push("a").status is ev.UpdateStatus.ACCEPTED
    assert d.push("a").status is ev.UpdateStatus.DUPLICATE
    assert d.push("b").status is ev.UpdateStatus.ACCEPTED
    assert d.of(ev.CloseRound)[-1].samples == 32


def test_what_nobody_ordered_is_stale_and_what_is_over_is_late() -> None:
    d = Driver(min_nodes=2)
    d.join("a", "b")
    assert d.push("nobody").status is ev.UpdateStatus.STALE
    assert d.push("a", 2).status is ev.UpdateStatus.STALE
    d.ask("a")
    d.send(ev.RequestEnded("a"))
    d.ask("b")
    assert d.push("a").status is ev.UpdateStatus.STALE, "never handed out"
    d.ask("a")
    d.push("a")
    d.send(ev.NodeLost("b"))
    assert d.machine.round == 2
    assert d.push("b", 1).status is ev.UpdateStatus.LATE
    member = d.machine.members.get("b")
    assert member is not None
    assert member.late == 1


def test_the_weight_is_bounded_by_what_was_ordered() -> None:
    d = Driver()
    d.join("a")
    d.ask("a")
    assert d.push("a", samples=10**12).weight == 16
    assert "weight_bounded" in d.reasons()


def test_a_returned_unit_is_handed_out_again_and_dropped_in_the_end() -> None:
    d = Driver(min_nodes=2)
    d.join("a", "b")
    d.ask("a", "b")
    d.push("b")
    for attempt in (2, 3):
        d.send_back("a", "NonFiniteUpdate")
        assert [o.attempt for o in d.ask("a")] == [attempt]
    d.send_back("a", "NonFiniteUpdate")
    closed = d.of(ev.CloseRound)[-1]
    assert closed.reason is ev.CloseReason.SURVIVORS_CONTRIBUTED
    assert [(c.node, c.success) for c in closed.contributions] == [("b", True), ("a", False)]
    assert "too_many_attempts" in d.reasons()


def test_an_attempt_is_returned_once_however_often_the_node_says_so() -> None:
    d = Driver(min_nodes=2)
    d.join("a", "b")
    d.ask("a", "b")
    for _ in range(4):
        d.send(ev.WorkReturned("a", 1, 1, "OutOfMemory"))
    assert kinds(d.log).count("work_returned") == 1
    assert d.machine.members.require("a").retries == 1
    assert [(o.attempt, o.batch_size) for o in d.ask("a")] == [(2, 4)]
    for attempt in (1, 3, 0):  # of an attempt that is over, and of two that were never assigned
        d.send(ev.WorkReturned("a", 1, attempt, "OutOfMemory"))
    d.push("a", attempt=2)
    assert kinds(d.log).count("work_returned") == 1
    d.push("b")
    (closed,) = d.of(ev.CloseRound)
    assert [(each.node, each.batch_size) for each in closed.contributions] == [("a", 4), ("b", 8)]


def test_an_update_is_a_sign_of_life_even_if_it_is_not_used() -> None:
    d = Driver(min_nodes=2)
    d.join("a", "b")
    d.ask("a", "b")
    d.now = 5.0
    d.push("a", round_number=7)
    assert [d.machine.members.require(node).last_seen for node in "ab"] == [5.0, 0.0]


def test_out_of_memory_halves_the_batch() -> None:
    d = Driver()
    d.join("a")
    d.ask("a")
    d.send_back("a", "OutOfMemory")
    assert [o.batch_size for o in d.ask("a")] == [4]


def test_a_node_that_only_fails_is_not_asked_in_a_hot_loop() -> None:
    d = Driver()
    d.join("a")
    for _ in range(3):
        d.ask("a")
        d.send_back("a", "shutting_down")
        assert d.state() is RunState.WAITING
        assert d.ask("a") == []
        timer = d.of(ev.SetTimer)[-1].at
        assert timer > d.now
        d.now = timer
        d.send(ev.Tick())
        assert d.state() is RunState.TRAINING
    assert d.now >= 1 + 2 + 4


def test_asking_again_means_that_the_first_answer_was_lost() -> None:
    d = Driver()
    d.join("a")
    assert [o.attempt for o in d.ask("a")] == [1]
    assert [o.attempt for o in d.ask("a")] == [2]
    assert d.push("a", attempt=1).status is ev.UpdateStatus.ACCEPTED


def test_a_restarted_node_gets_its_work_again() -> None:
    d = Driver(min_nodes=2)
    d.join("a", "b")
    d.ask("a", "b")
    d.send(ev.NodeJoined("a", incarnation="2"))
    assert [(o.node, o.attempt) for o in d.ask("a")] == [("a", 2)]


def test_a_newcomer_takes_over_the_work_of_a_dead_node() -> None:
    d = Driver(min_nodes=2)
    d.join("a", "b")
    orders = {o.node: o for o in d.ask("a", "b")}
    d.now = 1
    d.send(ev.NodeLost("b"))
    d.join("c")
    (taken,) = d.ask("c")
    assert taken.shard == orders["b"].shard
    assert (taken.node, taken.attempt) == ("c", 1)
    d.join("b")
    assert d.ask("b") == []
    assert d.push("b", 1).status is ev.UpdateStatus.LATE
    d.push("a")
    d.push("c")
    assert d.of(ev.CloseRound)[0].reason is ev.CloseReason.ALL_CONTRIBUTED


def test_a_node_that_returns_in_time_keeps_its_work() -> None:
    d = Driver(min_nodes=2)
    d.join("a", "b")
    d.ask("a", "b")
    d.send(ev.NodeLost("b"))
    d.join("b")
    assert d.push("b").status is ev.UpdateStatus.ACCEPTED
    assert d.machine.round == 1, "still waits for a"
    d.push("a")
    assert d.machine.round == 2


def test_when_all_nodes_die_it_says_so_waits_and_goes_on_with_the_same_round() -> None:
    d = Driver(min_nodes=2)
    d.join("a", "b")
    d.ask("a", "b")
    d.send(ev.NodeLost("a"))
    effects = d.send(ev.NodeLost("b"))
    assert d.state() is RunState.WAITING
    assert [e.round for e in effects if isinstance(e, ev.AbandonRound)] == [1]
    assert "no_nodes" in kinds(effects)
    assert d.machine.waiting_for == "1 more node to join (0 connected)"
    d.join("c")
    assert d.ask("c")[0].round == 1


def measured(**training: Any) -> Driver:
    """Five nodes that needed one second each for the first round."""
    d = Driver(min_nodes=5, rounds=50, **training)
    d.join(*"abcde")
    d.ask(*"abcde")
    d.now = 1.0
    for node in "abcde":
        d.push(node)
    return d


def test_the_first_deadline_is_generous_until_a_quorum_shows_how_long_it_takes() -> None:
    d = Driver(min_nodes=5)
    d.join(*"abcde")
    d.ask(*"abcde")
    assert d.machine.deadline_at == 600.0
    d.now = 1.0
    d.push("a")
    d.push("b")
    assert d.machine.deadline_at == 600.0
    d.push("c")
    assert d.machine.deadline_at == pytest.approx(5 / 3), "the two others can add two thirds at most"
    assert d.reasons()[0] == "after_quorum"
    d.now = 1.2
    d.push("d")
    assert d.machine.deadline_at == pytest.approx(1.2 * 5 / 4)


@pytest.mark.parametrize(("partition", "seconds"), [("iid", 1.5), ("dirichlet", 3.0)], ids=["alike", "unlike"])
def test_a_newcomer_is_waited_for_as_long_as_it_can_be_worth(partition: str, seconds: float) -> None:
    d = Driver(min_nodes=5, rounds=50, partition=partition)
    d.join(*"abcde")
    d.ask(*"abcde")
    d.now = 1.0
    d.join("new")
    d.ask("new")
    for node in "abcde":
        d.push(node)
    d.ask(*"abcde")
    start, usual = 1.0, 1.5
    assert d.machine.deadline_at == start + 4 * usual
    d.now = start + 1.0
    for node in "abcd":
        d.push(node)
    assert d.machine.deadline_at == start + seconds, "measured nodes keep the time that they need"
    assert d.reasons()[0] == "after_quorum"
    d.push("e")
    assert d.machine.deadline_at == start + seconds


def test_a_first_round_does_not_close_with_updates_of_trials_alone() -> None:
    d = Driver(min_nodes=2, quorum=0.5, adaptation=Trying())
    d.join("a", "b")
    d.ask("a", "b")
    d.now = 1.0
    d.send(ev.UpdateArrived("a", 1, 1, 16, 1.0, 0.1, loss_before=1.0, loss_after=0.5))
    assert d.machine.deadline_at == 600.0


def test_data_that_only_the_missing_nodes_have_is_worth_more_time() -> None:
    d = Driver(min_nodes=5, partition="dirichlet")
    d.join(*"abcde")
    d.ask(*"abcde")
    d.now = 1.0
    for node in "abc":
        d.push(node)
    assert d.machine.deadline_at == 3.0


def test_without_adaptation_everybody_is_waited_for() -> None:
    class Plain(FixedAdaptation):
        def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
            return replace(super().plan_round(available, round_number), wait_for_all=True)

    d = measured(adaptation=Plain(8))
    assert d.machine.deadline_at == pytest.approx(1.0 + 600.0)
    d.ask(*"abcde")
    for node in "abcd":
        d.push(node)
    d.wait(60.0)
    assert d.machine.round == 2
    d.push("e")
    assert d.of(ev.CloseRound)[-1].reason is ev.CloseReason.ALL_CONTRIBUTED


def test_a_straggler_is_left_behind_at_the_measured_deadline_and_returns_to_later_rounds() -> None:
    d = measured()
    assert d.machine.deadline_at == pytest.approx(2.5)  # opened after 1 s, 1 s to go by, half as much of slack
    d.ask(*"abcde")
    d.now = 1.5
    for node in "abcd":
        d.push(node)
    d.wait(1.5)
    closed = d.of(ev.CloseRound)[-1]
    assert (closed.round, closed.reason) == (2, ev.CloseReason.QUORUM_AT_DEADLINE)
    assert d.machine.selected == tuple("abcd"), "e is still busy with round 2"
    assert d.push("e", 2).status is ev.UpdateStatus.LATE
    d.ask(*"abcd")
    for node in "abcd":
        d.push(node)
    assert d.machine.selected == tuple("abcde")


def test_what_a_process_lost_when_it_ended_is_no_measure_of_its_link() -> None:
    d = Driver(min_nodes=2, lost_after=60.0)
    d.join("a", "b")
    d.ask("a", "b")
    d.now = 5.0
    d.send(ev.NodeJoined("a", incarnation="2"))
    d.now = 8.0
    assert [order.attempt for order in d.ask("a")] == [2]
    d.now = 9.0
    d.push("a")
    d.push("b")
    closed = d.of(ev.CloseRound)[-1]
    waits = {each.node: each.waiting_seconds for each in closed.contributions}
    assert waits == pytest.approx({"a": 0.9, "b": 8.9}), "a retry of the same process is its link's"
    assert closed.restarts == (1, pytest.approx(18.0))
    assert d.machine.deadlines.need("a") == pytest.approx(1.5)


def test_who_is_gone_or_began_anew_measures_nothing_and_who_is_late_does() -> None:
    d = Driver(min_nodes=4, quorum=0.5)
    d.join("a", "b", "c", "d")
    d.ask("a", "b", "c", "d")
    d.now = 2.0
    d.send(ev.NodeJoined("b", incarnation="2"))
    d.send(ev.NodeLost("c", "silent"))
    d.push("a")
    d.now = d.machine.deadline_at or math.nan
    while not d.of(ev.CloseRound):
        d.send(ev.Tick())
        d.now = d.machine.deadline_at or math.nan
    closed = d.of(ev.CloseRound)[-1]
    assert {each.node: each.measured for each in closed.contributions} == {"a": True, "b": False, "c": False, "d": True}


def pass_deadline(d: Driver) -> None:
    d.now = d.machine.deadline_at or math.nan
    d.send(ev.Tick())


def test_a_round_that_nobody_answered_in_time_is_given_twice_the_time() -> None:
    d = measured()
    ended = []
    for _ in range(2):
        d.ask(*"abcde")
        current = d.machine.round_state.open_round
        assert current is not None
        for _ in range(MAX_EXTENSIONS + 1):
            pass_deadline(d)
        ended.append(d.now - current.started_at)
        assert d.of(ev.AbandonRound)[-1].why == "no update arrived before the deadline"
        d.ask(*"abcde")
        d.wait(4.0)
        assert d.state() is RunState.TRAINING
    assert ended == [6.0, 12.0], "four times the 1.5 s that the nodes need, and twice as long"
    assert d.push("a").status is ev.UpdateStatus.ACCEPTED
    assert d.machine.deadlines.deadline({"a": 1}).seconds < 6.0, "once somebody answers, all is as it was"


def test_before_the_first_update_of_a_run_a_round_may_take_hours() -> None:
    d = Driver()
    d.join("a")
    d.ask("a")
    deadlines = []
    while d.machine.deadline_at is not None:
        deadlines.append(d.machine.deadline_at)
        pass_deadline(d)
    assert deadlines == [600.0 * 2**n for n in range(8)] + [86_400.0]
    assert d.of(ev.AbandonRound)[-1].why == "no update arrived before the deadline"


def test_the_extensions_are_counted_from_the_first_update_on() -> None:
    d = Driver(min_nodes=5)
    d.join(*"abcde")
    d.ask(*"abcde")
    for _ in range(3):
        pass_deadline(d)
    assert d.machine.deadline_at == 4800.0
    d.now = 3600.0
    d.push("a")
    for deadline in (9600.0, 19_200.0):
        pass_deadline(d)
        assert d.machine.deadline_at == deadline
    pass_deadline(d)
    assert d.of(ev.CloseRound)[-1].reason is ev.CloseReason.BELOW_QUORUM


@pytest.mark.parametrize(("round_seconds", "waited"), [(0.01, 0.01), (3.0, 3.0), (3600.0, 10.0)])
def test_stragglers_get_as_long_as_a_round_takes_to_return_but_no_longer_than_a_lost_node(
    round_seconds: float, waited: float
) -> None:
    d = Driver(min_nodes=5, rounds=50, quorum=0.6, lost_after=10.0)
    d.join(*"abcde")
    d.ask(*"abcde")
    d.now = round_seconds
    for node in "abcde":
        d.machine.seen(node, d.now)
        d.push(node)
    d.machine.members.stragglers.update(c=True, d=True, e=True)
    state = d.machine.round_state
    state.opening.waited_for_stragglers = False
    decision = can_open(state, d.machine.config, d.machine.adaptation, d.now)
    assert isinstance(decision, Wait)
    assert decision.retry_at == pytest.approx(d.now + waited)


@pytest.mark.parametrize(("round_seconds", "delays"), [(0.01, [0.01, 0.02, 0.04]), (3600.0, [1.0, 2.0, 4.0])])
def test_a_round_is_retried_after_no_longer_than_a_round_takes(round_seconds: float, delays: list[float]) -> None:
    state = Driver().machine.round_state
    state.latest.round_seconds = round_seconds
    state.members.connected["a"] = Member("a")
    found = []
    for _ in delays:
        on_abandoned(state, ev.AbandonRound(1, "nobody answered"), 100.0, EffectBuffer(1))
        found.append(state.opening.retry_at - 100.0)
    assert found == pytest.approx(delays)


def test_a_round_that_waits_for_all_waits_for_many_times_what_the_slowest_needs() -> None:
    estimator = DeadlineEstimator()
    assert estimator.fixed({"a": 1, "b": 1}).seconds == 600.0
    estimator.observe("a", 10.0)
    assert estimator.fixed({"a": 1, "b": 1}).seconds == 600.0
    estimator.observe("b", 3600.0)
    assert estimator.fixed({"a": 1, "b": 1}).seconds == 4.0 * 1.5 * 3600.0
    assert estimator.fixed({"a": 1}).seconds == 600.0


def test_below_the_quorum_the_deadline_is_extended_and_then_what_came_is_taken() -> None:
    d = measured()
    d.ask(*"abcde")
    d.push("a")
    for _ in range(MAX_EXTENSIONS):
        d.now = d.machine.deadline_at or math.nan
        d.send(ev.Tick())
        assert d.reasons()[0] == "extended"
        assert d.machine.round == 2
    d.now = d.machine.deadline_at or math.nan
    d.send(ev.Tick())
    assert d.of(ev.CloseRound)[-1].reason is ev.CloseReason.BELOW_QUORUM
    assert "finish an earlier round" in d.machine.waiting_for
    d.ask("b", "c")
    assert d.state() is RunState.TRAINING, "a, b and c are a quorum again"


def test_the_silence_of_the_only_node_is_noticed_though_nothing_else_happens() -> None:
    d = Driver(lost_after=1.5)
    d.join("a")
    d.ask("a")
    for _ in range(5):
        d.now = max(d.now, d.of(ev.SetTimer)[-1].at)
        if "no_nodes" in kinds(d.send(ev.Tick())):
            break
    assert d.now == pytest.approx(1.5)
    assert not d.machine.members.connected


def test_silence_is_noticed_but_not_after_our_own_absence() -> None:
    d = Driver(lost_after=10, min_nodes=2)
    d.join("a", "b")
    for _ in range(4):
        d.now += 3
        d.machine.seen("a", d.now)
        d.send(ev.Tick())
    assert set(d.machine.members.connected) == {"a"}
    d.now += 500
    d.send(ev.Tick())
    assert set(d.machine.members.connected) == {"a"}, "it was we who slept"
    for _ in range(5):
        d.wait(3)
    assert not d.machine.members.connected


def test_pause_finishes_the_round_and_starts_no_other() -> None:
    d = Driver()
    d.join("a")
    d.ask("a")
    d.send(ev.Pause())
    assert d.state() is RunState.PAUSED
    assert d.push("a").status is ev.UpdateStatus.ACCEPTED
    assert d.machine.round == 2
    assert d.ask("a") == []
    assert d.machine.waiting_for == "resume: the run is paused"
    d.send(ev.Resume())
    assert d.state() is RunState.TRAINING
    assert d.of(ev.WorkAssigned)[-1].round == 2


def test_stop_ends_the_run_at_once() -> None:
    d = Driver()
    d.join("a")
    d.ask("a")
    effects = d.send(ev.Stop("enough"))
    assert d.state() is RunState.STOPPED
    assert [e.round for e in effects if isinstance(e, ev.AbandonRound)] == [1]
    assert ev.Finish(ev.FinishReason.STOPPED, "enough") in effects


def test_a_target_ends_the_run() -> None:
    d = Driver(rounds=50, target_accuracy=0.9)
    d.join("a")
    d.ask("a")
    d.push("a")
    assert d.of(ev.Finish)[0].reason is ev.FinishReason.TARGET_REACHED


MSE = MetricSpec(name="mse", better="lower")
R2 = MetricSpec(name="r2")


@pytest.mark.parametrize(
    ("metric", "found", "target", "reached"),
    [
        (ACCURACY, (0.5, 0.9), 0.9, True),
        (ACCURACY, (0.5, 0.9), 0.91, False),
        (R2, (0.5, -0.2), -0.2, True),
        (R2, (0.5, -0.2), -0.1, False),
        (MSE, (0.5, 0.3), 0.3, True),
        (MSE, (0.5, 0.3), 0.2, False),
        (LOSS, (0.5, None), 0.5, True),
        (LOSS, (0.5, None), 0.4, False),
        (R2, (0.5, None), -1e9, False),
        (MSE, (0.5, None), 1e9, False),
    ],
)
def test_a_target_of_any_sign_and_direction_ends_the_run(
    metric: MetricSpec, found: tuple[float, float | None], target: float, reached: bool
) -> None:
    d = Driver(rounds=50, target_accuracy=target, metric=metric, found=found)
    d.join("a")
    d.ask("a")
    d.push("a")
    assert [f.reason for f in d.of(ev.Finish)] == ([ev.FinishReason.TARGET_REACHED] if reached else [])


def test_the_last_evaluation_is_known_and_an_undefined_metric_is_not() -> None:
    d = Driver(rounds=50, metric=R2, found=(0.5, -0.25), evaluate_every=2)
    assert (d.machine.loss, d.machine.metric_value, d.machine.last_round_seconds) == (None, None, None)
    d.join("a")
    d.ask("a")
    d.push("a")
    assert (d.machine.loss, d.machine.metric_value) == (0.5, -0.25)
    closed = [e for e in d.of(ev.RunEvent) if e.kind == "round_closed"][-1]
    assert "loss 0.5000, r2 -0.25" in closed.text
    assert (closed.fields["r2"], closed.fields["loss"], "accuracy" in closed.fields) == (-0.25, 0.5, False)
    d.found = (0.4, None)
    d.ask("a")
    d.push("a")
    assert (d.machine.loss, d.machine.metric_value) == (0.4, None)
    assert "r2 –" in [e for e in d.of(ev.RunEvent) if e.kind == "round_closed"][-1].text


def test_a_task_that_is_judged_by_its_loss_names_it_once() -> None:
    d = Driver(rounds=50, metric=LOSS, found=(0.5, None))
    d.join("a")
    d.ask("a")
    d.push("a")
    closed = [e for e in d.of(ev.RunEvent) if e.kind == "round_closed"][-1]
    assert closed.text.count("loss 0.5") == 1
    assert (d.machine.metric_value, closed.fields["loss"]) == (0.5, 0.5)


def test_a_node_that_leaves_a_run_that_is_over_completed_it() -> None:
    d = Driver(rounds=1)
    d.join("a", "b")
    d.send(ev.NodeLeft("b"))
    d.ask("a")
    d.push("a")
    d.send(ev.NodeLeft("a"))
    assert [(m.node_id, m.completed) for m in d.machine.members] == [("a", True), ("b", False)]


def test_rules() -> None:
    d = Driver(min_nodes=2)
    with pytest.raises(NotFound, match="nobody"):
        d.send(ev.OverrideSet("nobody", NodeOverride.EXCLUDE))
    d.join("a", "b")
    d.send(ev.OverrideSet("b", NodeOverride.EXCLUDE))
    d.ask("a", "b")
    d.push("a")
    d.push("b")
    assert d.machine.selected == ("a",)


def test_no_more_nodes_than_allowed() -> None:
    d = Driver(max_nodes=2)
    d.join("a", "b")
    with pytest.raises(ResourceExhausted, match=r"server\.max_nodes"):
        d.join("c")
    d.send(ev.NodeLeft("a"))
    d.join("c")


def test_evaluation_where_it_is_due_and_always_at_the_end() -> None:
    d = Driver(rounds=5, evaluate_every=2)
    d.join("a")
    for _ in range(5):
        d.ask("a")
        d.push("a")
    assert [c.evaluate for c in d.of(ev.CloseRound)] == [False, True, False, True, True]


class Choosy(FixedAdaptation):
    """An adaptation that misbehaves in every way that it can."""

    def __init__(self) -> None:
        super().__init__(batch_size=8)
        self.selected: list[str] = []
        self.seen: list[Any] = []

    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        self.seen.append((tuple(available), round_number))
        return RoundPlan(self.selected, {"a": 0})

    def finish_round(self, report: RoundReport) -> RoundJudgement:
        self.seen.append((report.round, report.samples, [c.node for c in report.contributions]))
        return RoundJudgement()


def test_the_adaptation_is_bounded_and_told_what_came_of_it() -> None:
    choosy = Choosy()
    machine = RoundMachine(TrainingConfig(rounds=2, local_steps=2, batch_size=8), choosy)
    machine.handle(ev.NodeJoined("a"), 0)
    machine.handle(ev.WorkRequested("a"), 0)
    assert machine.waiting_for == "a selection: the selector chose no node out of 1"
    choosy.selected = ["ghost", "a", "a"]
    (assign,) = [e for e in machine.handle(ev.Tick(), 1.0) if isinstance(e, ev.WorkAssigned)]
    assert machine.selected == ("a",)
    assert assign.batch_size == 1
    machine.handle(ev.UpdateArrived("a", 1, 1, 2, 1.0, 0.1), 2.0)
    machine.handle(ev.Evaluated(1, 0.5, 0.5), 2.0)
    assert choosy.seen[-2] == (1, 2, ["a"])


NODES = st.sampled_from("abcd")
RETURNS = st.sampled_from(["OutOfMemory", "shutting_down", "x"])
STEPS = st.lists(
    st.one_of(
        st.builds(ev.NodeJoined, NODES, st.sampled_from(["1", "2"])),
        st.builds(ev.NodeLeft, NODES),
        st.builds(ev.NodeLost, NODES),
        NODES,
        st.builds(ev.WorkRequested, NODES),
        st.builds(ev.RequestEnded, NODES),
        st.builds(
            ev.UpdateArrived, NODES, st.integers(0, 4), st.just(1), st.integers(0, 99), st.just(1.0), st.just(0.1)
        ),
        st.builds(
            ev.WorkReturned,
            NODES,
            st.integers(0, 4),
            st.integers(0, 4),
            st.sampled_from(["OutOfMemory", "shutting_down", "x"]),
        ),
        st.just(ev.Pause()),
        st.just(ev.Resume()),
        st.builds(ev.OverrideSet, st.just("a"), st.sampled_from(list(NodeOverride))),
        st.floats(0, 1000).map(lambda s: s),
    ),
    max_size=80,
)


@examples(300)
@given(STEPS)
def test_whatever_happens_the_promises_hold(steps: list[ev.Event | float | str]) -> None:
    d = Driver(rounds=4, lost_after=100)
    d.join("a")
    for step in steps:
        if isinstance(step, str):
            d.machine.seen(step, d.now)
        elif isinstance(step, float):
            d.wait(step)
        else:
            d.send(step)
    accepted = [(v.round, v.node) for v in d.of(ev.UpdateReply) if v.status is ev.UpdateStatus.ACCEPTED]
    assert len(accepted) == len(set(accepted)), "applied twice"
    assigned = [(a.round, a.node) for a in d.of(ev.WorkAssigned)]
    assert set(accepted) <= set(assigned)
    closed = [c.round for c in d.of(ev.CloseRound)]
    assert closed == list(range(1, len(closed) + 1))
    for c in d.of(ev.CloseRound):
        assert [(c.round, x.node) for x in c.contributions if x.success] == [a for a in accepted if a[0] == c.round]
        assert any(x.success for x in c.contributions)
    assert len(d.of(ev.Finish)) == d.machine.finished
    if d.state() is RunState.WAITING:
        assert d.machine.waiting_for
    # It is never stuck: with time and one willing node the run comes to its end.
    d.send(ev.Resume(), ev.OverrideSet("a", NodeOverride.AUTOMATIC))
    for _ in range(200):
        if d.machine.finished:
            break
        d.join("a")
        d.wait(30)
        d.machine.seen("a", d.now)
        d.send(ev.WorkRequested("a"))
        d.send(ev.UpdateArrived("a", d.machine.round, 1, 16, 1.0, 0.1))
    assert d.state() is RunState.COMPLETED


@pytest.mark.unvalidated
def test_ten_thousand_nodes_take_no_more_per_event_than_a_hundred() -> None:
    """Counted in calls, not seconds: handlers touch no collection of all nodes between the ends of a round."""
    import cProfile

    def calls_per_event(count: int) -> float:
        d = Driver(min_nodes=count, max_nodes=count, rounds=3, lost_after=100)
        nodes = [f"n{i}" for i in range(count)]
        d.join(*nodes)
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(2):
            for n in nodes:
                d.machine.handle(ev.WorkRequested(n), d.now)
                d.machine.seen(n, d.now)
            number = d.machine.round
            for n in nodes:
                d.machine.handle(ev.UpdateArrived(n, number, 1, 16, 1.0, 0.1), d.now)
            d.send(ev.Evaluated(number, 0.5, 0.5))
        profile.disable()
        return sum(entry.callcount for entry in profile.getstats()) / (6 * count)

    assert calls_per_event(2000) < 1.3 * calls_per_event(100)


class NobodyIsGoodEnough(FixedAdaptation):
    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        return replace(super().plan_round(available, round_number), selected=())


def test_a_round_may_fail_to_begin_for_days() -> None:
    d = Driver(adaptation=NobodyIsGoodEnough(8))
    d.join("a")
    d.ask("a")
    for _ in range(2_000):
        d.wait(60.0)
    assert d.machine.waiting_for == "a selection: the selector chose no node out of 1"
    assert [e.at for e in d.of(ev.SetTimer)][-1] == d.now + 60.0


def diverging(d: Driver, losses: Sequence[float | None]) -> None:
    """Close a round for each of these losses on held-out data."""
    for loss in losses:
        d.ask("a")
        number = d.machine.round
        d.push("a")
        d.send(ev.Evaluated(number, loss, None if loss is None else 0.5))


def test_a_model_that_does_not_evaluate_is_left_for_the_last_that_did_and_the_run_goes_on() -> None:
    d = Driver(evaluate=False, rounds=50)
    d.join("a")
    diverging(d, [0.7, math.nan])
    assert d.of(ev.KeepModel) == [ev.KeepModel(1)]
    assert d.of(ev.RevertModel) == [ev.RevertModel(2)]
    assert (d.machine.round, d.machine.loss, d.machine.metric_value) == (3, 0.7, 0.5), "the last good figures stand"
    (told,) = [e for e in d.of(ev.RunEvent) if e.kind == "model_reverted"]
    assert told.text == "loss is nan after round 2; reverting to the parameters after round 1"
    closed = [e for e in d.of(ev.RunEvent) if e.kind == "round_closed"]
    assert [e.fields["loss"] for e in closed] == [0.7, None], "no record holds a figure that is none"
    diverging(d, [math.inf, 0.6, math.nan, math.nan])
    assert not d.machine.finished, "two in a row are no divergence, and a good one starts the count anew"
    diverging(d, [-math.inf])
    assert d.of(ev.Finish)[0].reason is ev.FinishReason.DIVERGED
    assert "in 3 evaluations in a row" in d.of(ev.Finish)[0].detail
    assert d.log.index(ev.RevertModel(7)) < d.log.index(d.of(ev.Finish)[0]), "what is saved at the end is the kept one"


def test_a_run_that_never_evaluates_returns_to_its_initial_parameters() -> None:
    d = Driver(evaluate=False, rounds=50)
    d.join("a")
    diverging(d, [math.nan])
    (told,) = [e.text for e in d.of(ev.RunEvent) if e.kind == "model_reverted"]
    assert "reverting to the initial parameters" in told


def test_a_round_without_an_evaluation_keeps_and_reverts_nothing() -> None:
    d = Driver(evaluate=False, rounds=50, evaluate_every=10)
    d.join("a")
    diverging(d, [None, None])
    assert d.of(ev.KeepModel) == d.of(ev.RevertModel) == []


def norms(d: Driver, node: str, norm: float | None) -> ev.UpdateStatus:
    number = d.machine.round
    effects = d.send(ev.UpdateArrived(node, number, 1, 16, loss=1.0, compute_seconds=0.1, norm=norm))
    return next(e for e in effects if isinstance(e, ev.UpdateReply)).status


def test_an_update_far_above_the_median_norm_is_refused_and_the_node_named() -> None:
    d = Driver(min_nodes=3, rounds=50)
    d.join("a", "b", "c")
    for _ in range(2):
        d.ask("a", "b", "c")
        assert [norms(d, node, 1.0) for node in ("a", "b", "c")] == [ev.UpdateStatus.ACCEPTED] * 3
    d.ask("a", "b", "c")
    assert norms(d, "b", 1e30) is ev.UpdateStatus.REFUSED
    assert norms(d, "a", 20.0) is ev.UpdateStatus.ACCEPTED, "at the bound"
    assert norms(d, "c", 1.0) is ev.UpdateStatus.ACCEPTED
    (closed,) = d.of(ev.CloseRound)[2:]
    assert (closed.reason, closed.samples) == (ev.CloseReason.SURVIVORS_CONTRIBUTED, 32)
    assert [(c.node, c.success, c.late) for c in closed.contributions if not c.success] == [("b", False, False)]
    decision = next(each for each in d.machine.decisions if each.kind is DecisionKind.UPDATE)
    assert str(decision.reason) == "norm_too_large"
    assert (decision.subject, decision.figures) == ("b", {"norm": 1e30, "bound": 20.0, "median": 1.0})
    (told,) = [e for e in d.of(ev.RunEvent) if e.kind == "update_refused"]
    assert "refused the update of b: norm 1e+30 exceeds 20, 20 times the median" in told.text
    verdict = next(e for e in d.of(ev.UpdateReply) if e.status is ev.UpdateStatus.REFUSED)
    assert (verdict.weight, verdict.detail) == (0, told.text)


def test_a_replay_of_a_refused_update_is_refused_and_counts_once() -> None:
    d = Driver(min_nodes=2, rounds=50)
    d.join("a", "b")
    for _ in range(2):
        d.ask("a", "b")
        norms(d, "a", 1.0)
        norms(d, "b", 1.0)
    d.ask("a", "b")
    assert [norms(d, "b", 1e30) for _ in range(2)] == [ev.UpdateStatus.REFUSED] * 2
    assert norms(d, "a", 1.0) is ev.UpdateStatus.ACCEPTED
    assert len(d.of(ev.CloseRound)) == 3


def test_every_node_that_gives_up_for_the_same_error_three_rounds_in_a_row_ends_the_run_with_it() -> None:
    d = Driver(min_nodes=2, rounds=50)
    d.join("a", "b")
    for number in range(3):
        assert not d.machine.finished
        d.ask("a", "b")
        for node in ("a", "b"):
            for _ in range(3):
                d.send_back(node, "InvalidInput", f"BatchNorm takes no single sample, says {node}")
                d.ask(node)
        d.wait(2.0 ** (number + 1))
    (finish,) = d.of(ev.Finish)
    assert finish.reason is ev.FinishReason.FAILED
    assert finish.detail == (
        "every node failed with the same error in round 1, 3 times in a row: "
        "InvalidInput: BatchNorm takes no single sample, says b"
    )
    assert d.state() is RunState.STOPPED


@pytest.mark.parametrize("reasons", [("Unavailable", "Unavailable"), ("InvalidInput", "NonFiniteUpdate")])
def test_errors_that_may_pass_or_differ_do_not_end_the_run(reasons: tuple[str, str]) -> None:
    d = Driver(min_nodes=2, rounds=50)
    d.join("a", "b")
    for number in range(5):
        d.ask("a", "b")
        for node, reason in zip(("a", "b"), reasons, strict=True):
            for _ in range(3):
                d.send_back(node, reason)
                d.ask(node)
        d.wait(2.0 ** (number + 1))
    assert len(d.of(ev.AbandonRound)) >= 4
    assert d.of(ev.Finish) == []


def test_a_stop_while_a_round_is_evaluated_finishes_that_round_first() -> None:
    d = Driver(evaluate=False, rounds=50)
    d.join("a")
    d.ask("a")
    d.push("a")
    d.send(ev.Stop("enough"), ev.Stop("again"))
    assert (d.state(), d.of(ev.Finish)) == (RunState.EVALUATING, [])
    d.ask("a")
    d.send(ev.Evaluated(1, 0.5, 0.9))
    (finish,) = d.of(ev.Finish)
    assert (finish.reason, finish.detail) == (ev.FinishReason.STOPPED, "enough")
    assert d.machine.round == 2, "one round is whole"
    assert len(d.of(ev.StartRound)) == 1


def test_a_stop_of_the_last_round_is_its_regular_end() -> None:
    d = Driver(evaluate=False, rounds=1)
    d.join("a")
    d.ask("a")
    d.push("a")
    d.send(ev.Stop("enough"), ev.Evaluated(1, 0.5, 0.9))
    assert [finish.reason for finish in d.of(ev.Finish)] == [ev.FinishReason.ROUNDS_DONE]


@pytest.mark.parametrize(("stepped", "number"), [(True, 2), (False, 1)])
def test_an_evaluation_that_fails_ends_the_run_and_counts_the_step_that_was_taken(stepped: bool, number: int) -> None:
    d = Driver(evaluate=False, rounds=50)
    d.join("a")
    d.ask("a")
    d.push("a")
    d.send(ev.Stop("enough"), ev.EvaluationFailed(7, "of another round", stepped=True))
    assert d.of(ev.Finish) == []
    d.send(ev.EvaluationFailed(1, "ValueError: x", stepped))
    (finish,) = d.of(ev.Finish)
    assert (finish.reason, finish.detail) == (ev.FinishReason.FAILED, "ValueError: x")
    assert d.machine.round == number


def test_a_suspended_run_finishes_what_runs_and_begins_nothing() -> None:
    d = Driver(rounds=50)
    d.join("a")
    d.ask("a")
    d.send(ev.Suspend(), ev.Suspend())
    d.push("a")
    d.ask("a")
    d.wait(5.0)
    assert d.machine.round == 2
    assert len(d.of(ev.StartRound)) == 1
    assert kinds(d.log).count("suspended") == 1
    assert not d.machine.finished


def test_a_failure_of_the_coordinator_ends_the_run_at_once_and_only_once() -> None:
    d = Driver(evaluate=False, rounds=50)
    d.join("a")
    d.ask("a")
    d.push("a")
    d.send(ev.Fail("the disk is on fire"), ev.Stop("too late"), ev.Fail("again"))
    assert [(f.reason, f.detail) for f in d.of(ev.Finish)] == [(ev.FinishReason.FAILED, "the disk is on fire")]


# ---------------------------------------------------------------- suspects

TRUTH = np.random.default_rng(1).standard_normal(WIDTH).astype(np.float32)


def sketch_of(node: str, number: int, factor: float) -> Sketch:
    noise = np.random.default_rng([number, len(node), ord(node[-1])]).standard_normal(WIDTH)
    return (factor * (TRUTH + 0.5 * noise)).astype(np.float32)


def push_sketch(d: Driver, node: str, factor: float = 1.0) -> list[ev.Effect]:
    number = d.machine.round
    sketch = sketch_of(node, number, factor)
    return d.send(ev.UpdateArrived(node, number, 1, 16, loss=1.0, compute_seconds=0.1, sketch=sketch))


def accepted_weights(effects: list[ev.Effect]) -> list[int]:
    return [effect.weight for effect in effects if isinstance(effect, ev.UpdateReply)]


def test_a_node_that_sends_the_opposite_is_suspected_named_and_gets_no_work() -> None:
    d, honest = Driver(rounds=40), ["a", "b", "c", "d"]
    d.join(*honest, "hostile")
    assigned = {order.node for order in d.ask(*honest, "hostile")}
    while d.machine.round <= 6:
        for node in sorted(assigned):
            push_sketch(d, node, -1.0 if node == "hostile" else 1.0)
        assigned = {order.node for order in d.ask(*honest, "hostile")}
    assert assigned == set(honest)
    (decision,) = [each for each in d.machine.decisions if each.kind is DecisionKind.QUARANTINE]
    assert (decision.subject, decision.reason) == ("hostile", "against_the_others")
    assert decision.figures["state"] == "quarantined"
    texts = [each.text for each in d.log if isinstance(each, ev.RunEvent) and each.kind == "node_suspected"]
    assert len(texts) == 1
    assert texts[0].startswith("hostile is suspected: against_the_others (cosine -0.")
    d.send(ev.OverrideSet("hostile", NodeOverride.INCLUDE))
    for node in honest:
        push_sketch(d, node)
    assert {order.node for order in d.ask(*honest, "hostile")} == {*honest, "hostile"}


def test_updates_of_a_suspect_on_probation_are_measured_and_do_not_count() -> None:
    d, honest = Driver(rounds=100), ["a", "b", "c"]
    d.join(*honest, "hostile")
    weights: dict[int, list[int]] = {}
    while d.machine.round < 40:
        number = d.machine.round
        for order in d.ask(*honest, "hostile"):
            factor = -1.0 if order.node == "hostile" and number < 10 else 1.0
            found = accepted_weights(push_sketch(d, order.node, factor))
            if order.node == "hostile":
                weights[number] = found
    reasons = [each.reason for each in reversed(d.machine.decisions) if each.kind is DecisionKind.QUARANTINE]
    assert reasons == ["against_the_others", "on_probation", "cleared"]
    after = sorted(number for number in weights if number > 10)
    assert [weights[number] for number in after[: PROBATION_ROUNDS + 1]] == [[0]] * PROBATION_ROUNDS + [[16]]


def test_a_round_that_a_huge_update_spoils_names_who_sent_it() -> None:
    d = Driver(evaluate=False, min_nodes=4)
    d.join("a", "b", "c", "hostile")
    d.ask("a", "b", "c", "hostile")
    for node in ("a", "b", "c"):
        push_sketch(d, node)
    (closed,) = [effect for effect in push_sketch(d, "hostile", 1e6) if isinstance(effect, ev.CloseRound)]
    assert closed.spoiled_by == ("hostile",)


def test_what_a_node_says_of_its_loss_and_its_time_is_bounded_by_what_others_say_and_by_the_clock() -> None:
    d = Driver(evaluate=False, min_nodes=4)
    d.join("a", "b", "c", "liar")
    d.ask("a", "b", "c", "liar")
    d.now += 2.0
    for node in ("a", "b", "c"):
        d.send(ev.UpdateArrived(node, 1, 1, 16, loss=1.0, compute_seconds=0.5))
    effects = d.send(ev.UpdateArrived("liar", 1, 1, 16, loss=1e19, compute_seconds=1e9))
    (closed,) = [effect for effect in effects if isinstance(effect, ev.CloseRound)]
    assert closed.loss == pytest.approx((3 * 1.0 + 10.0) / 4)
    seconds = {each.node: (each.compute_seconds, each.waiting_seconds) for each in closed.contributions}
    assert seconds == {"a": (0.5, 1.5), "b": (0.5, 1.5), "c": (0.5, 1.5), "liar": (2.0, 0.0)}


def test_a_node_that_returns_work_which_it_never_had_changes_nothing() -> None:
    d = Driver(min_nodes=2)
    d.join("a", "b")
    d.ask("a", "b")
    d.join("c")
    for reason in ("NonFiniteUpdate", "OutOfMemory", "leaving"):
        assert d.send(ev.WorkReturned("c", 1, 1, reason)) == []
    assert d.push("a").status is d.push("b").status is ev.UpdateStatus.ACCEPTED
