"""Whole numbers in settings: none is taken that the wire, numpy or torch have no room for; the bound is told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hypergpu.common.config import ConfigSection, SystemConfig, load_config
from hypergpu.common.config.loading import read_yaml
from hypergpu.common.errors import ConfigError
from hypergpu.netsim_proxy.config.profile_file import ProfilesFile
from hypergpu.netsim_proxy.config.proxy_file import ProxyConfig
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.scenario_file import parse_scenario

COUNT, INTEGER = 2**31 - 1, 2**63 - 1


def integers(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            yield path, schema
        for key, value in schema.items():
            yield from integers(value, f"{path}/{key}")
    if isinstance(schema, list):
        for value in schema:
            yield from integers(value, path)


@pytest.mark.parametrize("model", [SystemConfig, Scenario, ProxyConfig, ProfilesFile])
def test_every_whole_number_that_can_be_set_has_bounds(model: type[ConfigSection]) -> None:
    found = dict(integers(model.model_json_schema()))
    assert [path for path, schema in found.items() if not {"minimum", "maximum"} <= set(schema)] == []
    assert all(schema["maximum"] <= INTEGER for schema in found.values())


@pytest.mark.parametrize("given", [str(10**400), "9" * 5000, "1e30", "1e400", "2147483648"])
@pytest.mark.parametrize("key", ["training.rounds", "training.batch_size", "server.max_nodes", "node.history_size"])
def test_a_count_beyond_its_bound_is_refused_by_the_bound(key: str, given: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(SystemConfig, overrides=[f"{key}={given}"])
    assert str(refused.value) == f"--set: {key}: input should be less than or equal to {COUNT}"


@pytest.mark.parametrize(("key", "bound"), [("seed: ", INTEGER), ("rounds: ", COUNT)])
@pytest.mark.parametrize("given", [str(10**400), "1.0e+30", "1" + "0" * 40, "9223372036854775808"])
def test_a_file_is_held_to_the_same_bounds(tmp_path: Path, key: str, bound: int, given: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"training:\n  {key}{given}\n")
    assert read_yaml(file)
    with pytest.raises(ConfigError, match=f"input should be less than or equal to {bound}"):
        load_config(SystemConfig, file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"nodes: [{{id: a}}]\nrounds: {10**400}\n",
            f"rounds: input should be less than or equal to {COUNT}",
        ),
        (f"nodes: [{{id: a}}]\nseed: {10**400}\n", f"s.yaml:2: seed: input should be less than or equal to {INTEGER}"),
        (f"nodes: [{{id: a, count: {10**400}}}]\n", "input should be less than or equal to 100000"),
        (f"nodes: [{{id: a}}]\ntarget_accuracy: {10**400}\n", "target_accuracy: input should be within ±1.798e+308"),
    ],
)
def test_a_scenario_is_held_to_them_too(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_scenario(text, "s.yaml")
    assert message in str(refused.value)


@pytest.mark.parametrize("given", ["-1", "1.5", "ten", "inf", "true", ""])
def test_what_is_no_count_is_refused_as_before(given: str) -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_size: input should be"):
        load_config(SystemConfig, overrides=[f"training.batch_size={given}"])


@pytest.mark.parametrize(("given", "expected"), [("2147483647", COUNT), ("1", 1), ("1_000", 1000)])
def test_a_count_within_them_is_taken(given: str, expected: int) -> None:
    assert load_config(SystemConfig, overrides=[f"training.batch_size={given}"]).training.batch_size == expected
