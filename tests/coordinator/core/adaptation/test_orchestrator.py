"""The orchestrator, round by round, on clusters whose links do as they are told."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.adaptation import AdaptationPolicy, AdaptiveOrchestrator, Phase, build_orchestrator
from hypergpu.coordinator.core.adaptation.optimizer_search import OptimizerReason
from hypergpu.coordinator.core.adaptation.progress import RollbackReason
from hypergpu.coordinator.core.adaptation.rate_search import RateReason
from hypergpu.coordinator.core.decisions import Decision, DecisionKind
from hypergpu.coordinator.core.rounds.adaptation import Activity, LateWork, ModelAction, RoundJudgement
from hypergpu.coordinator.core.rounds.events import Contribution
from hypergpu.coordinator.core.selection import SelectionReason

NODES = [f"node_{i}" for i in range(10)]


class Run:
    """A run in virtual time: `communication(node, round)` is what the node's communication takes."""

    def __init__(self, communication: Callable[[str, int], float], policy: str = "reactive", **settings: Any) -> None:
        self.clock = ManualClock()
        tree = {"orchestrator": {"policy": policy, **settings.pop("orchestrator", {})}, **settings}
        self.adaptation: AdaptiveOrchestrator = build_orchestrator(SystemConfig.model_validate(tree), clock=self.clock)
        self.communication, self.round_num, self.loss = communication, 0, 2.0
        self.plans: list[Any] = []
        self.decisions: list[Decision] = []
        self.judgements: list[RoundJudgement] = []

    def rounds(self, count: int, *, nodes: list[str] = NODES, learn: float = 0.95, slower: float = 1.0) -> "Run":
        for _ in range(count):
            self.round_num += 1
            plan = self.adaptation.pre_round_adaptation(nodes, self.round_num)
            self.plans.append(plan)
            self.decisions += plan["decisions"]
            contributions = []
            for node in plan["selected_nodes"]:
                size, steps = plan["batch_sizes"][node], plan["local_steps"]
                wait = self.communication(node, self.round_num)
                self.adaptation.monitor.record_communication(node, 500.0 * wait, True)
                self.adaptation.monitor.record_communication(node, 500.0 * wait, True)
                contributions.append(Contribution(node, True, size * steps, size, 1e-5 * size * steps, wait, self.loss))
            seconds = slower * max((c.compute_seconds + c.waiting_seconds for c in contributions), default=0.0)
            self.clock.advance(seconds)
            self.loss *= learn
            metrics = {
                "loss": self.loss,
                "accuracy": 0.5,
                "round_time": seconds,
                "samples": sum(c.samples for c in contributions),
                "contributions": contributions,
            }
            found = self.adaptation.post_round_evaluation(self.round_num, metrics)
            self.decisions += found["decisions"]
            self.judgements.append(RoundJudgement(found["decisions"], ModelAction(found["model"])))
        return self

    def of(self, kind: DecisionKind) -> list[Decision]:
        return [decision for decision in self.decisions if decision.kind is kind]


SGD = {"local_optimizer": "sgd"}


def uniform(node: str, round_num: int) -> float:
    return 0.05 + 0.001 * ((hash_of(node) + 7 * round_num) % 10)


def flaky(node: str, round_num: int) -> float:
    return 0.9 if node in NODES[8:] else uniform(node, round_num)


def hash_of(node: str) -> int:
    return int(node.removeprefix("node_")) * 3


def test_warm_up_measures_and_changes_nothing() -> None:
    run = Run(flaky, orchestrator={"warmup_rounds": 2}, training=SGD).rounds(2)
    for plan in run.plans:
        assert plan["phase"] == Phase.WARM_UP
        assert plan["selected_nodes"] == NODES
        assert set(plan["batch_sizes"].values()) == {64}
        assert plan["local_steps"] == 10
        assert plan["learning_rate"] == pytest.approx(0.1)


