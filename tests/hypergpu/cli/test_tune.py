"""`hypergpu tune` on the command line."""

import json
from pathlib import Path

import pytest
import yaml

from tests.hypergpu.conftest import Cli

SCENARIO = """
learning: model
task: digits
rounds: 100
target_accuracy: 0.9
nodes: [{id: a, profile: good}, {id: b, profile: dsl}]
"""


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    (tmp_path / "small.yaml").write_text(SCENARIO)
    return "small.yaml"


def test_the_best_setting_comes_as_yaml_with_its_gap_and_the_losers(cli: Cli, scenario: str, tmp_path: Path) -> None:
    given = ("tune", scenario, "--budget", "10", "--seeds", "2", "--jobs", "1")
    shown = cli(*given)
    assert shown.code == 0, shown.err
    assert "against reactive" in shown.out
    assert "reactive takes" in shown.out
    assert "losers, on the first tuning seed:" in shown.out
    text = shown.out.split("configuration of the best setting:\n")[1].split("next best")[0]
    (tmp_path / "tuned.yaml").write_text(SCENARIO + text)
    assert yaml.safe_load(text)["config"]["orchestrator"]["policy"] == "none"
    assert cli("simulate", "tuned.yaml").code == 0
    record = json.loads(cli(*given, "--json").out)
    assert record["best"]["config"] == yaml.safe_load(text)["config"]
    assert record["tried"] == len(record["losers"]) + 1
    assert record["best"]["reached"] == 2


@pytest.mark.parametrize("budget", ["0", "soon", "1.5", "-3", "10h"])
def test_a_budget_is_settings_or_minutes(cli: Cli, scenario: str, budget: str) -> None:
    shown = cli("tune", scenario, f"--budget={budget}")
    assert (shown.code, shown.out) == (2, "")
    assert "expected settings or minutes of CPU, as in 40 or 10min" in shown.err


def test_a_target_out_of_reach_is_told(cli: Cli, scenario: str, tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text(SCENARIO.replace("0.9", "0.985").replace("100", "3"))
    shown = cli("tune", "far.yaml", "--budget", "2", "--seeds", "1", "--jobs", "1")
    assert shown.code in (0, 1)
    assert ("no run reached" in shown.out) or ("no setting reached" in shown.out) or shown.code == 0
