"""`hypergpu whatif` on the command line."""

import json
from pathlib import Path

import pytest

from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from tests.hypergpu.conftest import Cli


@pytest.fixture
def run_dir(tmp_path: Path) -> str:
    tree = {
        "learning": "model",
        "task": "digits",
        "nodes": [{"id": "a", "profile": "good"}, {"id": "b", "profile": "cable"}],
        "policy": "none",
        "rounds": 12,
    }
    simulate(Scenario.model_validate(tree), tmp_path / "run")
    return "run"


def test_a_change_is_predicted_and_the_run_is_left_alone(cli: Cli, run_dir: str, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()}
    given = ("whatif", run_dir, "--set", "training.local_steps=400", "--rounds", "5", "--seeds", "2")
    shown = cli(*given)
    assert shown.code == 0, shown.err
    assert "after round 12, by its last 12 rounds" in shown.out
    assert "times as long: longer" in shown.out
    assert "not known: what links and nodes will do from now on" in shown.out
    record = json.loads(cli(*given, "--json").out)
    assert record["now"]["seconds_per_round"]["mean"] == pytest.approx(record["measured"]["seconds_per_round"])
    assert record["then"]["samples_per_second"]["mean"] > record["now"]["samples_per_second"]["mean"]
    assert record["ratio"]["mean"] > 1
    assert not any("afresh" in each for each in record["unknown"])
    assert (record["run"], record["round"], record["changes"]) == ("run", 12, ["training.local_steps=400"])
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()} == before


def test_another_policy_starts_afresh(cli: Cli, run_dir: str) -> None:
    shown = cli("whatif", run_dir, "--policy", "reactive", "--at", "8", "--rounds", "3", "--seeds", "1", "--json")
    assert shown.code == 0, shown.err
    record = json.loads(shown.out)
    assert (record["round"], record["changes"]) == (8, ["policy reactive"])
    assert "what the policy has learnt in the run: it starts afresh" in record["unknown"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "nothing to change: give --policy NAME or --set KEY=VALUE"),
        (("--set", "training.local_stepz=3"), "did you mean"),
        (("--policy", "reactiv"), "reactive"),
    ],
)
def test_a_wrong_option_is_named(cli: Cli, run_dir: str, options: tuple[str, ...], told: str) -> None:
    shown = cli("whatif", run_dir, *options)
    assert (shown.code, shown.out) == (2, "")
    assert told in shown.err


def test_there_must_be_a_run(cli: Cli) -> None:
    shown = cli("whatif", "nowhere", "--policy", "none")
    assert (shown.code, shown.out) == (2, "")
    assert "nowhere" in shown.err