def test_a_run_begins_with_adamw_and_says_why() -> None:
    run = Run(uniform).rounds(2)
    assert [(plan["local_optimizer"], plan["learning_rate"]) for plan in run.plans] == [("adamw", 0.003)] * 2
    (begun,) = run.of(DecisionKind.OPTIMIZER)
    assert begun.reason is OptimizerReason.FAIR_START
    assert begun.figures == {"from": "sgd", "to": "adamw", "learning_rate": 0.003, "nodes": len(NODES)}
    fixed = Run(uniform, "none").rounds(1)
    assert (fixed.plans[0]["local_optimizer"], fixed.plans[0]["learning_rate"]) == ("sgd", 0.1)


def test_flaky_links_are_left_out_with_the_true_reason_and_figures() -> None:
    run = Run(flaky).rounds(4)
    assert run.plans[2]["selected_nodes"] == NODES[:8]
    why = {d.subject: d for d in run.of(DecisionKind.SELECTION) if d.reason is SelectionReason.COSTS_MORE_THAN_IT_ADDS}
    assert set(why) == set(NODES[8:])
    assert why["node_8"].figures["adds_seconds"] == pytest.approx(0.84, abs=0.02)


def test_a_uniform_cluster_stays_whole() -> None:
    run = Run(uniform).rounds(20)
    assert all(plan["selected_nodes"] == NODES for plan in run.plans)


def test_a_link_that_degrades_is_dropped_after_one_round() -> None:
    run = Run(lambda node, at: 0.8 if node == "node_3" and at >= 8 else uniform(node, at)).rounds(12)
    assert "node_3" in run.plans[7]["selected_nodes"]
    assert all("node_3" not in plan["selected_nodes"] for plan in run.plans[8:])


def test_proactive_drops_a_worsening_link_before_reactive_does() -> None:
    def worsening(node: str, round_num: int) -> float:
        return 0.05 + 0.004 * max(0, round_num - 4) if node == "node_3" else 0.05

    def dropped(policy: str) -> int:
        plans = Run(worsening, policy, batch={"strategy": "fixed"}).rounds(60).plans
        return next(at for at, plan in enumerate(plans) if "node_3" not in plan["selected_nodes"])

    assert dropped("proactive") < dropped("reactive") < dropped("conservative")


@pytest.mark.parametrize("selector", ["adaptive_threshold", "utility"])
def test_proactive_acts_before_a_worsening_link_leaves_its_class(selector: str) -> None:
    def worsening(node: str, round_num: int) -> float:
        return 0.04 * 1.12 ** max(0, round_num - 6) if node == "node_3" else 0.04

    def dropped(policy: str) -> tuple[int, str]:
        """The round from which on the node is left out, and the class of its link then."""
        run = Run(worsening, policy, batch={"strategy": "fixed"}, selector={"strategy": selector})
        for at in range(60):
            run.rounds(1)
            if "node_3" not in run.plans[-1]["selected_nodes"]:
                return at, str(run.adaptation.monitor.get_node_quality("node_3"))
        raise AssertionError("never dropped")

    proactive, reactive = dropped("proactive"), dropped("reactive")
    assert proactive[0] < reactive[0]
    if selector == "utility":
        assert proactive[1] == "good"  # as it always was


def test_late_is_no_failure() -> None:
    run = Run(uniform).rounds(3)
    for _ in range(5):
        run.adaptation.record_results([Contribution("node_1", False, waiting_seconds=1.0, late=True)])
        run.adaptation.record_results([Contribution("node_2", False, waiting_seconds=1.0)])
    assert run.adaptation.selector.get_node_state("node_1") == "active"
    assert run.adaptation.selector.get_node_state("node_2") == "quarantined"


def test_policies_differ_in_how_far_they_go() -> None:
    def steps_after(policy: str, rounds: int) -> int:
        return int(Run(lambda node, at: 0.5, policy).rounds(rounds).plans[-1]["local_steps"])

    assert steps_after("aggressive", 2) == 80
    assert 20 < steps_after("reactive", 2) <= 40
    assert 10 <= steps_after("conservative", 2) <= 15
    assert steps_after("none", 10) == 10


