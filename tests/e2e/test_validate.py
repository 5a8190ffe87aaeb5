"""`hypergpu validate` as a user runs it: real processes behind the network of a scenario, and virtual time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hypergpu.simulation.kernel.namespaces import missing_permission
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


def run_kernel_tcp(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [*VALIDATE, "--kernel-tcp", *options]
    environment = os.environ | {"NO_COLOR": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience(200), check=False)


@pytest.mark.soak
def test_transfers_of_the_model_are_held_against_the_kernels_tcp() -> None:
    if reason := missing_permission():
        pytest.skip(f"no network namespaces: {reason}")
    done = run_kernel_tcp("--samples", "4", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["passed"] else 1)
    errors = told["typical_error"]
    assert errors["model"] < min(errors["line_rate"], errors["mathis"], errors["slow_start"])
    assert len(told["conditions"]) == 48
    assert all(each["count"] == 4 for each in told["conditions"])
    [slow] = [
        each
        for each in told["conditions"]
        if (each["rtt_ms"], each["loss"], each["nbytes"], each["kind"]) == (150, 0, 80_000, "cold")
    ]
    assert slow["kernel_seconds"] == pytest.approx(0.393, abs=0.05)


def test_it_says_why_there_are_no_transfers_over_the_kernels_tcp() -> None:
    code = (
        "import sys, hypergpu.simulation.kernel.namespaces as namespaces; "
        "from pathlib import Path; namespaces._TUN = Path('/dev/no-such-device'); "
        "from hypergpu.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "validate", "--kernel-tcp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(60), check=False)
    assert done.returncode == 2
    assert "there is no /dev/no-such-device" in done.stderr
    assert not done.stdout
