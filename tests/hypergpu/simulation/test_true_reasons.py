"""Small runs with a known cause: every choice, class, alert and quarantine against the truth of its scenario."""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from hypergpu.coordinator.core.links import AlertKind, ConnectionQuality
from hypergpu.coordinator.core.selection import NodeState, QuarantineReason, SelectionReason
from hypergpu.coordinator.core.selection.quarantine import NodeStateChange
from hypergpu.simulation.scenario import Scenario
from tests.hypergpu.simulation.truth import LinkTruth, Observed, Plan, observe, step_seconds

HEARTBEAT_SECONDS = 0.5
LOST_SECONDS = 5 * HEARTBEAT_SECONDS
MEMORY_SECONDS = 20.0
"""Time for which figures may still hold what a link was like before a change."""
JUDGED = (SelectionReason.WORTH_ITS_TIME, SelectionReason.COSTS_MORE_THAN_IT_ADDS, SelectionReason.FAIRNESS_TURN)
"""Reasons with the times that are expected of a node."""
FEW_SECONDS = 10.0
"""Time in which a node has sent few heartbeats."""
LEAST_CHECKED = {"choice": 2000, "class": 2000, "alert": 100, "quarantine": 40}
"""Decisions of each kind that all runs check together."""


def nodes(name: str, count: int, profile: str = "good", **values: Any) -> dict[str, Any]:
    return {"id": name, "count": count, "gpu": "T4", "profile": profile} | values


def event(kind: str, at: float, seconds: float, *targets: str, **values: Any) -> dict[str, Any]:
    return {"at_seconds": at, "type": kind, "nodes": list(targets), "duration_seconds": seconds} | values


SCENARIOS: dict[str, dict[str, Any]] = {
    "slow link": {"nodes": [nodes("near", 5), nodes("far", 2, "poor")], "convergence": {"model_bytes": 400_000}},
    "slow card": {"nodes": [nodes("card", 5), nodes("slow", 2, speed=0.03)], "rounds": 60},
    "outage": {
        "nodes": [nodes("n", 5)],
        "events": [event("disconnect", 4.0, 6.0, "n_4"), event("disconnect", 6.0, 5.0, "n_3", mode="black_hole")],
        "rounds": 50,
    },
    "partition": {
        "nodes": [nodes("here", 4), nodes("there", 2)],
        "events": [event("partition", 4.0, 4.0, "there_0", "there_1")],
        "rounds": 40,
    },
    "jitter": {"nodes": [nodes("calm", 4), nodes("jittery", 2, "unstable")], "loss_model": "transport"},
    "loss": {"nodes": [nodes("n", 4), nodes("lossy", 2, "unstable")], "rounds": 40},
    "bandwidth collapse": {
        "nodes": [nodes("n", 5)],
        "convergence": {"model_bytes": 2_000_000},
        "events": [event("bandwidth_collapse", 4.0, 8.0, "n_4", factor=0.004)],
        "rounds": 40,
    },
    "latency spike": {
        "nodes": [nodes("n", 5)],
        "events": [event("latency_spike", 4.0, 8.0, "n_4", added_ms=400.0)],
        "rounds": 40,
    },
    "our own big transfer": {
        "nodes": [nodes("n", 3, "average")],
        "convergence": {"model_bytes": 42_000_000},
        "rounds": 6,
    },
    "flapping link": {
        "nodes": [nodes("n", 4), nodes("flaps", 2)],
        "events": [event("flap", 1.0, 0.0, "flaps_0", "flaps_1", period_seconds=1.5, mode="reset")],
        "rounds": 60,
    },
    "crash loop": {
        "nodes": [nodes("n", 4, "perfect"), nodes("crashing", 4, churn={"up_seconds": 0.2, "down_seconds": 0.2})],
        "config": {"selector": {"quarantine_rounds": 1, "quarantine_after_failures": 1}},
        "rounds": 100,
    },
    "always late": {
        "nodes": [nodes("card", 6), nodes("slow", 2, speed=0.02)],
        "config": {"selector": {"strategy": "all_available", "quarantine_rounds": 1, "quarantine_after_failures": 1}},
        "rounds": 60,
    },
    "churn": {
        "nodes": [nodes("n", 4), nodes("volunteer", 3, churn={"up_seconds": 3.0, "down_seconds": 2.0})],
        "rounds": 50,
    },
}


@cache
def run(name: str) -> Observed:
    tree: dict[str, Any] = {"learning": "model", "loss_model": "rpc", "rounds": 30, "policy": "reactive", "seed": 1}
    tree |= {"name": name, "compute": {"seconds_per_step": 0.002, "seconds_per_sample": 0.00002}}
    tree |= SCENARIOS[name]
    tree["config"] = {"server": {"heartbeat_seconds": HEARTBEAT_SECONDS}} | SCENARIOS[name].get("config", {})
    return observe(Scenario.model_validate(tree))


