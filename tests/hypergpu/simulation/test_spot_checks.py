"""Spot checks in virtual time, with real gradients: honest updates are equal bit for bit, and cheaters are named."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hypergpu.common.config.loading import parse
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario


class Found(NamedTuple):
    checks: list[dict[str, Any]]
    suspected: list[str]


def run(folder: Path, *, rounds: int = 12, lazy: int = 0, seed: int = 0, **config: Any) -> Found:
    """Return the spot checks of a run of seven nodes of unlike speeds, and whom it suspects."""
    nodes: list[dict[str, Any]] = [{"id": "honest", "count": 7 - lazy, "gpu": "T4"}]
    nodes += [{"id": "lazy", "count": lazy, "gpu": "T4", "byzantine": "lazy"}] if lazy else []
    nodes[0] |= {"gpu": ["T4", "laptop-cpu"]}
    training = {"local_steps": 3, "batch_size": 16} | config.pop("training", {})
    config = {"contribution": {"spot_check_share": 0.25, "measured_share": 0}, "training": training} | config
    tree = {"name": "checked", "task": "digits", "rounds": rounds, "seed": seed, "policy": "none", "nodes": nodes}
    simulate(parse(Scenario, tree | {"config": config}, where="here"), folder)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    checks = [each for each in events if each["kind"] == "decision" and each["text"].startswith("spot_check")]
    return Found(checks, [each["node"] for each in events if each["kind"] == "node_suspected"])


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"training": {"local_steps": 1}},
        {"training": {"mode": "late", "partition": "dirichlet", "local_optimizer": "adamw", "learning_rate": 0.003}},
        {"training": {"mode": "buffered"}},
        {"compression": {"strategy": "fixed", "update_codec": "int8", "parameters_codec": "int8"}},
        {"compression": {"strategy": "fixed", "update_codec": "bf16", "parameters_codec": "bf16"}},
    ],
    ids=str,
)
def test_what_an_honest_node_has_computed_is_reproduced_bit_for_bit(tmp_path: Path, config: dict[str, Any]) -> None:
    found = run(tmp_path, **config)
    assert len(found.checks) >= 4
    assert {(each["reason"], each["figures"]["distance"]) for each in found.checks} == {("reproduced", 0.0)}
    assert not found.suspected


def test_nodes_that_keep_what_a_codec_lost_are_not_checked(tmp_path: Path) -> None:
    assert not run(tmp_path, compression={"strategy": "fixed", "update_codec": "int4"}).checks


def test_a_node_that_computes_a_part_of_its_work_is_named_and_no_other(tmp_path: Path) -> None:
    found = run(tmp_path, lazy=1, rounds=25, training={"batch_size": 32})
    assert found.suspected == ["lazy_0"]
    named = [each for each in found.checks if each["reason"] == "not_reproduced"]
    assert named[0]["figures"]["distance"] > 0.3
    assert named[0]["figures"]["apart"] == 0
    assert {each["subject"] for each in found.checks if each["reason"] != "reproduced"} == {"lazy_0"}


def test_the_checks_change_nothing_but_who_trains(tmp_path: Path) -> None:
    """A run is the same again, and the rounds of a checked run have as many updates as nodes train."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, rounds=5)
    one, two = ((tmp_path / name / "rounds.jsonl").read_text() for name in ("one", "two"))
    assert one == two