def test_none_is_the_fixed_baseline() -> None:
    run = Run(flaky, "none").rounds(8)
    assert all(plan["selected_nodes"] == NODES for plan in run.plans)
    assert {size for plan in run.plans for size in plan["batch_sizes"].values()} == {64}
    assert {plan["learning_rate"] for plan in run.plans} == {0.1}


def test_each_part_can_be_switched_off_alone() -> None:
    kept = Run(flaky, selector={"strategy": "all_available"}).rounds(6)
    assert all(plan["selected_nodes"] == NODES for plan in kept.plans)
    assert kept.plans[-1]["local_steps"] > 10
    fixed = Run(flaky, batch={"strategy": "fixed"}).rounds(6)
    assert fixed.plans[-1]["selected_nodes"] == NODES[:8]
    assert set(fixed.plans[-1]["batch_sizes"].values()) == {64}
    assert fixed.plans[-1]["local_steps"] == 10


def test_a_loss_that_rises_returns_to_the_best_model_with_less_of_what_led_there() -> None:
    run = Run(uniform, training=SGD).rounds(6)
    assert run.adaptation.get_orchestrator_status()["rollbacks"] == 0
    best, steps = run.loss, run.plans[-1]["local_steps"]
    run.rounds(1, learn=2.5)
    rollback = run.of(DecisionKind.ROLLBACK)
    assert [each.reason for each in rollback] == [RollbackReason.LOSS_ROSE], "in the round in which it rose"
    assert rollback[0].figures["best_loss"] == pytest.approx(best)
    assert rollback[0].figures["loss"] == pytest.approx(2.5 * best)
    assert run.judgements[-1].model is ModelAction.REVERT
    run.loss = best
    run.rounds(1)
    assert run.plans[-1]["learning_rate"] == pytest.approx(0.05), "half of what diverged"
    assert run.plans[-1]["local_steps"] == steps


def test_only_the_best_model_is_kept_to_return_to() -> None:
    run = Run(uniform).rounds(3).rounds(1, learn=1.1).rounds(2)
    actions = [each.model for each in run.judgements]
    assert actions == [ModelAction.KEEP] * 3 + [ModelAction.LEAVE] * 1 + [ModelAction.LEAVE, ModelAction.KEEP]
    fixed = Run(uniform, "none").rounds(3).rounds(1, learn=5.0)
    assert {each.model for each in fixed.judgements} == {ModelAction.KEEP}, "the baseline judges nothing"


def test_updates_that_are_not_finite_on_every_node_lower_the_rate() -> None:
    run = Run(uniform, training=SGD).rounds(2)
    judgement = run.adaptation.abandon_round(3, "NonFiniteUpdate")
    assert judgement.model is ModelAction.REVERT
    reasons = [(each.kind, str(each.reason)) for each in judgement.decisions]
    assert (DecisionKind.ROLLBACK, "updates_not_finite") in reasons
    assert run.adaptation.batches.learning_rate_factor == 0.5
    for fault in ("", "OutOfMemory"):
        assert run.adaptation.abandon_round(3, fault).model is ModelAction.LEAVE
    assert Run(uniform, "none").rounds(1).adaptation.abandon_round(2, "NonFiniteUpdate").model is ModelAction.LEAVE


def test_momentum_is_added_where_the_user_chose_none_and_halves_with_each_rollback() -> None:
    def momentum(policy: str = "reactive", **training: Any) -> float | None:
        adaptation = Run(uniform, policy, training=training).rounds(1).adaptation
        return adaptation.plan_round(NODES, 2).server_momentum

    assert momentum() == 0.4, "AdamW has momentum of its own"
    assert momentum(local_optimizer="sgd") == 0.8
    assert momentum("none") is None
    assert momentum(server_momentum=0.5) is None
    assert momentum(server_optimizer="adam") is None
    assert momentum(local_steps=1) is None
    run = Run(uniform, training=SGD).rounds(2).rounds(1, learn=9.0)
    assert run.adaptation.plan_round(NODES, 4).server_momentum == 0.4


