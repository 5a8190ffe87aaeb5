"""Rounds whose sums do not depend on the order of arrival, and which wait for every node."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from hypergpu.common.config import SystemConfig
from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.tensors import Manifest, TensorSpec
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.spill import MemoryFirst

SIZE = 1000
NODES = ("a", "b", "c", "d")


def update_of(node: str) -> Any:
    draws = np.random.default_rng(list(node.encode()))
    return (draws.normal(size=SIZE) * 10.0 ** draws.integers(-6, 6, SIZE)).astype(np.float32)


def stepped(order: tuple[str, ...], *, deterministic: bool) -> bytes:
    config = TrainingConfig(quorum=1.0, deterministic=deterministic)
    model = GlobalModel(Manifest((TensorSpec("w", (SIZE,)),)), np.zeros(SIZE, np.float32), SIZE, config)
    model.begin_round(1)
    for node in order:
        model.add(update_of(node).view(np.uint8), "none", 3.0, None, node)
    assert model.step()
    return model.values.tobytes()


def test_the_order_of_arrival_changes_no_bit() -> None:
    orders = list(permutations(NODES))
    assert len({stepped(order, deterministic=True) for order in orders}) == 1
    assert len({stepped(order, deterministic=False) for order in orders}) > 1, "these updates would show it"


def test_an_abandoned_round_leaves_nothing_behind() -> None:
    config = TrainingConfig(quorum=1.0, deterministic=True)
    model = GlobalModel(Manifest((TensorSpec("w", (SIZE,)),)), np.zeros(SIZE, np.float32), SIZE, config)
    model.begin_round(1)
    model.add(update_of("a").view(np.uint8), "none", 3.0, None, "a")
    model.discard()
    assert model.step()
    assert not model.values.any()


def test_held_updates_go_to_the_disk_beyond_a_limit_and_free_what_they_took(tmp_path: Path) -> None:
    allocate = MemoryFirst(tmp_path, 100)
    first = allocate(80)
    second = allocate(80)
    assert first.base is None
    assert second.base is not None, "on the disk"
    del first
    assert allocate(80).base is None


@pytest.mark.parametrize(
    ("training", "others", "fault"),
    [
        ({}, {}, "quorum 1.0"),
        ({"quorum": 1.0, "mode": "late"}, {}, "mode sync"),
        ({"quorum": 1.0, "close_share": 0.5}, {}, "close_share 1.0"),
        ({"quorum": 1.0}, {}, "orchestrator.policy none"),
        ({"quorum": 1.0}, {"orchestrator": {"policy": "none"}, "compression": {"strategy": "fixed"}}, "compression"),
    ],
)
def test_settings_that_would_break_it_are_refused(training: Any, others: Any, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        SystemConfig.model_validate({"training": {"deterministic": True, **training}, **others})


def test_settings_that_keep_it() -> None:
    tree = {"training": {"deterministic": True, "quorum": 1.0}, "orchestrator": {"policy": "none"}}
    assert SystemConfig.model_validate(tree).training.deterministic
