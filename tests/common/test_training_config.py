"""Settings of the training: recipes, the course of the learning rate, and what does not go together."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.config import SystemConfig, TrainingConfig
from hypergpu.common.config.loading import load_config
from hypergpu.common.config.recipes import RECIPES
from hypergpu.common.errors import ConfigError
from hypergpu.common.local_optimizer import LocalOptimizer, LocalSettings


def training(*settings: str) -> TrainingConfig:
    return load_config(SystemConfig, overrides=[f"training.{setting}" for setting in settings]).training


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_what_it_is_known_for_and_a_setting_beside_it_holds(name: str) -> None:
    found = training(f"recipe={name}")
    assert {key: getattr(found, key) for key in RECIPES[name]} == RECIPES[name]
    assert training(f"recipe={name}", "learning_rate=0.3", "local_steps=7").learning_rate == 0.3
    assert training(f"recipe={name}", "local_steps=7").local_steps == 7


def test_the_recipe_of_diloco_is_that_of_its_paper() -> None:
    found = training("recipe=diloco")
    assert (found.local_optimizer, found.local_steps) == ("adamw", 100)
    assert (found.server_learning_rate, found.server_momentum, found.server_nesterov) == (0.7, 0.9, True)
    assert found.local_settings == LocalSettings(keeps_state=True)


def test_a_configuration_that_is_written_and_read_keeps_a_recipe_and_what_overrode_it() -> None:
    found = training("recipe=diloco", "local_steps=7", "server_momentum=0.5")
    assert TrainingConfig.model_validate(found.model_dump()) == found


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["recipe=dilocco"], "recipe"),
        (["recipe=diloco", "local_steps=1"], "local_optimizer adamw needs more than one local step"),
        (["local_optimizer=muon", "local_steps=1"], "local_optimizer muon needs more than one local step"),
        (["local_momentum=0.9", "local_steps=1"], "local_momentum needs more than one local step"),
        (["proximal=0.1", "local_steps=1"], "proximal needs more than one local step"),
        (["weight_decay=0.1", "local_steps=1"], "weight_decay needs more than one local step"),
        (["local_state=kept", "local_steps=1"], "local_state needs more than one local step"),
        (["local_nesterov=true"], "local_nesterov needs a local_momentum above 0"),
        (["local_momentum=0.9", "local_optimizer=adamw"], "local_momentum is that of local_optimizer sgd; adamw has"),
        (["server_momentum=0.9", "server_optimizer=yogi"], "server_momentum is that of server_optimizer sgd; yogi has"),
        (["learning_rate_schedule=cosine", "rounds=0"], "cosine needs a number of rounds"),
        (["mode=buffered", "partition=local"], "choose mode sync or late"),
        (["warmup_rounds=25", "rounds=25"], "warmup_rounds is 25; a run of 25 rounds has fewer"),
        (["clip_norm=0"], "clip_norm"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        training(*settings)


def rates(**settings: object) -> list[float]:
    config = TrainingConfig.model_validate({"rounds": 8, **settings})
    return [config.optimizer_at(LocalOptimizer("sgd", 2.0), number).learning_rate for number in range(1, 9)]


def test_the_learning_rate_stays_rises_or_falls_as_configured() -> None:
    assert rates() == [2.0] * 8
    assert rates(warmup_rounds=3) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]
    falling = rates(learning_rate_schedule="cosine")
    assert falling == pytest.approx([1.0 + math.cos(math.pi * number / 8) for number in range(8)])
    both = rates(learning_rate_schedule="cosine", warmup_rounds=3)
    assert both[:4] == [0.5, 1.0, 1.5, 2.0]
    assert both[4:] == pytest.approx([1.0 + math.cos(math.pi * number / 5) for number in range(1, 5)])


@given(st.integers(1, 300), st.data())
def test_the_learning_rate_is_never_zero_nor_above_the_configured_one(rounds: int, data: st.DataObject) -> None:
    config = TrainingConfig(
        rounds=rounds,
        learning_rate_schedule=data.draw(st.sampled_from(("constant", "cosine"))),
        warmup_rounds=data.draw(st.integers(0, rounds - 1)),
    )
    number = data.draw(st.integers(1, rounds))
    assert 0 < config.optimizer_at(LocalOptimizer("sgd", 0.1), number).learning_rate <= 0.1


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"local_steps": 1}, "fragments 2 needs more than one local step"),
        ({"mode": "late"}, "fragments 2 needs mode sync, not late"),
        ({"mode": "buffered"}, "fragments 2 needs mode sync, not buffered"),
    ],
    ids=str,
)
def test_fragments_need_rounds_that_they_can_share(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        TrainingConfig.model_validate({"fragments": 2, **settings})


def test_fragments_take_turns() -> None:
    assert [TrainingConfig(fragments=3).fragment_of(number) for number in range(1, 7)] == [1, 2, 0, 1, 2, 0]
    assert TrainingConfig().fragment_of(7) == 0


def test_overlap_needs_fragments() -> None:
    with pytest.raises(ValueError, match="overlap needs fragments 2 or more"):
        TrainingConfig(overlap=True)
    assert TrainingConfig(overlap=True, fragments=2).overlap
