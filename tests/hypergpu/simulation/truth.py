"""Ground truth of simulated runs: what is the case at a time, and what the adaptation decided then.

`truth_of(scenario)` knows the links from the scenario alone, `step_seconds` the cards. `observe(scenario)` runs it in
virtual time and keeps every choice of the selector, every class, every alert and every change of a node's state, with
the figures behind it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from hypergpu.common.clock import Clock
from hypergpu.common.config import SystemConfig
from hypergpu.coordinator.core.adaptation import AdaptiveOrchestrator, build_orchestrator
from hypergpu.coordinator.core.links import Alert
from hypergpu.coordinator.core.links.profile import LinkProfile
from hypergpu.coordinator.core.rounds.adaptation import Activity, LateWork
from hypergpu.coordinator.core.selection.context import Selection
from hypergpu.coordinator.core.selection.quarantine import NodeState, NodeStateChange
from hypergpu.netsim_proxy.link.events import EventType, NetworkEvent
from hypergpu.simulation import run as run_module
from hypergpu.simulation.compute import SimulatedCards
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario

CUTS = (EventType.DISCONNECT, EventType.PARTITION, EventType.FLAP)
"""Events during which a link passes nothing, a flapping one half of the time."""


@dataclass(frozen=True, slots=True)
class LinkTruth:
    """A link at a time."""

    least_ms: float
    """Shortest round trip."""
    most_ms: float
    """Longest round trip but for one in twenty."""
    loss: float
    """Share of RPCs lost."""
    bytes_per_second: float
    """Of the slower direction."""
    is_cut: bool


Truth = Callable[[str, float], LinkTruth]
"""Truth about the link of a node at a time, in seconds since the start."""


def truth_of(scenario: Scenario) -> Truth:
    """Return what is the case on each link at each time."""
    profiles, events = scenario.profiles_of_links(), scenario.network_events()
    counts_loss = scenario.loss_model == "rpc"

    def truth(node: str, at: float) -> LinkTruth:
        profile = profiles[node]
        both = profile.up, profile.down
        least, most = (1000.0 * sum(path.latency.at(share) for path in both) for share in (0.0, 0.95))
        speed, is_cut = min(path.bytes_per_second for path in both), False
        for event in _present(events, node, at):
            if event.event_type == EventType.LATENCY_SPIKE:
                least, most = ((event.factor or 1.0) * each + event.added_ms for each in (least, most))
            elif event.event_type == EventType.BANDWIDTH_COLLAPSE:
                speed *= event.factor
            is_cut |= event.event_type in CUTS
        return LinkTruth(least, most, profile.loss if counts_loss else 0.0, speed, is_cut)

    return truth


def _present(events: list[NetworkEvent], node: str, at: float) -> Iterator[NetworkEvent]:
    for event in events:
        begun = event.scheduled_time or 0.0
        if event.concerns(node) and begun <= at < begun + (event.duration_seconds or math.inf):
            yield event


def step_seconds(scenario: Scenario, node: str, batch_size: int) -> float:
    """Return the mean duration of a local step on the card of a node."""
    cards = SimulatedCards(scenario)
    return cards._models[node].step_seconds(0, batch_size, 0.0)


# ---------------------------------------------------------------- what was decided


@dataclass(frozen=True, slots=True)
class Plan:
    """Choice of the nodes of a round, and what the choice was made from."""

    at: float
    selection: Selection
    batch_sizes: Mapping[str, int]
    local_steps: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """Judgement of all links before a round."""

    at: float
    profiles: list[LinkProfile]
    alerts: list[Alert]


@dataclass
class Observed:
    """Everything that was decided in a run."""

    scenario: Scenario
    truth: Truth
    outcome: Outcome
    plans: list[Plan] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    standings: list[tuple[float, int, str, NodeStateChange]] = field(default_factory=list)
    """Time, round, node and change of its state."""
    contributions: list[tuple[int, str, bool, bool]] = field(default_factory=list)
    """Round, node, success, late."""
    outcomes: list[tuple[int, str, bool, bool]] = field(default_factory=list)
    """The same of what a quarantine counts."""


def observe(scenario: Scenario) -> Observed:
    """Run a scenario and return what was decided in it."""
    observed = Observed(scenario, truth_of(scenario), None)  # type: ignore[arg-type]
    with _listening(observed):
        observed.outcome = simulate(scenario)
    return observed


@contextmanager
def _listening(observed: Observed) -> Iterator[None]:
    def build(config: SystemConfig, *, clock: Clock, model_bytes: int) -> AdaptiveOrchestrator:
        orchestrator = build_orchestrator(config, clock=clock, model_bytes=model_bytes)
        _listen(orchestrator, clock, observed)
        return orchestrator

    with patch.object(run_module, "build_orchestrator", build):
        yield


def _listen(orchestrator: AdaptiveOrchestrator, clock: Clock, observed: Observed) -> None:
    selector, monitor, batches = orchestrator.selector, orchestrator.monitor, orchestrator.batches
    keep, update, drain = selector._keep, monitor.update, selector.drain_state_changes

    def kept(ids: list[str], *arguments: Any, **named: Any) -> list[str]:
        selected = keep(ids, *arguments, **named)
        assert selector.last_selection is not None
        plan = Plan(clock(), selector.last_selection, batches.get_batch_sizes(ids), batches.local_steps)
        observed.plans.append(plan)
        return selected

    def updated() -> Any:
        changed = update()
        profiles = monitor.get_node_profiles(monitor._links.index.ids)
        observed.judgements.append(Judgement(clock(), profiles, monitor.get_alerts()))
        return changed

    def drained() -> list[tuple[str, NodeStateChange]]:
        changes = drain()
        observed.standings += [(clock(), selector._round, node, change) for node, change in changes]
        return changes

    def is_on_probation(node: str) -> bool:
        return selector.get_node_state(node) is NodeState.PROBATION

    def finish(report: Any) -> Any:
        observed.contributions += [(report.round, each.node, each.success, each.late) for each in report.contributions]
        observed.outcomes += [
            (report.round, each.node, each.success, each.late)
            for each in report.contributions
            if each.success or each.awaited or (is_on_probation(each.node) and not each.late)
        ]
        return finish_round(report)

    def record_late(work: LateWork) -> None:
        missing = (1.0 - work.received_share) * monitor.upload_seconds(work.node) if work.received_share < 1.0 else 0.0
        in_time = work.elapsed_seconds + (0.0 if math.isnan(missing) else missing) <= work.allowed_seconds
        is_known = work.doing is Activity.DONE or not in_time
        if is_known and not work.awaited and is_on_probation(work.node):
            observed.outcomes.append((selector._round, work.node, in_time, not in_time))
        learn_late(work)

    finish_round, learn_late = orchestrator.finish_round, orchestrator.record_late
    for owner, name, method in (
        (selector, "_keep", kept),
        (monitor, "update", updated),
        (selector, "drain_state_changes", drained),
        (orchestrator, "finish_round", finish),
        (orchestrator, "record_late", record_late),
    ):
        setattr(owner, name, method)
