"""Commands where torch, safetensors and scikit-learn are missing.

tests/e2e/test_packaging.py runs the others, from a wheel.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BLOCKED = ("torch", "safetensors", "sklearn", "mlxtend", "torchvision", "datasets", "pynvml", "scipy", "pandas")
OUTLETS = ("tensorboard", "mlflow", "wandb")
PROGRAM = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {(*BLOCKED, *OUTLETS)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.path.insert(0, {str(ROOT)!r})
"""
CLI = PROGRAM + "from hypergpu.cli import main\nmain(sys.argv[1:])"


def run(program: str, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": "/usr/bin:/bin", "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder)}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_every_command_can_be_asked_for_its_help(tmp_path: Path) -> None:
    program = PROGRAM + (
        "import typer\n"
        "from hypergpu.cli.app import app\n"
        "for name in typer.main.get_command(app).commands:\n"
        "    app([name, '--help'], standalone_mode=False)\n"
    )
    done = run(program, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("demo", "status", "inject", "simulate", "fit", "record"):
        assert command in done.stdout


@pytest.mark.parametrize("command", [("nodes",), ("links",), ("pause",)])
def test_a_command_on_a_cluster_comes_as_far_as_looking_for_one(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = run(CLI, tmp_path, *command)
    assert (done.returncode, "no cluster is running here" in done.stderr) == (2, True)


def test_a_simulation_runs_and_is_reported(tmp_path: Path) -> None:
    done = run(CLI, tmp_path, "simulate", "thousand-nodes", "--rounds", "1", "--out", "run")
    assert (done.returncode, done.stderr) == (0, "")
    done = run(CLI, tmp_path, "report", "run")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "report.html").exists()


def test_what_needs_torch_says_what_to_install(tmp_path: Path) -> None:
    done = run(CLI, tmp_path, "fit", "digits")
    assert done.returncode == 2
    assert done.stderr.startswith("hypergpu: this needs ")
    assert done.stderr.endswith("which is not installed: pip install 'hypergpu[train]'\n")


def test_the_doctor_says_what_to_install(tmp_path: Path) -> None:
    done = run(CLI, tmp_path, "doctor")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("setting", ["tensorboard=true", "mlflow=sqlite:///store", "wandb=offline"])
def test_an_outlet_whose_extra_is_missing_ends_the_coordinator_at_its_start(tmp_path: Path, setting: str) -> None:
    done = run(CLI, tmp_path, "coordinator", "--insecure", "--out=run", f"--set=outlets.{setting}")
    assert done.returncode == 2
    assert f"pip install 'hypergpu[{setting.partition('=')[0]}]'" in done.stderr
    assert not (tmp_path / "run").exists()
