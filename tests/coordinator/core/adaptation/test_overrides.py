"""A user's rule goes to the selector: it shows as a decision, and a forced node gets the work that adaptation plans."""

import pytest

from hypergpu.common.config import SystemConfig
from hypergpu.coordinator.core.adaptation import AdaptiveOrchestrator, build_orchestrator
from hypergpu.coordinator.core.decisions import DecisionKind
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.selection import NodeState, SelectionReason

NODES = ("a", "b", "c", "d")


class Run:
    """A run in virtual time whose nodes answer at once, some of them never."""

    def __init__(self, policy: str) -> None:
        self.now = 0.0
        config = SystemConfig.model_validate(
            {"orchestrator": {"policy": policy}, "training": {"rounds": 0, "min_nodes": 4}}
        )
        self.adaptation: AdaptiveOrchestrator = build_orchestrator(config, clock=lambda: self.now)
        self.machine = RoundMachine(config.training, self.adaptation)
        self.decisions: list[tuple[str, str]] = []
        self.batches: dict[str, int] = {}
        self.samples: dict[str, int] = {}
        for node in NODES:
            self.send(ev.NodeJoined(node, "1", 512))

    def send(self, event: ev.Event) -> None:
        for effect in self.machine.handle(event, self.now):
            if isinstance(effect, ev.RunEvent) and effect.decision is not None:
                decision = effect.decision
                if decision.kind is DecisionKind.SELECTION:
                    self.decisions.append((decision.subject, str(decision.reason)))
            if isinstance(effect, ev.WorkAssigned):
                self.batches[effect.node] = effect.batch_size
                self.samples[effect.node] = effect.batch_size * effect.local_steps

    def round(self, failing: str = "") -> tuple[str, ...]:
        """Run one round, in which one node may fail, and return the selected nodes."""
        for node in NODES:
            self.send(ev.WorkRequested(node))
        number, selected = self.machine.round, tuple(self.machine.selected)
        self.now += 1.0
        for node in selected:
            if node == failing:
                self.send(ev.WorkReturned(node, number, 1, "leaving"))
            else:
                self.send(ev.UpdateArrived(node, number, 1, self.samples[node], 1.0, 0.5))
        self.send(ev.Evaluated(number, 1.0 / number, 0.5))
        return selected


@pytest.mark.parametrize("policy", ["none", "reactive"])
def test_an_excluded_node_is_left_out_by_a_decision_until_it_is_allowed_again(policy: str) -> None:
    run = Run(policy)
    run.send(ev.OverrideSet("b", NodeOverride.EXCLUDE))
    assert [run.round() for _ in range(6)] == [("a", "c", "d")] * 6
    assert ("b", str(SelectionReason.FORCED_OUT)) in run.decisions
    details = run.adaptation.selector.get_node_details("b")
    assert (details["rule"], details["reason"]) == ("exclude", str(SelectionReason.FORCED_OUT))
    run.send(ev.OverrideSet("b", NodeOverride.AUTOMATIC))
    run.round()
    assert "b" in run.round()
    assert run.adaptation.selector.get_node_details("b")["rule"] == "automatic"


def test_a_forced_node_trains_though_it_is_quarantined_on_the_batch_that_is_planned_for_it() -> None:
    run = Run("reactive")
    run.round(failing="d")
    while run.adaptation.selector.get_node_state("d") is not NodeState.QUARANTINED:
        run.round(failing="d")
    assert "d" not in run.round()
    run.send(ev.OverrideSet("d", NodeOverride.INCLUDE))
    run.round()
    assert "d" in run.round()
    assert ("d", str(SelectionReason.FORCED_IN)) in run.decisions
    run.send(ev.WorkRequested("d"))  # in the round that has opened since
    assert run.batches["d"] == run.adaptation.batches.get_batch_size("d")


def test_rules_survive_a_restart_of_the_coordinator() -> None:
    run = Run("reactive")
    run.machine.restore_nodes([{"node_id": "c", "rule": "exclude"}, {"node_id": "a", "rule": "automatic"}])
    assert run.round() == ("a", "b", "d")
    assert run.adaptation.overrides.of("c") is NodeOverride.EXCLUDE
    assert run.adaptation.overrides.of("never seen") is NodeOverride.AUTOMATIC


def test_no_round_begins_where_every_node_is_excluded() -> None:
    run = Run("none")
    for node in NODES:
        run.send(ev.OverrideSet(node, NodeOverride.EXCLUDE))
    assert run.round() == ()
    assert "excluded" in run.machine.waiting_for
