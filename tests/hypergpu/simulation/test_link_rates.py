"""The rates of links, measured from the transfers of simulated runs, against the configured bandwidths."""

from typing import Any

import pytest

from hypergpu.coordinator.core.links.profile import LinkProfile
from hypergpu.simulation.scenario import Scenario
from tests.hypergpu.simulation.truth import observe

DOWN_TO_UP = 4.0
"""Bandwidth to the nodes, in times of that from them."""


def profiles_by_round(mbit: float, model_bytes: int, **changes: Any) -> list[LinkProfile]:
    """Return the profile of a link after each round of a run over links with this bandwidth from the nodes."""
    path = {"based_on": "good", "rtt_ms": 40, "loss": changes.pop("loss", 0.0)}
    directions = {"up": {"bandwidth_mbit": mbit}, "down": {"bandwidth_mbit": DOWN_TO_UP * mbit}}
    tree = {
        "task": "digits",
        "learning": "model",
        "rounds": 5,
        "seed": 1,
        "policy": "none",
        "convergence": {"model_bytes": model_bytes},
        "profiles": {"x": path | directions},
        "nodes": [{"id": "n", "count": 2, "gpu": ["A100"], "profile": ["x"]}],
    }
    observed = observe(Scenario.model_validate(tree | changes))
    return [judgement.profiles[0] for judgement in observed.judgements[1:]]


@pytest.mark.parametrize(("loss_model", "share"), [("rpc", 1.0), ("transport", 1448 / 1500)])
@pytest.mark.parametrize("mbit", [0.5, 8.0, 50.0])
def test_a_rate_is_near_the_bandwidth(mbit: float, loss_model: str, share: float) -> None:
    # Headers of packets take a share of the bandwidth: payload is what the rate counts.
    after = profiles_by_round(mbit, 6_000_000, loss_model=loss_model)
    for at, tolerance in ((0, 0.25), (2, 0.10), (-1, 0.05)):
        for found, configured in ((after[at].up_mbit, mbit), (after[at].down_mbit, DOWN_TO_UP * mbit)):
            assert found == pytest.approx(share * configured, rel=tolerance), (at, configured)


def test_a_window_that_grows_for_most_of_a_transfer_shows_what_was_achieved() -> None:
    after = profiles_by_round(250.0, 8_000_000, loss_model="transport")  # 1,000 Mbit/s × 40 ms is 5 MB
    assert after[0].down_least_mbit <= 1000.0
    assert not after[0].down_mbit > 1000.0
    assert after[-1].up_mbit == pytest.approx(250.0, rel=0.1)


def test_a_model_of_44_megabytes_measures_1000_mbit() -> None:
    after = profiles_by_round(250.0, 44_000_000, loss_model="transport")
    assert after[0].down_mbit == pytest.approx(1000.0, rel=0.25)
    assert after[2].down_mbit == pytest.approx(1000.0, rel=0.1)


@pytest.mark.parametrize("mbit", [0.5, 2.0, 20.0, 250.0])
def test_packet_loss_of_1_percent_leaves_what_tcp_achieves(mbit: float) -> None:
    after = profiles_by_round(mbit, 8_000_000, loss_model="transport", loss=0.01)
    # Mathis et al., "The macroscopic behavior of the TCP congestion avoidance algorithm" (1997): MSS / r · √(3/2) / √p
    reno = 8e-6 * 1448 / 0.04 * 1.22 / 0.1
    for rate in (after[2].up_mbit, after[-1].up_mbit):
        assert 0.7 * min(reno, mbit) <= rate <= min(1.5 * reno, mbit), "CUBIC keeps a window somewhat above Reno's"


def test_a_model_of_a_few_packets_gives_a_lower_bound_only() -> None:
    for profile in profiles_by_round(100.0, 12_000, loss_model="transport"):
        assert not profile.up_mbit > 0.0
        assert 0.1 <= profile.up_least_mbit <= 100.0


def test_a_collapse_of_the_bandwidth_is_seen_within_two_rounds() -> None:
    tree = {
        "task": "digits",
        "learning": "model",
        "rounds": 12,
        "seed": 1,
        "policy": "none",
        "convergence": {"model_bytes": 4_000_000},
        "profiles": {"x": {"based_on": "good", "rtt_ms": 40, "loss": 0.0, "bandwidth_mbit": 20.0}},
        "nodes": [{"id": "n", "count": 2, "gpu": ["A100"], "profile": ["x"]}],
        "events": [{"type": "bandwidth_collapse", "round": 6, "factor": 0.1, "node": "*"}],
        "loss_model": "transport",
    }
    after = [judgement.profiles[0] for judgement in observe(Scenario.model_validate(tree)).judgements[1:]]
    assert [round(each.up_mbit) for each in after[2:5]] == [19, 19, 19]
    for profile in after[6:]:  # round 6 and 7 were slow
        assert profile.up_mbit == pytest.approx(2.0, rel=0.1)
        assert profile.down_mbit == pytest.approx(2.0, rel=0.1)
