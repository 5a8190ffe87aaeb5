"""Configuration: where values come from, which wins, and what a mistake is told."""

from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from hypergpu.common.codecs import CODECS
from hypergpu.common.config import SystemConfig, load_config
from hypergpu.common.config.document import load_yaml
from hypergpu.common.errors import ConfigError
from hypergpu.common.strategies import AdaptationPolicy, BatchSizeStrategy, SelectionStrategy
from hypergpu.common.transfer_codecs import TransferCodecs, UpdateCodecName


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


TEXTS = ["rack #3", "no", "1e5", "null", "~", "[::1]:0", "{a", "a: b", " eu ", "&x", "'quoted'", "", "2024-13-45", "ü"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_field_of_text_takes_the_text_as_it_is(text: str) -> None:
    assert load_config(SystemConfig, overrides=[f"node.region={text}"]).node.region == text
    assert load_config(SystemConfig, environment={"HYPERGPU_NODE__REGION": text}).node.region == text
    assert load_config(SystemConfig, options={"node.region": text}).node.region == text


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.rounds=7", 7),
        ("training.learning_rate=1e-3", 1e-3),
        ("training.server_learning_rate=null", None),
        ("training.server_learning_rate=", None),
        ("training.server_learning_rate=0.5", 0.5),
        ("server.stay=yes", True),
        ("server.stay=False", False),
        ('server.scrape_hosts=["::1", 10.0.0.0/8, no, 1e5]', ("::1", "10.0.0.0/8", "no", "1e5")),
        ('server.scrape_hosts=["10.0.0.1"]', ("10.0.0.1",)),
        ("training.server_optimizer=adam", "adam"),
        ("node.region=a=b", "a=b"),
    ],
)
def test_a_text_is_read_as_its_field_wants_it(override: str, value: object) -> None:
    section, name = override.partition("=")[0].split(".")
    config = load_config(SystemConfig, overrides=[override])
    assert getattr(getattr(config, section), name) == value


def test_a_whole_section_is_yaml_and_a_later_key_changes_it() -> None:
    config = load_config(SystemConfig, overrides=["training={rounds: 3, task: mine}", "training.rounds=4"])
    assert (config.training.rounds, config.training.task) == (4, "mine")


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2",
        "{a: [",
        "[" * 5000,
        "&a [*a]",
        "? [1]\n: 2",
        "{rounds: 2024-13-45}",
        "{rounds: " + "9" * 5000 + "}",
        "\x00",
        "[!!int '']",
        "!!map x",
        "!!python/object:os.system x",
    ],
)
@pytest.mark.parametrize("key", ["server.scrape_hosts", "training"])
def test_a_text_that_is_no_yaml_names_its_key_and_source(key: str, text: str) -> None:
    variable = f"HYPERGPU_{key.upper().replace('.', '__')}" if "." in key else "HYPERGPU___"
    sources: list[tuple[dict[str, Any], str]] = [({"overrides": [f"{key}={text}"]}, f"--set: {key}")]
    if "." in key:
        sources.append(({"environment": {variable: text}}, f"{variable}: {key}"))
    for given, told in sources:
        with pytest.raises(ConfigError) as caught:
            load_config(SystemConfig, **given)
        assert str(caught.value).startswith(told)
        assert str(caught.value).isprintable()


def test_a_bad_value_names_its_source(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training: {rounds: none}\n")
    sources: list[tuple[dict[str, Any], str]] = [
        ({"file": file}, f"{file}: training.rounds: "),
        ({"environment": {"HYPERGPU_TRAINING__ROUNDS": "none"}}, "HYPERGPU_TRAINING__ROUNDS: training.rounds: "),
        ({"overrides": ["training.rounds=none"]}, "--set: training.rounds: "),
        ({"options": {"training.rounds": "none"}}, "--rounds: training.rounds: "),
        ({"overrides": ["training.rounds.x=1"]}, "--set: training.rounds: "),
        ({"file": file, "overrides": ["training.rounds.x=1"]}, "--set: training.rounds.x: training.rounds is a value"),
    ]
    for given, told in sources:
        with pytest.raises(ConfigError) as caught:
            load_config(SystemConfig, **given)
        assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 5000, ":1: not valid YAML: nested over 50 levels deep"),
        ("training:\n  rounds: " + "9" * 5000, ":2: not valid YAML: a value of 5,000 characters is too long for int"),
        ("training:\n  ? [a]\n  : 1", ":2: not valid YAML: a key must be a plain value"),
        ("training: 2024-02-30", ":1: not valid YAML: '2024-02-30' is not a valid timestamp"),
        ("a: &a [*a]", ":1: not valid YAML: *a contains itself"),
        ("a: 1\na: 2", ":2: not valid YAML: duplicate key 'a'"),
        ('a: "\\ud800"', ":1: not valid YAML: an unpaired surrogate"),
        ("training: {batch_size: 0}", ": training.batch_size: "),
    ],
)
def test_yaml_that_cannot_be_names_file_and_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(SystemConfig, file)
    assert f"{file}{told}" in str(caught.value)


def test_yaml_of_fifty_levels_is_read_and_of_one_more_is_not() -> None:
    assert load_yaml("[" * 49 + "x" + "]" * 49)
    with pytest.raises(yaml.YAMLError, match="nested"):
        load_yaml("[" * 50 + "x" + "]" * 50)


