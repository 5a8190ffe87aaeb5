"""Whole runs in virtual time."""

import json
from pathlib import Path
from typing import Any

import pytest

from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.simulation.compute import read_rounds
from hypergpu.simulation.counterfactual import compare_with_baseline
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario


def scenario(nodes: list[dict[str, Any]] | None = None, **values: Any) -> Scenario:
    tree = {
        "name": "test",
        "learning": "model",
        "rounds": 8,
        "policy": "none",
        "handling_seconds": 0.0,
        "loss_model": "rpc",
    }
    return Scenario.model_validate(tree | {"nodes": nodes or [{"id": "n", "count": 4, "gpu": "T4"}]} | values)


def files(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def events(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def row(outcome: Outcome, node: str) -> Any:
    return next(n for n in outcome.nodes if n.node_id == node)


@pytest.mark.parametrize("learning", ["model", "real"])
def test_the_same_scenario_gives_the_same_bytes_and_another_seed_others(tmp_path: Path, learning: str) -> None:
    profiles = ["good", "average", "poor", "unstable"]
    tested = scenario(
        [
            {
                "id": "n",
                "count": 4,
                "gpu": ["A100", "T4"],
                "profile": profiles,
                "churn": {"up_seconds": 4, "down_seconds": 1},
            }
        ],
        learning=learning,
        policy="reactive",
        rounds=6,
        events=[{"round": 3, "type": "latency_spike", "node": "n_1", "duration_seconds": 1}],
    )
    first, second = simulate(tested, tmp_path / "a"), simulate(tested, tmp_path / "b")
    assert first == second
    assert files(tmp_path / "a") == files(tmp_path / "b")
    other = simulate(tested.changed(seed=1))
    assert other.round_seconds != first.round_seconds


def test_a_run_leaves_the_files_of_a_coordinator(tmp_path: Path) -> None:
    outcome = simulate(scenario(), tmp_path)
    assert {"config.yaml", "rounds.jsonl", "events.jsonl", "nodes.json", "summary.json"} <= files(tmp_path).keys()
    rounds = read_rounds(tmp_path)
    assert [r["round"] for r in rounds] == list(range(1, 9))
    assert rounds[0]["contributors"] == ["n_0", "n_1", "n_2", "n_3"] or len(rounds[0]["contributors"]) == 4
    assert json.loads((tmp_path / "summary.json").read_text())["final_accuracy"] == outcome.final_metric


def test_a_round_lasts_as_long_as_its_messages_and_its_computing() -> None:
    nodes = [{"id": "n", "gpu": "RTX-4090", "profile": "direct"}]
    compute = {"seconds_per_step": 0.1, "seconds_per_sample": 0.0, "spread": 0.0}
    outcome = simulate(scenario(nodes, compute=compute))
    assert outcome.round_seconds == [pytest.approx(1.0)] * 8  # 10 local steps of 0.1 s, and a link that adds nothing


def test_a_slow_link_is_waited_for_by_the_baseline() -> None:
    fast = simulate(scenario([{"id": "n", "count": 3, "gpu": "T4"}]))
    slow = simulate(scenario([{"id": "n", "count": 3, "gpu": "T4", "profile": ["good", "good", "poor"]}]))
    assert sum(slow.round_seconds) > 2 * sum(fast.round_seconds)


def test_lost_rpcs_are_tried_again_and_every_round_is_contributed_to() -> None:
    profiles = {"lossy": {"based_on": "good", "loss": 0.3}}
    outcome = simulate(scenario([{"id": "n", "gpu": "T4", "profile": "lossy"}], profiles=profiles, rounds=30))
    assert outcome.state == "completed"
    (node,) = outcome.nodes
    assert node.rounds_contributed == 30
    assert node.rpcs_lost > 10
    assert node.retries > 0


def test_a_node_that_falls_silent_is_lost_and_comes_back(tmp_path: Path) -> None:
    nodes: list[dict[str, Any]] = [{"id": "here", "count": 2, "gpu": "T4"}, {"id": "there", "gpu": "T4"}]
    cut = {"at_seconds": 2, "type": "partition", "nodes": ["there"], "duration_seconds": 40}
    outcome = simulate(scenario(nodes, events=[cut], rounds=400), tmp_path)
    kinds = [(e["kind"], e.get("node")) for e in events(tmp_path)]
    lost, back = kinds.index(("node_lost", "there")), len(kinds) - 1 - kinds[::-1].index(("node_joined", "there"))
    assert lost < back
    assert 50 < row(outcome, "there").rounds_contributed < row(outcome, "here_0").rounds_contributed


def test_a_crashed_process_registers_again() -> None:
    nodes: list[dict[str, Any]] = [
        {"id": "a", "count": 3, "gpu": "T4"},
        {"id": "b", "gpu": "T4", "churn": {"up_seconds": 3, "down_seconds": 5}},
    ]
    outcome = simulate(scenario(nodes, rounds=100, policy="reactive"))
    assert outcome.state == "completed"
    assert 0 < row(outcome, "b").rounds_contributed < row(outcome, "a_0").rounds_contributed


def test_an_event_by_round_happens_when_the_round_begins() -> None:
    nodes = [{"id": "n", "gpu": "RTX-4090", "profile": "direct"}]
    compute = {"seconds_per_step": 0.1, "seconds_per_sample": 0.0, "spread": 0.0}
    worse = {"round": 5, "type": "profile_change", "node": "n", "profile": "poor"}
    outcome = simulate(scenario(nodes, compute=compute, events=[worse]))
    assert outcome.round_seconds[:4] == [pytest.approx(1.0)] * 4
    assert min(outcome.round_seconds[4:]) > 1.2


def test_a_target_is_timed_and_the_run_goes_on() -> None:
    outcome = simulate(scenario(target_accuracy=0.8))
    assert outcome.rounds == 8
    assert outcome.time_to_target_seconds is not None
    assert outcome.time_to_target_seconds < outcome.seconds
    nodes = [{"id": "n", "count": 4, "gpu": "T4", "setup_seconds": 100.0}]
    later = simulate(scenario(nodes, target_accuracy=0.8)).time_to_target_seconds
    assert later == pytest.approx(outcome.time_to_target_seconds, rel=0.2), "counted from the first round on"
    never = simulate(scenario(target_accuracy=0.999))
    assert never.time_to_target_seconds is None
    assert never.best_metric is not None
    assert never.best_metric == outcome.best_metric
    assert never.best_metric < 0.999


def test_a_large_model_travels_in_chunks() -> None:
    large = {"model_bytes": 40_000_000}
    outcome = simulate(scenario([{"id": "n", "gpu": "T4", "profile": "average"}], rounds=2, convergence=large))
    # 40 MB down at 200 Mbit/s and up at 50 take 1.6 and 6.4 s.
    assert 8.0 < outcome.round_seconds[0] < 9.5
    assert outcome.messages > 2 * 2 * 39


@pytest.mark.parametrize("loss_model", ["rpc", "transport"])
def test_a_star_costs_what_its_upstream_carries(loss_model: str) -> None:
    def seconds(count: int, **values: Any) -> float:
        nodes = [{"id": "n", "count": count, "gpu": "H100", "profile": "line"}]
        profiles = {"line": {"rtt_ms": 20, "bandwidth_mbit": 100}}
        outcome = simulate(
            scenario(
                nodes,
                profiles=profiles,
                loss_model=loss_model,
                convergence={"model_bytes": 4_000_000},
                rounds=3,
                config={"transfers": {"connections": 1}},
                **values,
            )
        )
        return outcome.seconds / outcome.rounds

    bandwidth = {"down_mbit": 200, "up_mbit": 100}
    free, few, many = seconds(40), seconds(10, upstream_bandwidth=bandwidth), seconds(40, upstream_bandwidth=bandwidth)
    assert free < 2
    assert few == pytest.approx(10 * 4 * 8 * (1 / 200 + 1 / 100), rel=0.15)
    assert many == pytest.approx(40 * 4 * 8 * (1 / 200 + 1 / 100), rel=0.08)


def test_a_run_is_compared_with_its_baseline_as_it_was_measured(tmp_path: Path) -> None:
    tested = scenario(policy="reactive", learning="real", rounds=2)
    simulate(tested, tmp_path / "run")
    links = {f"n_{index}": "good" for index in range(4)}
    found = compare_with_baseline(tmp_path / "run", links, out=tmp_path / "again")
    assert found.baseline.variant.policy == "none"
    assert found.candidates[0].result.variant.policy == "reactive"
    assert {"none", "reactive"} == {directory.name for directory in (tmp_path / "again").iterdir()}
    bests = [max(r["accuracy"] for r in read_rounds(tmp_path / "again" / policy)) for policy in ("none", "reactive")]
    assert (found.wanted, found.target) == (0.97, min(bests))
    assert min(bests) < 0.97  # neither of the two reached it, so that both are timed to what both reached
    assert None not in [
        o.time_to_target_seconds for r in (found.baseline, found.candidates[0].result) for o in r.outcomes
    ]


def test_the_monitor_hears_of_the_failures_that_a_node_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, int]] = []
    observe = NetworkQualityMonitor.observe_counters

    def listen(self: NetworkQualityMonitor, node_id: str, *, attempts: int, failures: int, **more: Any) -> None:
        heard.append((attempts, failures))
        observe(self, node_id, attempts=attempts, failures=failures, **more)

    monkeypatch.setattr(NetworkQualityMonitor, "observe_counters", listen)
    profiles = {"lossy": {"based_on": "good", "loss": 0.3}}
    simulate(scenario([{"id": "n", "gpu": "T4", "profile": "lossy"}], profiles=profiles, rounds=30))
    attempts, failures = heard[-1]
    assert failures > 0.15 * attempts


