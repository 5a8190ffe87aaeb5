"""The same run with everything slower or faster: the same decisions, at times that differ by the same factor.

Rounds take from 10 ms to an hour. Links, cards, events and the configured periods of heartbeats, polls and back-offs
are scaled by one factor. Times that are not configured, and do not scale, are listed in `ABSOLUTE`.
"""

import json
from math import log
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from hypergpu.coordinator.core.links import rates
from hypergpu.coordinator.core.rounds import closing, deadlines, opening
from hypergpu.node.core import timeouts
from hypergpu.simulation import rpc
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario

FACTORS = {"10 ms": 2.0**-9, "1 min": 2.0**4, "1 h": 2.0**10}
"""Factor of all times, by about the duration of a round; with a factor of 1 a round takes about 5 s. A power of two
scales floats exactly."""

ABSOLUTE = (
    (deadlines, "MIN_SLACK_SECONDS"),  # delays of timers and of processes on one machine
    (closing, "MIN_SLACK_SECONDS"),
    (deadlines, "FIRST_DEADLINE_SECONDS"),  # before anything is measured, processes start and load their data
    (opening, "MIN_READY_WAIT_SECONDS"),
    (deadlines, "MAX_EMPTY_ROUND_SECONDS"),  # a day
    (closing, "MAX_EMPTY_ROUND_SECONDS"),
    (opening, "RETRY_SECONDS"),  # a person waits for the run to go on
    (opening, "MAX_RETRY_SECONDS"),
    (timeouts, "_MIN_HEARTBEAT_TIMEOUT_SECONDS"),  # TCP retransmits for seconds on any link
    (rpc, "SILENCE_SECONDS"),  # keepalive of gRPC
    (rates, "_CLOCK_SECONDS"),  # resolution of an event loop
)
"""Times that are the same whatever a round takes, and why."""


def scenario(factor: float, policy: str) -> Scenario:
    """Return six nodes: slow links and cards, one that crashes, a latency spike and an outage."""

    def link(least_ms: float, most_ms: float, down_mbit: float, up_mbit: float) -> dict[str, Any]:
        queue = {"queue_bytes": 1 << 20}
        return {
            "rtt_ms": [least_ms * factor, most_ms * factor],
            "down": {"bandwidth_mbit": down_mbit / factor, **queue},
            "up": {"bandwidth_mbit": up_mbit / factor, **queue},
        }

    tree = {
        "name": "scale",
        "learning": "model",
        "loss_model": "rpc",
        "rounds": 40,
        "policy": policy,
        "seed": 2,
        "profiles": {"near": link(40, 60, 20, 8), "far": link(90, 120, 2, 1)},
        "compute": {"seconds_per_step": 0.002 * factor, "seconds_per_sample": 0.0002 * factor},
        "convergence": {"model_bytes": 200_000},
        "evaluation_seconds": 0.02 * factor,
        "handling_seconds": 0.005 * factor,
        "nodes": [
            {"id": "near", "count": 3, "gpu": "T4", "profile": "near"},
            {"id": "far", "gpu": "T4", "profile": "far"},
            {"id": "slow", "gpu": "laptop-cpu", "profile": "near"},
            {
                "id": "crashing",
                "gpu": "T4",
                "profile": "near",
                "churn": {"up_seconds": 6 * factor, "down_seconds": 2 * factor},
            },
        ],
        "events": [
            {
                "at_seconds": 8 * factor,
                "type": "latency_spike",
                "nodes": ["near_1"],
                "duration_seconds": 10 * factor,
                "added_ms": 900 * factor,
            },
            {"at_seconds": 14 * factor, "type": "disconnect", "nodes": ["near_2"], "duration_seconds": 4 * factor},
        ],
        "config": {
            "transfers": {
                "connections": 1
            },  # the choice leaves out transfers below TCP's least timeout, which is absolute
            "server": {"heartbeat_seconds": 0.5 * factor},
            "monitor": {
                "best_latency_ms": 5 * factor,
                "worst_latency_ms": 500 * factor,
                "offline_after_seconds": 7.5 * factor,
                "update_interval_seconds": 5 * factor,
            },
            "node": {
                "backoff_base_seconds": 0.1 * factor,
                "backoff_cap_seconds": 5 * factor,
                "pull_wait_seconds": 20 * factor,
                "grace_seconds": 10 * factor,
            },
            "selector": {"quarantine_after_failures": 2, "quarantine_rounds": 2, "fairness_rounds": 5},
        },
    }
    return Scenario.model_validate(tree)


def story(factor: float, policy: str, out: Path) -> list[tuple[float, tuple[Any, ...]]]:
    """Return what happened: the time ÷ factor, and what it was, with the figures of a decision that are no times."""
    simulate(scenario(factor, policy), out)
    told = []
    for line in (out / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        figures = {name: value for name, value in event.get("figures", {}).items() if not is_time(name)}
        about = event["text"].split()[0] if event["kind"] == "decision" else event["kind"]
        reason = "" if event["kind"] == "node_lost" else event.get("reason")  # it names seconds
        what = (about, event["round"], event.get("subject"), event.get("node"), reason, rounded(figures))
        told.append((event["seconds"] / factor, what))
    return told


def is_time(name: str) -> bool:
    return "seconds" in name or "_ms" in name or name == "because"


def rounded(figures: dict[str, Any]) -> str:
    return str({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in figures.items()})


@pytest.mark.parametrize("policy", ["reactive", "none"])
@pytest.mark.parametrize("duration", FACTORS)
def test_decisions_are_the_same_whatever_a_round_takes(
    duration: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = story(1.0, policy, tmp_path / "usual")
    factor = FACTORS[duration]
    for module, name in ABSOLUTE:
        monkeypatch.setattr(module, name, factor * getattr(module, name))
    scaled = story(factor, policy, tmp_path / "scaled")
    assert [what for _, what in scaled] == [what for _, what in usual]
    times = [at for at, _ in usual]
    assert [at for at, _ in scaled] == pytest.approx(
        times, abs=2e-6 * max(1.0, 1.0 / factor)
    )  # written in microseconds
    kinds = (
        {"quarantine", "selection", "batch_size", "local_steps", "deadline"} if policy == "reactive" else {"deadline"}
    )
    assert kinds <= {about for _, (about, *_) in usual}


@pytest.mark.parametrize("policy", ["reactive", "none"])
@pytest.mark.parametrize(("duration", "most"), [("10 ms", 1.3), ("1 min", 1.05), ("1 h", 1.05)])
def test_what_does_not_scale_costs_little(duration: str, most: float, policy: str) -> None:
    """A round of 10 ms is extended by 50 ms for a node that usually takes less: timers are not more exact.

    One round that ends at another time changes what a run meets from then on, so that the mean of several is bounded.
    """
    assert fmean(log(ratio_of_times(duration, policy, seed)) for seed in range(1, 6)) <= log(most)


def ratio_of_times(duration: str, policy: str, seed: int) -> float:
    """Return the time of the scaled run in units of its factor, divided by the time of the usual run."""
    factor = FACTORS[duration]
    usual, scaled = (simulate(scenario(of, policy).model_copy(update={"seed": seed})) for of in (1.0, factor))
    assert (scaled.state, scaled.rounds) == ("completed", 40)
    return scaled.seconds / factor / usual.seconds