def test_where_no_better_model_comes_training_goes_on_from_the_best_one_at_half_the_rate() -> None:
    run = Run(uniform).rounds(3).rounds(1, learn=1.05).rounds(3, learn=1.0)
    assert {each.model for each in run.judgements[3:]} == {ModelAction.LEAVE}
    run.rounds(1, learn=1.0)
    assert run.judgements[-1].model is ModelAction.REVERT
    (change,) = run.of(DecisionKind.LEARNING_RATE)
    assert (change.reason, change.figures) == (RateReason.LOSS_STALLED, {"from_factor": 3.0, "to_factor": 1.5})
    run.rounds(4, learn=1.0)
    assert len(run.of(DecisionKind.LEARNING_RATE)) == 1, "the lower rate has its time"
    run.rounds(1, learn=1.0)
    assert len(run.of(DecisionKind.LEARNING_RATE)) == 2
    run = Run(uniform, training=SGD).rounds(2).rounds(8, learn=1.01)
    assert {each.model for each in run.judgements[2:]} == {ModelAction.LEAVE}, "the rate is the user's"


def test_a_network_that_got_worse_for_all_is_not_blamed_on_the_configuration() -> None:
    run = Run(lambda node, at: 0.05 if at < 12 else 0.5).rounds(30)
    assert not run.of(DecisionKind.ROLLBACK)


def test_a_loss_that_is_not_finite_restores_the_best_configuration() -> None:
    run = Run(uniform).rounds(8)
    best = run.plans[-1]
    assert best["local_steps"] > 10
    run.loss = math.nan
    run.rounds(1)
    run.loss = 1.0
    assert run.of(DecisionKind.ROLLBACK)[-1].reason is RollbackReason.LOSS_NOT_FINITE
    run.rounds(1)
    assert run.plans[-1]["local_steps"] == best["local_steps"]
    assert run.plans[-1]["batch_sizes"] == best["batch_sizes"]


def test_the_phases_follow_the_loss() -> None:
    run = Run(uniform).rounds(12)
    assert run.plans[-1]["phase"] == Phase.ADAPTIVE
    run.rounds(10, learn=1.0)
    assert run.plans[-1]["phase"] == Phase.CONVERGENCE
    frozen = run.plans[-1]["batch_sizes"]
    run.rounds(3, learn=1.0)
    assert run.plans[-1]["batch_sizes"] == frozen
    run.rounds(12, learn=0.9)
    assert run.plans[-1]["phase"] == Phase.ADAPTIVE
    run.adaptation.shutdown()
    assert run.adaptation.get_orchestrator_status()["phase"] == Phase.COMPLETED


def test_nodes_that_come_later_are_taken_in() -> None:
    run = Run(lambda node, at: 0.05).rounds(5, nodes=NODES[:5]).rounds(2)
    assert run.plans[5]["selected_nodes"] == NODES


def test_no_node_at_all_is_a_decision_and_no_error() -> None:
    run = Run(uniform).rounds(3)
    plan = run.adaptation.pre_round_adaptation([], 4)
    assert plan["selected_nodes"] == []
    assert [str(d.reason) for d in plan["decisions"] if d.kind is DecisionKind.SELECTION] == ["no_nodes"]