NEVER = [{"round": 3, "type": "partition", "nodes": ["n"]}]


def test_a_run_that_gets_nowhere_is_given_up_with_what_it_waits_for(tmp_path: Path) -> None:
    outcome = simulate(scenario(events=NEVER), tmp_path)
    assert outcome.given_up == "no round was closed for 2 h 00 min: waiting for 1 more node to join (0 connected)"
    assert (outcome.rounds, outcome.state) == (2, "stopped")
    assert outcome.trained_seconds < 10 < outcome.seconds <= 4 * 3600
    assert outcome.given_up in events(tmp_path)[-1]["text"]


def test_a_run_whose_transfers_take_hours_goes_on_while_they_move() -> None:
    """A round of 600 MB each way over 1 Mbit/s takes more than two hours."""
    profiles = {"slow": {"rtt_ms": [50, 50], "down": {"bandwidth_mbit": 1}, "up": {"bandwidth_mbit": 1}}}
    nodes = [{"id": "n", "gpu": "T4", "profile": "slow"}]
    convergence = {"model_bytes": 600_000_000}
    outcome = simulate(scenario(nodes, profiles=profiles, convergence=convergence, rounds=1, loss_model="rpc"))
    assert (outcome.state, outcome.given_up) == ("completed", "")
    assert max(outcome.round_seconds) > 2 * 3600


