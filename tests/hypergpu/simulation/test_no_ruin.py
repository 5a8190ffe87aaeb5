"""No policy ruins a run: real gradients, at learning rates from too low to far beyond what is stable."""

from functools import cache

import pytest

from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario

RATES = (0.01, 0.05, 0.2, 0.8, 3.0)
POLICIES = [str(policy) for policy in AdaptationPolicy if policy is not AdaptationPolicy.NONE]
HALF_A_POINT = 0.005


@cache
def outcome(policy: str, rate: float, seed: int = 0) -> Outcome:
    training = {"learning_rate": rate, "seed": seed}
    scenario = Scenario.model_validate(
        {
            "nodes": [{"id": "n", "count": 6, "gpu": "T4", "profile": "good"}],
            "task": "digits",
            "rounds": 14,
            "policy": policy,
            "seed": seed,
            "config": {"training": training},
        }
    )
    return simulate(scenario)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_ends_worse_than_none_at_any_learning_rate(policy: str, rate: float) -> None:
    plain, adapted = outcome("none", rate), outcome(policy, rate)
    assert adapted.final_metric is not None
    assert adapted.final_metric >= (plain.final_metric or 0.0) - HALF_A_POINT
    assert adapted.reason == "rounds_done", "divergence ends no run"


def test_a_rate_beyond_what_is_stable_is_left_and_the_run_learns() -> None:
    plain, adapted = outcome("none", 3.0), outcome("reactive", 3.0)
    assert (plain.final_metric or 0.0) < 0.5, "the rate ruins a run without adaptation"
    assert (adapted.final_metric or 0.0) > 0.9