def test_bad_metrics_are_refused() -> None:
    adaptation = Run(uniform).rounds(1).adaptation
    with pytest.raises(InvalidInput, match="loss"):
        adaptation.post_round_evaluation(2, {"samples": 1, "round_time": 1.0})
    for bad in (-1.0, math.nan):
        with pytest.raises(InvalidInput, match="round_time"):
            adaptation.post_round_evaluation(2, {"loss": 1.0, "samples": 1, "round_time": bad})
    with pytest.raises(InvalidInput, match="node_1"):
        wrong = [Contribution("node_1", True, 64, 64, -1.0, 0.1)]
        metrics = {"loss": 1.0, "samples": 1, "round_time": 1.0, "contributions": wrong}
        adaptation.post_round_evaluation(2, metrics)
    with pytest.raises(UnknownName, match="reactive"):
        adaptation.set_policy("reactiv")


def test_a_clock_that_stands_still_and_rounds_of_no_time() -> None:
    Run(lambda node, at: 0.0).rounds(12)


def test_the_same_inputs_give_the_same_decisions() -> None:
    first, second = Run(flaky).rounds(15), Run(flaky).rounds(15)
    assert first.plans == second.plans
    assert [d.to_dict() for d in first.decisions] == [d.to_dict() for d in second.decisions]


def test_reports_hold_the_run_and_compare_it_with_its_warm_up() -> None:
    run = Run(flaky, orchestrator={"warmup_rounds": 2}).rounds(12)
    comparison = run.adaptation.get_performance_comparison()
    assert comparison["baseline"]["rounds"] == 2
    assert comparison["improvement"]["progress_per_second_ratio"] > 2, "the loss falls as fast in far shorter rounds"
    report = run.adaptation.export_full_report()
    assert len(report["rounds"]) == 12
    assert report["status"]["policy"] == AdaptationPolicy.REACTIVE
    assert report["status"]["overhead"]["share_of_round_time"] == 0.0  # virtual time stands still meanwhile
    json.dumps(report)


def test_the_communication_behind_a_change_of_steps_is_that_of_the_nodes_that_were_chosen() -> None:
    run = Run(flaky).rounds(1)
    monitor = run.adaptation.monitor
    plan = run.adaptation.pre_round_adaptation(NODES, 2)
    assert plan["selected_nodes"] == NODES[:8]
    (steps,) = [each for each in plan["decisions"] if each.kind is DecisionKind.LOCAL_STEPS]
    expected = monitor.round_communication_samples(monitor.rows(NODES[:8]), 4).max(axis=0).mean()
    assert steps.figures["communication_seconds"] == pytest.approx(expected)
    assert expected < 0.1, "and not the 0.9 s of those that were left out"


def test_a_round_without_an_update_says_nothing_about_a_link() -> None:
    run = Run(uniform).rounds(3)
    monitor, nodes = run.adaptation.monitor, NODES[:3]
    before = monitor.round_communication_samples(monitor.rows(nodes), 1)[:, 0]
    quality, loss = monitor.classes(monitor.rows(nodes)), monitor.loss_rates(monitor.rows(nodes))
    results = [
        Contribution("node_0", False, waiting_seconds=50.0, measured=False),
        Contribution("node_1", False, waiting_seconds=50.0, late=True),
        Contribution("node_2", False, waiting_seconds=0.07, compute_seconds=40.0, late=True),
    ]
    assert run.adaptation.record_results(results) == pytest.approx(0.07)
    after = monitor.round_communication_samples(monitor.rows(nodes), 1)[:, 0]
    assert after == pytest.approx([before[0], before[1], 0.07]), "a split that is told counts"
    assert monitor.classes(monitor.rows(nodes)).tolist() == quality.tolist()
    assert monitor.loss_rates(monitor.rows(nodes)).tolist() == loss.tolist()


