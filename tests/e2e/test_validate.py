"""`hypergpu validate` as a user runs it: real processes behind the network of a scenario, and virtual time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patience

pytestmark = pytest.mark.e2e
VALIDATE = (sys.executable, "-c", "from hypergpu.cli import main; main()", "validate")
SCENARIO = """
task: digits
loss_model: transport
profiles:
  thin: {based_on: dsl, up: {bandwidth_mbit: 1}}
nodes:
  - {id: far, gpu: T4, profile: thin, region: eu-west}
  - {id: near, gpu: T4, profile: good}
events:
  - {round: 3, type: latency_spike, node: near, added_ms: 400, duration_seconds: 2}
"""


def test_the_simulator_is_held_against_real_processes(tmp_path: Path) -> None:
    file = tmp_path / "thin.yaml"
    file.write_text(SCENARIO)
    # Without adaptation each round waits for both nodes, so that a busy moment of the machine can't leave `far` out.
    settings = ("--rounds", "5", "--policy", "none", "--most-error", "0", "--out", str(tmp_path / "kept"), "--json")
    command = [*VALIDATE, str(file), *settings]
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state"), "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience(200), check=False)
    assert done.returncode == 1, "nothing is exact"
    told = json.loads(done.stdout)
    assert not told["passed"]
    assert told["replayed"]["rounds"] == told["simulated"]["rounds"] == 5
    # 77 KB up at 1 Mbit/s take 0.6 s: a network that is not there, or another one, would be far off.
    assert told["replayed"]["real_median_seconds"] > 0.6
    assert told["replayed"]["median_error"] < 0.3
    assert {d.name for d in (tmp_path / "kept").iterdir()} == {"real", "replayed", "simulated"}
