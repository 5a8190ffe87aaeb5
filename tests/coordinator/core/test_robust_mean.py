"""The robust rules equal ByzFL's, and the robust mean of a round bears hostile nodes with memory by buckets."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypergpu.common.config import SystemConfig
from hypergpu.common.config.aggregation import AggregationConfig
from hypergpu.common.config.loading import parse
from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.errors import ConfigError
from hypergpu.common.tensors import Flat, Manifest, TensorSpec
from hypergpu.coordinator.core.model import robust_mean as rm
from hypergpu.coordinator.core.model import robust_rules as rules
from hypergpu.coordinator.core.model.global_model import GlobalModel

CASES = json.loads((Path(__file__).parent / "byzfl_vectors.json").read_text(encoding="utf-8"))
ROBUST = ("trimmed_mean", "median", "multi_krum", "centered_clipping", "geometric_median")
SIZE = 2 * rm.BLOCK + 17


def config(rule: str = "trimmed_mean", byzantine: int = 1, buckets: int = 9, **more: Any) -> AggregationConfig:
    return parse(AggregationConfig, {"rule": rule, "byzantine": byzantine, "buckets": buckets, **more}, where="here")


def vectors_of(case: dict[str, Any]) -> list[Flat]:
    return [np.array(row, np.float32) for row in case["vectors"]]


def products_of(vectors: Flat) -> rules.Matrix:
    return rules.inner_products(iter([vectors]), len(vectors))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['vectors'])} vectors")
@pytest.mark.parametrize("rule", ["trimmed_mean", "median", "multi_krum"])
@pytest.mark.parametrize("mixed", [False, True])
def test_rules_without_further_settings_equal_those_of_byzfl(case: dict[str, Any], rule: str, mixed: bool) -> None:
    found = rm.robust_mean(
        vectors_of(case), config(rule, case["byzantine"], 4 * case["byzantine"] + 1, nearest_neighbors=mixed)
    )
    assert found == pytest.approx(np.array(case["expected"]["nnm " * mixed + rule]), abs=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case['vectors'])} vectors")
@pytest.mark.parametrize("mixed", [False, True])
def test_rules_with_further_settings_equal_those_of_byzfl(case: dict[str, Any], mixed: bool) -> None:
    vectors, expected = np.stack(vectors_of(case)), case["expected"]
    count = len(vectors)
    mixing = rules.nearest_neighbor_weights(
        rules.squared_distances(products_of(vectors))[:count, :count], case["byzantine"]
    )
    assert mixing @ vectors == pytest.approx(np.array(expected["nnm"]), abs=1e-5)
    if mixed:
        vectors = (mixing @ vectors).astype(np.float32)
    products, prefix = products_of(vectors), "nnm " * mixed
    median = rules.geometric_median_weights(products, 0.1, 3) @ vectors
    assert median == pytest.approx(np.array(expected[f"{prefix}geometric_median"]), abs=1e-5)
    clipped = rules.clipping_weights(products, np.eye(count + 1)[count - 1], 0.5, 3) @ vectors
    assert clipped == pytest.approx(np.array(expected[f"{prefix}centered_clipping"]), abs=1e-5)


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("mixed", [False, True])
def test_a_rule_bears_its_hostile_nodes_and_costs_honest_ones_little(rule: str, mixed: bool) -> None:
    random = np.random.default_rng(0)
    truth = random.standard_normal(SIZE).astype(np.float32)
    honest = [truth + 0.3 * random.standard_normal(SIZE).astype(np.float32) for _ in range(8)]
    hostile = [-20 * truth, 1e6 * random.standard_normal(SIZE).astype(np.float32)]
    settings = config(rule, 2, 10, nearest_neighbors=mixed)
    for vectors, most in (([*honest, *hostile], 0.35), (honest, 0.2)):
        found = rm.robust_mean([vector.copy() for vector in vectors], settings)
        assert np.linalg.norm(found - truth) < most * np.linalg.norm(truth)


@pytest.mark.parametrize("rule", ROBUST)
def test_values_at_the_end_of_the_range_are_borne(rule: str) -> None:
    hostile = np.array([3e38, -3e38, 3e38], np.float32), np.array([np.inf, np.nan, 0], np.float32)
    vectors = [np.array([1, 2, 3], np.float32) for _ in range(7)]
    assert rm.robust_mean([*hostile, *vectors], config(rule, 2)) == pytest.approx([1, 2, 3], rel=1e-3)


@pytest.mark.parametrize("rule", ROBUST)
def test_vectors_that_are_all_the_same_stay_as_they_are(rule: str) -> None:
    same = np.full(5, 0.25, np.float32)
    for each in (same, np.zeros(5, np.float32)):
        assert rm.robust_mean([each.copy() for _ in range(9)], config(rule, 2)) == pytest.approx(each, abs=1e-7)


def test_nodes_are_dealt_over_the_buckets_evenly_and_anew_in_each_round() -> None:
    nodes = [f"node_{n}" for n in range(50)]
    buckets = rm.Buckets(8, seed=3)
    rounds = []
    for number in (1, 2):
        buckets.begin_round(number, nodes)
        rounds.append([buckets.of(node) for node in nodes])
        assert set(Counter(rounds[-1]).values()) == {6, 7}
    assert rounds[0] != rounds[1]
    again = rm.Buckets(8, seed=3)
    again.begin_round(1, nodes[::-1])
    assert [again.of(node) for node in nodes] == rounds[0]


def test_each_node_has_its_own_bucket_where_there_are_enough_and_latecomers_get_an_empty_one() -> None:
    buckets = rm.Buckets(8, seed=0)
    buckets.begin_round(1, ["a", "b", "c"])
    found = [buckets.of(node) for node in ("late_1", "a", "b", "c", "late_2", "late_1")]
    assert len(set(found)) == 5
    assert found[0] == found[-1]
    assert all(0 <= buckets.of(f"more_{n}") < 8 for n in range(20))


def model(aggregation: AggregationConfig, size: int = 3, **training: Any) -> GlobalModel:
    manifest = Manifest((TensorSpec("w", (size,)),))
    return GlobalModel(manifest, np.zeros(size, np.float32), size, TrainingConfig(**training), aggregation)


def payload(*values: float) -> "np.typing.NDArray[np.uint8]":
    return np.array(values, np.float32).view(np.uint8)


def test_one_hostile_node_of_five_does_not_move_the_model() -> None:
    found = model(config())
    nodes = [f"node_{n}" for n in range(5)]
    for number in (1, 2, 3):
        found.begin_round(number, nodes)
        for node in nodes:
            found.add(payload(*((1e9, -1e9, 0) if node == "node_3" else (1, 1, 1))), "none", 10, node=node)
        assert found.step()
        assert found.values == pytest.approx(number)
        assert found.update_norms is not None
        assert found.update_norms[1] == pytest.approx(3.0)


def test_weights_count_within_a_bucket_and_buckets_count_the_same() -> None:
    settings = config("median", 1, 5, nearest_neighbors=False)
    found = rm.BucketedMean(1, settings)
    for bucket, value, weight in ((0, 1.0, 1), (0, 4.0, 3), (1, 2.0, 1000), (2, 3.5, 1)):
        found.bucket = bucket
        found.add_parts([(0, np.array([value], np.float32))], weight)
    assert [bucket.weight for bucket in found.filled] == [4, 1000, 1]
    assert found.count == 4
    assert found.take() == pytest.approx(3.25)  # the mean of the first bucket is the median of 3.25, 2 and 3.5


def test_a_round_with_too_few_updates_takes_no_step_and_says_why() -> None:
    found = model(config(byzantine=2))
    found.begin_round(1, ["a", "b", "c", "d"])
    for node in "abcd":
        found.add(payload(1, 2, 3), "none", 1, node=node)
    assert not found.step()
    assert found.step_fault == "4 updates, and 5 are needed to bear 2 hostile nodes"
    assert not found.values.any()
    found.begin_round(2, ["a"])
    assert found.step(), "updates of the round before are gone, and a round of trials alone takes no step"


def test_fragments_have_means_of_their_own() -> None:
    manifest = Manifest((TensorSpec("a", (2,)), TensorSpec("b", (2,))))
    training = TrainingConfig(fragments=2)
    found = GlobalModel(manifest, np.zeros(4, np.float32), 4, training, config())
    nodes = ["a", "b", "c", "d", "e"]
    for number in (1, 2):
        found.begin_round(number, nodes)
        for node in nodes:
            found.add(payload(*((9e9, 9e9) if node == "a" else (number, number))), "none", 1, node=node)
        assert found.step()
    assert sorted(found.values) == pytest.approx([1, 1, 2, 2])


def test_late_updates_count_less_within_their_bucket() -> None:
    found = model(config("median", 1, 5, nearest_neighbors=False), 1, mode="late")
    found.begin_round(2, ["a", "b"])
    for node, value, late in (("a", 1.0, None), ("b", 2.0, None), ("c", 3.0, (1, 3))):
        found.add(payload(value), "none", 1, late, node)
    assert found.step()
    assert found.values == pytest.approx(1.5), "3 / √(1 + 3) is the middle one"


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"rule": "trimmed_mean"}, "needs byzantine"),
        ({"byzantine": 1}, "needs a robust rule"),
        ({"rule": "median", "byzantine": 4}, "needs more than 16 buckets, not 16"),
        ({"rule": "krum", "byzantine": 1}, "rule"),
    ],
)
def test_a_rule_without_its_condition_is_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        parse(SystemConfig, {"aggregation": settings}, where="here")


def test_a_buffer_too_small_for_the_rule_is_refused() -> None:
    tree = {"training": {"mode": "buffered", "buffer_size": 4}, "aggregation": {"rule": "median", "byzantine": 2}}
    with pytest.raises(ConfigError, match="buffer_size 4"):
        parse(SystemConfig, tree, where="here")


def test_a_warning_names_what_skewed_data_costs_each_rule() -> None:
    def warning(partition: str, **aggregation: Any) -> str:
        tree = {"training": {"partition": partition}, "aggregation": aggregation}
        return parse(SystemConfig, tree, where="here").aggregation_warning

    robust = {"rule": "multi_krum", "byzantine": 1}
    assert warning("iid", **robust) == warning("local") == ""
    assert "multi_krum" in warning("dirichlet", **robust)
    assert "nearest_neighbors" in warning("local", **robust, nearest_neighbors=False)
