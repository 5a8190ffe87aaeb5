"""What is installed, away from a checkout: built files, and a wheel where only the base requirements are."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.patience import patience, until

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]


SERVICES = ("coordinator", "netsim_proxy", "node")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_starts_as_a_module_of_the_checkout(service: str) -> None:
    command = [sys.executable, "-m", service, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience(60), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--insecure" in done.stdout


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


def required(distributions: Iterator[Requirement]) -> dict[str, Distribution]:
    """Return the distributions that requirements lead to, by name, and what those lead to in turn."""
    found: dict[str, Distribution] = {}
    open_ones = [(requirement, "") for requirement in distributions]
    seen: set[tuple[str, str]] = set()
    while open_ones:
        requirement, extra = open_ones.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            found.setdefault(name, distribution(name))
        except PackageNotFoundError:
            pytest.fail(f"{name} is required and not installed: run `make install`")
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                open_ones += [(Requirement(line), wanted) for line in found[name].requires or ()]
    return found


def link_files(distribution: Distribution, target: Path) -> None:
    """Make an installed distribution importable from a directory of packages, file by file."""
    for file in distribution.files or ():
        if file.parts[0] != ".." and "__pycache__" not in file.parts:
            place = target / file
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to(Path(str(file.locate())).resolve())


def build(source: Path, target: Path, *command: str) -> Path:
    """Return the one file that a build command makes."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *command, "--dist-dir", str(target)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("hypergpu-*")
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what earlier builds left there."""
    copy = tmp_path_factory.mktemp("copy") / "source"
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*_pb2*", "tests", "runs")
    shutil.copytree(ROOT, copy, ignore=left_out, symlinks=True)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"), "bdist_wheel")


def installed_wheel(wheel: Path, venv: Path) -> Path:
    """Return the site-packages of a fresh virtual environment with our wheel in it, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True, timeout=patience(120), check=False)
    assert done.returncode == 0, done.stderr
    (site,) = venv.glob("lib/python*/site-packages")
    return site


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh virtual environment with our wheel and its requirements, without any extra.

    Requirements are links to what is installed here, so that no network is needed.
    """
    venv = tmp_path_factory.mktemp("bare") / "venv"
    site = installed_wheel(wheel, venv)
    (metadata,) = site.glob("hypergpu-*.dist-info")
    lines = Distribution.at(metadata).requires or ()
    for each in required(Requirement(line) for line in lines).values():
        link_files(each, site)
    return venv / "bin"


def outside(tmp_path: Path) -> dict[str, str]:
    """Return an environment without a way back to the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HYPERGPU_"))}
    return kept | {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "NO_COLOR": "1"}


def run_bare(bare: Path, tmp_path: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an installed program to its end."""
    command = [str(bare / program), *arguments]
    return subprocess.run(
        command, cwd=tmp_path, env=outside(tmp_path), capture_output=True, text=True, timeout=patience(60), check=False
    )


@pytest.mark.parametrize("module", ["torch", "safetensors", "sklearn"])
def test_the_bare_environment_lacks_what_the_extras_bring(bare: Path, tmp_path: Path, module: str) -> None:
    done = run_bare(bare, tmp_path, "python", "-c", f"import {module}")
    assert f"No module named '{module}'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--version"], "hypergpu 0."),
        (["--help"], "transfer"),
        (["demo", "--help"], "--rounds"),
        (["transfer", "--profile", "good", "--samples", "3"], "\nwarm "),
        (["simulate", "--list"], "mixed"),
    ],
)
def test_a_wheel_without_extras_runs_what_trains_nothing(
    bare: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    done = run_bare(bare, tmp_path, "hypergpu", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert says in done.stdout


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("hypergpu", ["demo", "--rounds", "1", "--out", "run"]),
        ("hypergpu", ["export", "run", "--out", "model.safetensors"]),
        ("python", ["-m", "hypergpu", "coordinator", "--insecure", "--out=run", "--listen=127.0.0.1:0"]),
        ("python", ["-m", "hypergpu", "node", "--insecure", "--coordinator=127.0.0.1:1"]),
    ],
)
def test_a_wheel_without_extras_names_the_one_that_is_needed(
    bare: Path, tmp_path: Path, program: str, arguments: list[str]
) -> None:
    done = run_bare(bare, tmp_path, program, *arguments)
    assert done.returncode == 2, done.stderr
    assert "pip install 'hypergpu[train]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_proxy_of_a_wheel_starts_without_extras(bare: Path, tmp_path: Path) -> None:
    command = [str(bare / "hypergpu"), "proxy", "--listen=127.0.0.1:0", "--upstream=127.0.0.1:1"]
    log = tmp_path / "proxy.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=tmp_path, env=outside(tmp_path), stdout=output, stderr=output) as proxy,
    ):
        try:
            until(lambda: "listening on 127.0.0.1:" in log.read_text() or proxy.poll() is not None, "an address")
        finally:
            proxy.terminate()
    assert (proxy.returncode, "listening on 127.0.0.1:" in log.read_text()) == (0, True), log.read_text()


def modules(names: Iterable[str]) -> set[str]:
    """Return the Python files and data among the names of an archive, below the first folder that is ours."""
    return {name for name in names if name.startswith("hypergpu/") and not name.endswith("/")}


def test_a_wheel_and_an_sdist_hold_one_package(source: Path, wheel: Path, tmp_path: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"hypergpu"}
    assert {f"hypergpu/{service}/__main__.py" for service in SERVICES} <= set(names)
    with tarfile.open(build(source, tmp_path, "sdist")) as archive:
        members = archive.getmembers()
    below = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert not any(member.islnk() or member.issym() for member in members)
    assert modules(names) - below == {f"hypergpu/scenarios/{file.name}" for file in (ROOT / "scenarios").iterdir()}
    assert not any(name.startswith(("coordinator/", "node/", "netsim_proxy/", "common/", "tasks/")) for name in below)


HOSTILE = "raise SystemExit('a module of the user was loaded in the place of an installed one')"
OWN_TASK = """
from torch import nn
from hypergpu import Task
from hypergpu.tasks import load_task

def task():
    digits = load_task("digits")
    return Task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits.train, digits.test)
"""


def test_an_installed_wheel_trains_beside_packages_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    site = installed_wheel(wheel, tmp_path / "venv")
    torch_is_in = distribution("torch").locate_file("")
    (site / "requirements.pth").write_text(f"{torch_is_in}\n")
    for package in ("common", "protos"):  # of another distribution
        (site / package).mkdir()
        (site / package / "__init__.py").write_text(HOSTILE)
    user = tmp_path / "user"
    (user / "tasks").mkdir(parents=True)
    (user / "tasks" / "__init__.py").touch()
    (user / "tasks" / "mine.py").write_text(OWN_TASK)
    for module in ("node", "coordinator", "netsim_proxy", "common"):
        (user / f"{module}.py").write_text(HOSTILE)
    command = [str(tmp_path / "venv/bin/hypergpu"), "demo", "--rounds=2", "--nodes=1", "--task=tasks.mine:task"]
    done = subprocess.run(
        [*command, "--out=run"],
        cwd=user,
        env=outside(tmp_path),
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (user / "run" / "model.safetensors").is_file()