def lately(observed: Observed, node: str, at: float) -> list[LinkTruth]:
    """Return the truths about a link now and in the time that figures may still remember."""
    times = {at, *(at - 0.25 * step for step in range(int(4 * MEMORY_SECONDS)))}
    return list({observed.truth(node, time) for time in times if time >= 0})


def goes_down(observed: Observed, node: str) -> bool:
    """Return whether the process of a node ends now and then."""
    return any(group.churn is not None and node in group.names() for group in observed.scenario.nodes)


# ---------------------------------------------------------------- choices


def wrong_choices(observed: Observed) -> Iterator[str]:
    last: dict[str, int] = {}
    answered = {(number, node) for number, node, success, _ in observed.contributions if success}
    for plan in observed.plans:
        for node, reason in plan.selection.reasons.items():
            for fault in wrong_choice(observed, plan, node, reason, last.get(node)):
                yield f"{plan.at:.2f} s, round {plan.selection.round}: {node} {reason}: {fault}"
        last |= dict.fromkeys(plan.selection.selected, plan.selection.round)
        in_time = [node for node in plan.selection.probes if (plan.selection.round, node) in answered]
        last |= dict.fromkeys(in_time, plan.selection.round)


def wrong_choice(observed: Observed, plan: Plan, node: str, reason: SelectionReason, last: int | None) -> Iterator[str]:
    figures = plan.selection.figures_of(node)
    if reason is SelectionReason.UNEXPLORED and contributed_before(observed, node, plan.selection.round):
        yield f"it was measured, and took part in round {last}"
    if reason is SelectionReason.FAIRNESS_TURN:
        idle = plan.selection.round - (last if last is not None else 0) - 1
        if last is not None and figures["rounds_left_out"] != idle:
            yield f"it was left out for {idle} rounds, not {figures['rounds_left_out']:g}"
    gone = goes_down(observed, node) or any(t.is_cut for t in lately(observed, node, plan.at))
    if reason is SelectionReason.OFFLINE and not gone:
        yield "its link was never cut"
    if reason in JUDGED:
        yield from wrong_times(observed, plan, node, reason, figures)


def wrong_times(
    observed: Observed, plan: Plan, node: str, reason: SelectionReason, figures: dict[str, float]
) -> Iterator[str]:
    """Compare the figures of a choice with the times of link and card, and its cause with what makes the node slow."""
    steps, batch = plan.local_steps, plan.batch_sizes[node]
    computing = steps * step_seconds(observed.scenario, node, batch)
    usual = steps * min(step_seconds(observed.scenario, other, batch) for other in plan.selection.reasons)
    least, most = transfer_seconds(observed, node, plan.at)
    if not 0.5 * least <= figures["communication_seconds"] <= 2.0 * most + 0.1:
        yield f"communication takes {least:.3f} to {most:.3f} s, not {figures['communication_seconds']:.3f}"
    known = not unmeasured(observed, node, plan.selection.round)
    if known and not 0.6 * computing <= figures["compute_seconds"] <= 1.8 * computing:
        yield f"computing takes {computing:.3f} s, not {figures['compute_seconds']:.3f}"
    if reason is SelectionReason.COSTS_MORE_THAN_IT_ADDS:
        by_card, by_link = figures["compute_seconds"] - usual, figures["communication_seconds"]
        card_is_slow = computing > 3.0 * usual
        if card_is_slow != (by_card > by_link):
            yield f"{by_card:.3f} s are blamed on its card and {by_link:.3f} s on its link"


def contributed_before(observed: Observed, node: str, round_number: int) -> bool:
    """Return whether an update of a node counted in an earlier round."""
    return any(
        name == node and number < round_number and success for number, name, success, _ in observed.contributions
    )


def unmeasured(observed: Observed, node: str, round_number: int) -> bool:
    """Return whether nothing is known of a node's card: no update of it has arrived yet, in time or late."""
    return not any(
        name == node and number < round_number and (success or late)
        for number, name, success, late in observed.contributions
    )