@pytest.mark.parametrize(
    ("doing", "compute_told", "compute", "communication"),
    [
        (Activity.DONE, 5.0, 5.0, 1.0),
        (Activity.DONE, 0.5, 0.5, 5.5),
        (Activity.PULLING, 0.0, 0.0, 6.0),
        (Activity.PUSHING, 0.0, 0.0, 5.0),
        (Activity.TRAINING, 0.0, 5.9, 0.0),
    ],
)
def test_the_time_of_late_work_goes_to_the_link_or_the_card(
    doing: Activity, compute_told: float, compute: float, communication: float
) -> None:
    orchestrator = build_orchestrator(SystemConfig(), clock=ManualClock())
    monitor, batches = orchestrator.monitor, orchestrator.batches
    orchestrator.register_node("a")
    for _ in range(3):  # usual: 1 s of computing in 10 steps, 0.1 s of communication
        batches.record_step("a", 64, 0.1)
        monitor.record_round_communication("a", 0.1)
    orchestrator.record_results([Contribution("a", False, late=True)])
    orchestrator.record_late(LateWork("a", 6.0, doing, compute_told, 64, 10))
    told = orchestrator.selector.get_node_details("a")
    assert (told["attempts"], told["efficiency"]) == (1, pytest.approx(compute / (compute + communication)))
    latest = monitor.round_communication_samples(monitor.rows(["a"]), 1)[0, 0]
    assert latest == pytest.approx(communication or 0.1)
    mean = 0.1 * (0.85 + 0.85**2 + 0.85**3) + min(compute / 10, 1.0) if compute else 0.3
    weight = 1 + 0.85 + 0.85**2 + 0.85**3 if compute else 3
    assert batches.compute_seconds(["a"])[0] == pytest.approx(10 * mean / weight)


def slow_uplink() -> AdaptiveOrchestrator:
    """An orchestrator that has seen 1 MB of an update of 4 MB take 1 s; usual: 1 s of computing, 2 s in all beside."""
    orchestrator = build_orchestrator(SystemConfig(), clock=ManualClock(), model_bytes=4_000_000)
    orchestrator.register_node("a")
    orchestrator.batches.record_step("a", 64, 0.1)
    orchestrator.monitor.record_round_communication("a", 2.0)
    orchestrator.monitor.record_upload("a", Transfer(1_000_000, 1.0))
    return orchestrator


@pytest.mark.parametrize(("share", "communication"), [(0.0, 7.0), (0.25, 6.0), (1.0, 3.0)])
def test_what_was_not_received_of_a_late_update_takes_its_time_by_the_rate(share: float, communication: float) -> None:
    orchestrator = slow_uplink()
    orchestrator.record_late(LateWork("a", 4.0, Activity.DONE, 1.0, 64, 10, received_share=share))
    monitor = orchestrator.monitor
    assert monitor.round_communication_samples(monitor.rows(["a"]), 1)[0, 0] == pytest.approx(communication)


@pytest.mark.parametrize(("elapsed", "communication"), [(2.9, 2.0), (4.0, 3.0)])
def test_without_a_rate_what_was_not_received_makes_a_lower_bound(elapsed: float, communication: float) -> None:
    orchestrator = build_orchestrator(SystemConfig(), clock=ManualClock(), model_bytes=4_000_000)
    orchestrator.register_node("a")
    orchestrator.monitor.record_round_communication("a", 2.0)
    orchestrator.record_late(LateWork("a", elapsed, Activity.DONE, 1.0, 64, 10, received_share=0.0))
    monitor = orchestrator.monitor
    assert monitor.round_communication_samples(monitor.rows(["a"]), 1)[0, 0] == pytest.approx(communication)


