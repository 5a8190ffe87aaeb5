"""Selection within a budget per hour."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.config import SelectorConfig
from hypergpu.common.node_terms import NodeTerms
from hypergpu.common.strategies import SelectionStrategy
from hypergpu.coordinator.core.links import NetworkQualityMonitor
from hypergpu.coordinator.core.selection import DynamicNodeSelector
from hypergpu.coordinator.core.selection.budget import affordable
from hypergpu.coordinator.core.selection.strategies import SelectionReason
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario


@given(
    st.lists(st.tuples(st.floats(0, 10), st.booleans()), min_size=1, max_size=10),
    st.floats(0.1, 30),
    st.randoms(use_true_random=False),
)
def test_what_is_kept_fits_the_budget_unless_the_user_includes_it(
    nodes: list[tuple[float, bool]], budget: float, draws: "np.random.Generator"
) -> None:
    prices, always = np.array([price for price, _ in nodes]), np.array([each for _, each in nodes])
    order = np.array(sorted(range(len(nodes)), key=lambda _: draws.random()))
    kept = affordable(order, prices, budget, always)
    assert kept[always].all()
    assert kept.any()
    assert kept[prices == 0].all()
    bought = kept & ~always & (prices > 0)
    alone = kept.sum() == 1 and prices[kept][0] == prices.min()
    assert not bought.any() or prices[kept].sum() <= budget + 1e-6 or alone
    left = budget - prices[kept].sum()
    assert not (prices[~kept] < left - 1e-6).any(), "what is left pays for none of the others"


def selector(budget: float | None, terms: dict[str, NodeTerms]) -> DynamicNodeSelector:
    monitor = NetworkQualityMonitor()
    config = SelectorConfig(budget_per_hour=budget, fairness_rounds=5)
    made = DynamicNodeSelector(monitor, SelectionStrategy.ALL_AVAILABLE, config=config)
    for node, each in terms.items():
        monitor.register_node(node)
        made.register_node(node)
        made.record_terms(node, each)
    return made


def test_higher_priority_goes_first_and_the_reason_has_both_figures() -> None:
    terms = {"a": NodeTerms(2.0, "low"), "b": NodeTerms(2.0, "high"), "c": NodeTerms(3.0), "free": NodeTerms()}
    made = selector(4.0, terms)
    assert set(made.select_nodes([*terms])) == {"a", "b", "free"}, "3 does not fit beside 2, and another 2 does"
    last = made.last_selection
    assert last is not None
    assert last.reasons["c"] is SelectionReason.BEYOND_THE_BUDGET
    assert last.figures_of("c") == {"price_per_hour": 3.0, "budget_per_hour": 4.0}
    assert set(selector(None, terms).select_nodes([*terms])) == set(terms)


def test_nobody_waits_forever_for_the_budget() -> None:
    terms = {f"n{number}": NodeTerms(1.0, "high" if number < 2 else "normal") for number in range(5)}
    made = selector(2.0, terms)
    taken = [node for _ in range(40) for node in made.select_nodes([*terms])]
    assert all(taken.count(node) >= 2 for node in terms)
    assert taken.count("n0") > taken.count("n4")


def simulated(budget: float | None) -> tuple[Outcome, float]:
    nodes = [
        {"id": "dear", "count": 2, "price_per_hour": 30.0, "gpu": "A100"},
        {"id": "cheap", "count": 4, "price_per_hour": 2.0, "gpu": "T4"},
    ]
    selector = {} if budget is None else {"budget_per_hour": budget}
    tree = {"task": "digits", "rounds": 20, "learning": "model", "nodes": nodes, "config": {"selector": selector}}
    outcome = simulate(Scenario.model_validate(tree | {"policy": "reactive"}))
    prices = {"dear": 30.0, "cheap": 2.0}
    hourly = sum(prices[node.node_id.split("_")[0]] * node.rounds_selected for node in outcome.nodes)
    return outcome, hourly / outcome.rounds


def test_a_simulated_run_keeps_to_the_budget() -> None:
    assert simulated(40.0)[1] <= 40.0 + 1e-6
    assert simulated(8.0)[1] <= 8.0 + 1e-6
    assert simulated(None)[1] > 40.0


def test_what_a_node_has_cost_is_its_price_for_the_time() -> None:
    assert math.isclose(NodeTerms(3.6).spent(10.0), 0.01)