def transfer_seconds(observed: Observed, node: str, at: float) -> tuple[float, float]:
    """Return how long the communication of a round takes on a link, at least and at most."""
    nbytes = observed.scenario.learning_curve().model_bytes
    truths = lately(observed, node, at)
    least = min(1e-3 * t.least_ms + nbytes / t.bytes_per_second for t in truths)
    retries = 3.0 if any(t.loss > 0.02 for t in truths) else 1.0
    backoff = 0.5 if any(t.loss > 0.0 for t in truths) else 0.0  # of the retry after a single loss
    tcp = 8.0 if observed.scenario.loss_model == "transport" else 1.0
    events = observed.scenario.network_events()
    cuts = [e.duration_seconds + 3.0 * e.period_seconds for e in events if e.concerns(node)]
    just_back = is_late(
        observed, node, max(0.0, at - 1.0)
    )  # the latest transfer began before the cut and ended after it
    waits = max(cuts, default=0.0) if just_back or is_late(observed, node, at) else 0.0
    most = max(2 * 1e-3 * t.most_ms * tcp + 2 * nbytes / t.bytes_per_second for t in truths) * retries
    most += waits + backoff
    return least, most


def is_late(observed: Observed, node: str, at: float) -> bool:
    """Return whether a link is cut or slowed down now."""
    truth = observed.truth(node, at)
    return truth != observed.truth(node, 0.0)


# ---------------------------------------------------------------- classes and alerts


def class_range(observed: Observed, node: str, at: float) -> tuple[float, float]:
    """Return the lowest and the highest score that a link may have, by its round trips and its packet loss."""
    config, truths = observed.scenario.config.monitor, lately(observed, node, at)
    span = math.log(config.worst_latency_ms / config.best_latency_ms)

    def points(latency_ms: float) -> float:
        return 40.0 * (1.0 - min(max(math.log(max(latency_ms, 1e-9) / config.best_latency_ms) / span, 0.0), 1.0))

    noise = 3.0 * math.sqrt(0.01 / 12) if any(t.loss > 0 for t in truths) else 0.0
    worst = max(t.loss for t in truths) + 3.0 * math.sqrt(max(t.loss for t in truths) / 12) + noise
    low = min(points(t.most_ms) for t in truths) + 30.0 * (1 - min(worst / config.worst_loss, 1.0))
    low += 30.0 * max(0.0, 1.0 - 2 * worst)
    cut = any(t.is_cut for t in truths) or goes_down(observed, node)
    return (0.0 if cut else low), max(points(t.least_ms) for t in truths) + 60.0


def wrong_classes(observed: Observed) -> Iterator[str]:
    bounds = {"excellent": 90.0, "good": 75.0, "fair": 60.0, "poor": 40.0, "critical": 0.0}
    for judgement in observed.judgements:
        for profile in judgement.profiles:
            truths = lately(observed, profile.node_id, judgement.at)
            told = f"{judgement.at:.2f} s: {profile.node_id} is {profile.quality} ({profile.score:.1f})"
            cut = any(t.is_cut for t in truths) or goes_down(observed, profile.node_id)
            if profile.quality is ConnectionQuality.UNKNOWN:
                continue
            if profile.quality is ConnectionQuality.OFFLINE:
                if not cut:
                    yield f"{told}, and was never cut"
                continue
            low, high = class_range(observed, profile.node_id, judgement.at)
            floor = bounds[profile.quality]
            ceiling = min((each for each in bounds.values() if each > floor), default=100.0)
            if not (floor - 3.0 <= high and low <= ceiling + 3.0 + 2.0 * (max(t.loss for t in truths) > 0)):
                yield f"{told}; {low:.1f} to {high:.1f} is true"
            least, most = min(t.least_ms for t in truths), max(t.most_ms for t in truths)
            if judgement.at < FEW_SECONDS and observed.scenario.loss_model == "transport":
                continue  # most of a few round trips may have waited for a lost packet
            if not math.isnan(profile.latency_ms) and not 0.9 * least <= profile.latency_ms <= 1.3 * most:
                yield f"{told} with {profile.latency_ms:.0f} ms; {least:.0f} to {most:.0f} is true"


def wrong_alerts(observed: Observed) -> Iterator[str]:
    for judgement in observed.judgements:
        for alert in judgement.alerts:
            truths = lately(observed, alert.node_id, judgement.at)
            cut = any(t.is_cut for t in truths) or goes_down(observed, alert.node_id)
            loss = max(t.loss for t in truths)
            low, _ = class_range(observed, alert.node_id, judgement.at)
            slower = len({t.most_ms for t in truths}) > 1
            true = {
                AlertKind.OFFLINE: cut,
                AlertKind.CRITICAL_QUALITY: low < 43.0,
                AlertKind.HIGH_LOSS: cut or loss > 0.02,
                AlertKind.DEGRADING: slower,
            }
            if not true[alert.kind]:
                yield f"{judgement.at:.2f} s: {alert.message}"


# ---------------------------------------------------------------- quarantines