def test_a_node_whose_only_update_was_late_is_explored_as_far_as_expected() -> None:
    orchestrator = build_orchestrator(SystemConfig(), clock=ManualClock(), model_bytes=4_000_000)
    monitor = orchestrator.monitor
    orchestrator.register_node("a")
    monitor.record_communication("a", 100.0, True)
    expected = monitor.round_communication_samples(monitor.rows(["a"]), 1)[0, 0]
    assert not monitor.has_round_communication(monitor.rows(["a"]))[0]
    orchestrator.record_late(LateWork("a", 1.0 + 0.5 * expected, Activity.DONE, 1.0, 64, 10, received_share=0.0))
    assert monitor.has_round_communication(monitor.rows(["a"]))[0]
    assert monitor.round_communication_samples(monitor.rows(["a"]), 1)[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("doing", "share", "allowed", "outcome"),
    [
        (Activity.DONE, 0.0, 8.0, "in time"),
        (Activity.DONE, 0.0, 7.9, "late"),
        (Activity.DONE, 1.0, 4.0, "in time"),
        (Activity.PUSHING, 1.0, 3.9, "late"),
        (Activity.PUSHING, 1.0, 4.0, ""),
        (Activity.TRAINING, 1.0, 3.9, "late"),
    ],
)
def test_a_probation_is_judged_by_what_the_work_needed(
    monkeypatch: pytest.MonkeyPatch, doing: Activity, share: float, allowed: float, outcome: str
) -> None:
    orchestrator = slow_uplink()
    told: list[tuple[str, str]] = []

    def record(node: str, *, in_time: bool) -> None:
        told.append((node, "in time" if in_time else "late"))

    monkeypatch.setattr(orchestrator.selector, "record_late_probation", record)
    for awaited in (True, False):
        orchestrator.record_late(LateWork("a", 4.0, doing, 1.0, 64, 10, allowed, awaited=awaited, received_share=share))
    assert told == ([("a", outcome)] if outcome else [])


def test_only_a_probe_that_failed_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    orchestrator = build_orchestrator(SystemConfig(), clock=ManualClock())
    told: list[str] = []
    for node in NODES:
        orchestrator.register_node(node)
    monkeypatch.setattr(orchestrator.selector, "record_failed_probes", told.extend)
    orchestrator.record_results(
        [
            Contribution("node_0", True, 640, 64, 1.0, 1.0, awaited=False),
            Contribution("node_1", False, late=True, awaited=False),
            Contribution("node_2", False, trial_failed=True, awaited=False),
            Contribution("node_3", False),
            Contribution("node_4", False, awaited=False),
        ]
    )
    assert told == ["node_4"]


def test_a_lower_bound_below_what_is_usual_says_nothing() -> None:
    orchestrator = build_orchestrator(SystemConfig(), clock=ManualClock())
    orchestrator.register_node("a")
    orchestrator.batches.record_step("a", 64, 0.1)
    orchestrator.monitor.record_round_communication("a", 2.0)
    for doing in (Activity.PULLING, Activity.PUSHING, Activity.TRAINING):
        orchestrator.record_late(LateWork("a", 1.9, doing, 0.0, 64, 10))
    assert (
        orchestrator.monitor.round_communication_samples(orchestrator.monitor.rows(["a"]), 4)[0].tolist() == [2.0] * 4
    )
    assert orchestrator.batches.compute_seconds(["a"])[0] == pytest.approx(1.0)


def test_how_often_processes_end_is_known_to_the_plans() -> None:
    run = Run(uniform).rounds(3)
    assert run.adaptation.batches.costs.restarts_per_second == 0.0
    metrics = {"loss": 1.0, "round_time": 1.0, "samples": 640, "ended": (3, 6.0)}
    run.adaptation.post_round_evaluation(4, metrics)
    costs = run.adaptation.batches.costs
    assert costs.fit(run.adaptation.batches.rows(NODES)).restarts_per_second == costs.restarts_per_second == 0.5
    run.adaptation.post_round_evaluation(5, {**metrics, "ended": (0, 6.0)})
    assert 0.2 < costs.restarts_per_second < 0.25, "it is forgotten, slowly"


def test_a_trial_measures_the_card_though_its_samples_count_nothing() -> None:
    run = Run(uniform).rounds(1)
    before = run.adaptation.batches.compute_seconds(["node_0"])[0]
    steps = run.adaptation.batches.local_steps
    tried = Contribution("node_0", True, 0, 64, 20.0 * before, 0.05, run.loss, local_steps=steps)
    for _ in range(5):
        run.adaptation.record_results([tried])
    assert run.adaptation.batches.compute_seconds(["node_0"])[0] > 5.0 * before
