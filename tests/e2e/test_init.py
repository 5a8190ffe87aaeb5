"""A new project, as its user goes on with it: its test, and the commands that are printed."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hypergpu.cli import main
from hypergpu.project import make_project
from tests.documents import ROOT
from tests.e2e.local import Cluster
from tests.patience import patience

pytestmark = pytest.mark.e2e


def test_a_new_project_passes_its_test_and_trains_by_the_commands_that_are_printed(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    with pytest.raises(SystemExit, match="0"):
        main(["init", str(project)])
    lines = [line.partition("#")[0].strip() for line in capsys.readouterr().out.splitlines()[1:]]
    cd, test, demo, coordinator, node = lines
    assert (cd, test) == (f"cd {project}", "python -m pytest")
    assert demo.startswith("hypergpu demo --task my_task:task")
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    program = shlex.join([sys.executable, *shlex.split(test)[1:]])
    tested = subprocess.run(
        ["bash", "-c", f"{cd} && {program}"], env=here, capture_output=True, text=True, check=False, timeout=patience()
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "1 passed" in tested.stdout

    free = ("--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", f"--out={cluster.out}", "--rounds=3")
    first = cluster.start("coordinator", *shlex.split(coordinator)[1:], *free, directory=project)
    dial = (f"--coordinator={first.address()}", "--http-listen=127.0.0.1:0", f"--set=node.state_dir={tmp_path}")
    second = cluster.start("node", *shlex.split(node)[1:], *dial, directory=project)
    assert (second.wait(), first.wait()) == (0, 0), first.text + second.text
    summary = json.loads((cluster.out / "summary.json").read_text())
    assert (summary["task"], summary["rounds"]) == ("my_task:task", 3)
    assert summary["final_accuracy"] > 0.8


def test_the_files_of_a_project_are_well_formed_and_typed(tmp_path: Path) -> None:
    made = make_project(tmp_path / "project")
    programs = [str(file) for file in made if file.suffix == ".py"]
    assert len(programs) == 2
    for check in (["format", "--check"], ["check"]):
        ruff = [sys.executable, "-m", "ruff", *check, "--isolated", "--line-length=120", *programs]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