def is_release(change: NodeStateChange) -> bool:
    return change.state is NodeState.PROBATION


def wrong_standings(observed: Observed) -> Iterator[str]:
    for at, number, node, change in observed.standings:
        told = f"{at:.2f} s, round {number}: {node} {change.state} {change.reason} {dict(change.figures)}"
        if change.state is NodeState.QUARANTINED:
            failures = late_updates = 0
            releases = (r for when, r, n, c in observed.standings if is_release(c) and n == node and when < at)
            released = max(releases, default=0)
            for round_number, name, success, late in observed.outcomes:
                if name == node and released <= round_number <= number:
                    failures = 0 if success else failures + (not late)
                    late_updates = 0 if success else late_updates + late
            if (change.figures["failures_in_a_row"], change.figures["late_in_a_row"]) != (failures, late_updates):
                yield f"{told}: it failed {failures} times and was late {late_updates} times"
            if (change.reason is QuarantineReason.REPEATEDLY_LATE) and change.figures["failures_in_a_row"]:
                yield f"{told}: it was not only late"
        if change.reason is QuarantineReason.QUARANTINE_EXPIRED and not any(
            other.state is NodeState.QUARANTINED and name == node and earlier < at
            for earlier, _, name, other in observed.standings
        ):
            yield f"{told}: it was in no quarantine"


# ---------------------------------------------------------------- the tests

CHECKS = {
    "choice": (wrong_choices, lambda o: sum(len(plan.selection.reasons) for plan in o.plans)),
    "class": (wrong_classes, lambda o: sum(len(each.profiles) for each in o.judgements)),
    "alert": (wrong_alerts, lambda o: sum(len(each.alerts) for each in o.judgements)),
    "quarantine": (wrong_standings, lambda o: len(o.standings)),
}


@pytest.mark.parametrize("kind", CHECKS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_decision_has_its_true_cause(name: str, kind: str) -> None:
    assert list(CHECKS[kind][0](run(name))) == []


def test_enough_decisions_of_every_kind_are_checked() -> None:
    checked = {kind: sum(count(run(name)) for name in SCENARIOS) for kind, (_, count) in CHECKS.items()}
    assert all(checked[kind] >= least for kind, least in LEAST_CHECKED.items()), checked
    reasons = {why for name in SCENARIOS for plan in run(name).plans for why in plan.selection.reasons.values()}
    standing = {SelectionReason.WARM_UP, SelectionReason.QUARANTINED, SelectionReason.ON_PROBATION}
    assert {*JUDGED, *standing} <= reasons
    changes = {change.reason for name in SCENARIOS for _, _, _, change in run(name).standings}
    assert {QuarantineReason.REPEATED_FAILURES, QuarantineReason.REPEATEDLY_LATE} <= changes


def taken_part(name: str, node: str, begin: float, end: float) -> list[bool]:
    """Return whether a node was chosen for each round that was planned in a time."""
    return [node in plan.selection.selected for plan in run(name).plans if begin <= plan.at < end]


@pytest.mark.parametrize(
    ("name", "node", "recovered_at"),
    [
        ("outage", "n_4", 10.0),
        ("outage", "n_3", 11.0),
        ("partition", "there_0", 8.0),
        ("latency spike", "n_4", 12.0),
    ],
)
def test_a_node_takes_part_again_within_two_rounds_of_its_return(name: str, node: str, recovered_at: float) -> None:
    observed = run(name)
    available = [plan for plan in observed.plans if plan.at >= recovered_at and node in plan.selection.reasons]
    assert any(node in plan.selection.selected for plan in available[:2])
    assert all(taken_part(name, node, available[2].at, math.inf))


def test_slow_cards_on_good_links_are_slow_cards_on_good_links() -> None:
    observed = run("slow card")
    for judgement in observed.judgements:
        for profile in judgement.profiles:
            assert profile.quality in (ConnectionQuality.GOOD, ConnectionQuality.EXCELLENT, ConnectionQuality.UNKNOWN)
    reasons = {plan.selection.reasons.get("slow_0") for plan in observed.plans}
    assert SelectionReason.COSTS_MORE_THAN_IT_ADDS in reasons
    assert SelectionReason.FAIRNESS_TURN not in reasons, "a turn would take half of the time"


def test_our_own_transfer_is_shown_beside_the_latency_of_the_link() -> None:
    profiles = [p for judgement in run("our own big transfer").judgements for p in judgement.profiles]
    idle, loaded = profiles[-1].latency_ms, profiles[-1].loaded_latency_ms
    assert 50.0 <= idle <= 150.0
    assert loaded > 1.5 * idle, "small calls have a connection of their own beside several"
