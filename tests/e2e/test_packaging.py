"""What is installed, away from a checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]


def test_what_is_built_finds_its_scenarios_and_data(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", "from hypergpu.cli import main; main()", *arguments]
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "lib")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
        return done.stdout

    assert json.loads(run("simulate", "--list", "--json"))["mixed"]
    # Regions from a table, tasks from a package, a page from its style and script.
    assert json.loads(run("simulate", "transatlantic", "--rounds", "1", "--out", "run", "--json"))["rounds"] == 1
    assert json.loads(run("report", "run", "--json"))["report"].endswith("report.html")