def test_a_run_without_a_finite_update_says_which() -> None:
    diverging = {"training": {"learning_rate": 1e9}}
    outcome = simulate(scenario([{"id": "n", "gpu": "T4"}], learning="real", config=diverging))
    assert "NonFiniteUpdate" in outcome.given_up and "lower the learning rate" in outcome.given_up


def test_a_run_waits_for_all_that_is_to_come() -> None:
    late = simulate(scenario([{"id": "n", "count": 2, "gpu": "T4", "join_delay_seconds": 50_000.0}]))
    cut = simulate(scenario(events=[{"round": 3, "type": "partition", "nodes": ["n"], "duration_seconds": 50_000}]))
    assert (late.state, cut.state) == ("completed", "completed")
    assert min(late.seconds, cut.seconds) > 50_000


def test_events_that_a_run_did_not_live_to_see_are_named() -> None:
    spike = {"type": "latency_spike", "node": "n_1"}
    outcome = simulate(scenario(events=[spike | {"round": 3}, spike | {"round": 50}, spike | {"at_seconds": 900}]))
    assert outcome.events_missed == ["round 50: latency_spike on n_1", "900 s: latency_spike on n_1"]


def test_a_broken_push_continues_with_what_is_missing() -> None:
    large = {"model_bytes": 40_000_000}
    nodes = [{"id": "n", "gpu": "T4", "profile": "average"}]
    whole = simulate(scenario(nodes, rounds=1, convergence=large))
    cut = {"at_seconds": 6, "type": "disconnect", "node": "n", "mode": "reset", "duration_seconds": 0.1}
    broken = simulate(scenario(nodes, rounds=1, convergence=large, events=[cut]))
    assert whole.round_seconds[0] < broken.round_seconds[0] < whole.round_seconds[0] + 2
    # In the middle of the upload: what was in the link's queue is sent twice, and what had arrived is not.
    assert 0 < row(broken, "n").bytes_up - row(whole, "n").bytes_up < 5_000_000
