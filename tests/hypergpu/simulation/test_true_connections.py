"""Numbers of connections that simulated runs choose, against what their links can carry."""

from functools import cache
from typing import Any

import pytest

from hypergpu.simulation.scenario import Scenario
from tests.hypergpu.simulation.test_true_figures import Decided, Records, records
from tests.hypergpu.simulation.test_true_reasons import event, nodes

MBIT = 20.0
CLEAN = {"rtt_ms": [60, 60], "down": {"bandwidth_mbit": MBIT}, "up": {"bandwidth_mbit": MBIT}}
PROFILES = {"clean": CLEAN, "lossy": CLEAN | {"loss": 0.01}}
"""One connection carries about 2.4 Mbit/s over the lossy one: 1.22 · 1,448 bytes / (0.06 s · √0.01)."""


@cache
def run(
    profile: str,
    policy: str = "reactive",
    model_bytes: int = 4_000_000,
    collapse_at: float = 0.0,
    connections: int | str = "auto",
) -> Records:
    tree: dict[str, Any] = {
        "learning": "model",
        "loss_model": "transport",
        "rounds": 40 if collapse_at else 12,
        "policy": policy,
        "seed": 1,
    }
    tree |= {"name": profile, "profiles": PROFILES, "nodes": [nodes("n", 2, profile)]}
    tree |= {"compute": {"seconds_per_step": 0.002, "seconds_per_sample": 0.00002}}
    tree["config"] = {"transfers": {"connections": connections}}
    tree["convergence"] = {"model_bytes": model_bytes}
    if collapse_at:
        tree["events"] = [event("bandwidth_collapse", collapse_at, 0.0, "n_0", factor=0.3)]
    return records(Scenario.model_validate(tree))


def decided(found: Records) -> dict[tuple[str, str], list[Decided]]:
    """Decisions by node and direction, after the one before the first round."""
    by: dict[tuple[str, str], list[Decided]] = {}
    for each in found.of("connections"):
        if each.reason != "rate_not_measured":
            by.setdefault((each.subject, each.figures["direction"]), []).append(each)
    return by


def test_a_lossy_line_keeps_many_connections_because_they_carry_more() -> None:
    found = run("lossy")
    by = decided(found)
    assert len(by) == 4
    for (node, direction), chosen in by.items():
        assert {each.reason for each in chosen} <= {"fewer_may_suffice", "fewer_suffice", "fewer_are_slower"}
        assert found.rounds[12][f"connections_{direction}"][node] >= 8


def test_a_clean_line_needs_few_connections_because_more_carry_no_more() -> None:
    found = run("clean")
    by = decided(found)
    assert len(by) == 4
    for (node, direction), chosen in by.items():
        assert chosen[0].figures["mbit"] > 0.6 * MBIT, "16 connections fill it, but for their slow starts"
        told = [(each.reason, each.figures["to"]) for each in chosen]
        assert told[:3] == [("fewer_may_suffice", 8), ("fewer_suffice", 4), ("fewer_suffice", 2)]
        assert found.rounds[12][f"connections_{direction}"][node] <= 2
        assert min(each.figures["gain"] for each in chosen[1:]) > 0.9


@pytest.mark.parametrize("profile", ["lossy", "clean"])
def test_figures_and_verdicts_agree_and_each_number_follows_from_the_one_before(profile: str) -> None:
    for chosen in decided(run(profile)).values():
        count = 16
        for each in chosen:
            figures = each.figures
            assert figures["from"] == count, each
            assert 0.0 < figures["mbit"] < 1.1 * MBIT, each
            if each.reason == "gained":
                assert figures["gain"] > 1.1 and figures["from"] > figures["compared_with"], each
            elif each.reason == "fewer_suffice":
                assert figures["gain"] > 1 / 1.1 and figures["from"] < figures["compared_with"], each
            elif each.reason == "fewer_are_slower":
                assert figures["gain"] < 1 / 1.1 and figures["to"] == figures["compared_with"], each
            count = figures["to"]


def test_transfers_on_a_lossy_line_are_several_times_as_fast_as_over_one_connection() -> None:
    fixed, chosen = (waiting(run("lossy", connections=each)) for each in (1, "auto"))
    assert chosen[1] < 0.4 * fixed[1], "the first round too"
    assert chosen[12] < 0.25 * fixed[12]


def waiting(found: Records) -> dict[int, float]:
    """Longest communication of each round."""
    return {number: max(row["waiting_seconds"].values()) for number, row in found.rounds.items()}


def test_nothing_is_chosen_without_adaptation() -> None:
    assert decided(run("lossy", "none")) == {}


def test_nothing_is_chosen_for_a_model_of_one_chunk() -> None:
    assert decided(run("lossy", model_bytes=60_000)) == {}


def test_a_collapse_is_the_reason_of_a_new_search_on_its_link_only() -> None:
    found = run("clean", collapse_at=152.5)
    changed = [each for each in found.of("connections") if each.reason == "link_changed"]
    assert {each.subject for each in changed} == {"n_0"}
    assert all(found.rounds[each.round - 1]["ended_seconds"] > 152.5 for each in changed)
    assert all(each.figures["mbit"] < 0.35 * MBIT for each in changed)
