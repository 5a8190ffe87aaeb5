"""Configuration: where values come from, which wins, and what a mistake is told."""

from pathlib import Path

import pytest

from common.config import SystemConfig, load_config
from common.errors import ConfigError


def test_the_defaults_are_valid() -> None:
    assert load_config(SystemConfig) == SystemConfig()


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training: {rounds: 7, seed: 1, task: mine}\n")
    config = load_config(
        SystemConfig,
        file,
        environment={"HYPERGPU_TRAINING__SEED": "2", "HYPERGPU_TRAINING__ROUNDS": "8", "HOME": "/nowhere"},
        overrides=["training.rounds=9"],
    )
    assert (config.training.rounds, config.training.seed, config.training.task) == (9, 2, "mine")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.round=3", "unknown key 'training.round'; did you mean 'rounds'?"),
        ("trainning.rounds=3", "unknown key 'trainning'; did you mean 'training'?"),
        ("training.rounds=-1", "training.rounds: input should be greater than or equal to 0"),
        ("training.rounds=many", "training.rounds: input should be a valid integer"),
        ("training.learning_rate=.nan", "training.learning_rate: input should be a finite number"),
        ("training.rounds", "not of the form key=value"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SystemConfig, overrides=[override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("- a list", "must hold a mapping"), ("a: [1", "not valid YAML"), ("training: 3", "training")]
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(SystemConfig, file)
    assert "broken.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent.yaml: No such file"):
        load_config(SystemConfig, tmp_path / "absent.yaml")