def test_aliases_count_as_all_that_they_stand_for() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    with pytest.raises(yaml.YAMLError, match="over 1,000,000 keys and values"):
        load_yaml(bomb)
    assert load_yaml("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}


def test_many_faults_are_told_by_the_first_few(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("training:\n" + "".join(f"  unknown_{i}: 1\n" for i in range(22)))
    with pytest.raises(ConfigError, match=r"unknown_19'.*; and 2 more$") as caught:
        load_config(SystemConfig, file)
    assert "unknown_20" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"), [(b"\xff", "line 1 is not UTF-8 text"), (b"a: 1\n\xe9", "line 2 is not UTF-8 text")]
)
def test_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"cannot read {file}: {told}"):
        load_config(SystemConfig, file)
    with pytest.raises(ConfigError, match=f"cannot read {tmp_path}: Is a directory"):
        load_config(SystemConfig, tmp_path)
    with pytest.raises(ConfigError, match="cannot read a\\\\x00b: "):
        load_config(SystemConfig, Path("a\0b"))
    with pytest.raises(ConfigError, match="cannot read /dev/zero: larger than 16,777,216 bytes"):
        load_config(SystemConfig, Path("/dev/zero"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["local_optimizer=adamw", "local_steps=1"], "local_optimizer adamw needs more than one local step"),
        (["server_nesterov=true"], "server_nesterov needs server_optimizer sgd with a server_momentum above 0"),
        (["server_nesterov=true", "server_momentum=0.9", "server_optimizer=adam"], "needs server_optimizer sgd"),
        (["close_share=0"], "close_share"),
        (["close_share=1.1"], "close_share"),
    ],
)
def test_optimisers_and_shares_that_make_no_sense_are_refused(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(SystemConfig, overrides=[f"training.{setting}" for setting in settings])
    kept = ["local_optimizer=adamw", "server_momentum=0.9", "server_nesterov=true", "close_share=0.8"]
    training = load_config(SystemConfig, overrides=[f"training.{setting}" for setting in kept]).training
    assert (training.local_optimizer, training.server_nesterov, training.close_share) == ("adamw", True, 0.8)


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("orchestrator.policy", AdaptationPolicy),
        ("batch.strategy", BatchSizeStrategy),
        ("selector.strategy", SelectionStrategy),
    ],
)
def test_a_policy_or_strategy_is_read_and_written_by_its_name(key: str, names: type[StrEnum]) -> None:
    section, field = key.split(".")
    for name in names:
        config = load_config(SystemConfig, overrides=[f"{key}={name}"])
        assert getattr(getattr(config, section), field) is name
        assert config.model_dump(mode="json")[section][field] == str(name)
    with pytest.raises(ConfigError) as caught:
        load_config(SystemConfig, overrides=[f"{key}=hybird"])
    assert f"{key}: input should be " in str(caught.value)
    assert all(f"'{name}'" in str(caught.value) for name in names)


def test_codecs_need_the_strategy_that_uses_them() -> None:
    assert SystemConfig().compression.codecs == TransferCodecs("none", "none")
    fixed = ["compression.strategy=fixed", "compression.update_codec=int8"]
    assert load_config(SystemConfig, overrides=fixed).compression.codecs == TransferCodecs("int8", "none")
    both = load_config(SystemConfig, overrides=[*fixed, "compression.parameters_codec=bf16"]).compression
    assert both.codecs == TransferCodecs("int8", "bf16")
    with pytest.raises(ConfigError, match=r"compression\.parameters_codec: input should be"):
        load_config(SystemConfig, overrides=[*fixed, "compression.parameters_codec=topk"])
    with pytest.raises(ConfigError, match="compression: update_codec and parameters_codec need strategy fixed"):
        load_config(SystemConfig, overrides=fixed[1:])
    with pytest.raises(ConfigError, match=r"compression\.strategy: input should be 'none', 'fixed' or 'adaptive'"):
        load_config(SystemConfig, overrides=["compression.strategy=always"])
    with pytest.raises(ConfigError, match="need strategy fixed; adaptive ignores them"):
        load_config(SystemConfig, overrides=["compression.strategy=adaptive", *fixed[1:]])
    with pytest.raises(ConfigError, match=r"compression\.max_noise: input should be less than or equal to 1"):
        load_config(SystemConfig, overrides=["compression.max_noise=1.1"])
    assert load_config(SystemConfig).compression.max_noise == 0.2


def test_the_codecs_of_the_settings_are_those_that_exist() -> None:
    assert set(get_args(UpdateCodecName)) == set(CODECS)


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"training": {"partition": "local"}}, "training.partition iid or dirichlet"),
        ({"training": {"fragments": 2}}, "training.fragments 1"),
        ({"training": {"local_state": "kept"}}, "training.local_state reset"),
        ({"aggregation": {"suspicion": False}}, "aggregation.suspicion true"),
        (
            {
                "training": {"deterministic": True, "quorum": 1.0},
                "orchestrator": {"policy": "none"},
                "compression": {"strategy": "none"},
            },
            "training.deterministic false",
        ),
    ],
    ids=str,
)
def test_spot_checks_need_updates_that_follow_from_their_order_alone(settings: dict[str, Any], needed: str) -> None:
    assert SystemConfig.model_validate(settings).contribution.spot_check_share == 0.0
    with pytest.raises(ValueError, match=f"spot_check_share 0.05 needs {needed}:"):
        SystemConfig.model_validate({**settings, "contribution": {"spot_check_share": 0.05}})
    assert SystemConfig.model_validate({"contribution": {"spot_check_share": 0.05}})
