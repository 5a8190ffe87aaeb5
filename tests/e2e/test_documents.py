"""The documents' commands: each is run as written, in order, or is on a list with the reason why not."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypergpu.cli import main
from tests.documents import DOCUMENTS, ROOT, Command, commands, python_blocks
from tests.patience import patience

LONG = "takes minutes"
CONTAINERS = "needs containers: test_containers.py"
PORTS = "listens on a fixed port; test_proxy.py runs the proxy"
NEEDS_OTHERS = "needs another service or its certificates; tests/netsim_proxy run its options"

NOT_RUN = {
    "make demo": "installs, and takes minutes: test_demo.py",
    "make test": "runs these tests",
    "make soak": LONG,
    "hypergpu validate": LONG,
    "hypergpu compare flaky-minority": "takes minutes: test_compare.py runs shorter ones",
    "hypergpu simulate flaky-minority": LONG,
    "hypergpu simulate transatlantic": LONG,
    "hypergpu plan --model-bytes 44MB --links examples/links.csv --task chars --price-per-gb 0.05": LONG,
    "hypergpu tune flaky-minority --budget 40": LONG,
    "hypergpu demo --open": "opens a browser: tests/coordinator/page runs it without",
    "hypergpu demo --set outlets.tensorboard=true": "takes minutes: test_outlets.py runs a shorter one",
    "hypergpu outlets runs/first --mlflow sqlite:///mlflow.db --wandb offline": "tests/hypergpu/outlets",
    "hypergpu view runs/first --open": "opens a browser, and serves until it is interrupted",
    "hypergpu view runs/first --beside runs/fixed": "needs a second run, and serves until it is interrupted",
    "hypergpu fit digits --rounds 60": LONG,
    "hypergpu rewards runs/first --addresses nodes.csv --amount 1000000 --rounds 1-100 --out epoch.json": (
        "needs 100 rounds and addresses: tests/hypergpu/rewards"
    ),
    "hypergpu trace record train.example.org:50051 --out path.csv": f"{NEEDS_OTHERS}: test_trace.py",
    "hypergpu trace import ATT-LTE-driving.up --down ATT-LTE-driving.down --out lte.csv": (
        "needs files that are not ours to ship: test_trace.py"
    ),
    "make docs": "installs what it needs; .ci/run builds the site",
    "make up N=8": CONTAINERS,
    "make scale N=3": CONTAINERS,
    "make down": CONTAINERS,
    "make cluster": "is what this test starts, see below",
    "hypergpu export runs/first --round 25 --out round25.safetensors --json": "needs 25 rounds",
    "make lint": "is the other half of what a change must pass",
    "make mutants": LONG,
    "bash .ci/run": LONG,
    "openssl s_client -connect 127.0.0.1:8443 -servername train.example.com": NEEDS_OTHERS,
    "hypergpu coordinator --task examples.own_task:wine --insecure": "trains 50 rounds on a fixed port: tests/tasks",
    "hypergpu node --task examples.own_task:wine --insecure": "needs that coordinator",
}
ENDLESS = {"hypergpu status --watch", "hypergpu logs --follow"}
"""They show what happens until they are interrupted."""
MAY_FIND_FAULTS = {"hypergpu doctor"}
"""With exit code 1, faults of the machine."""
REAL_MACHINES = ("hypergpu coordinator --listen 0.0.0.0:50051", "hypergpu node --coordinator train.example.org:50051")
SHOWN = [command for document in DOCUMENTS for command in commands(document)]
_ROUNDS = 3
"""Rounds of the demo before the commands begin: some of them look at what it has done."""
_START_SECONDS = 120.0

pytestmark = pytest.mark.e2e


def environment(directory: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    here = {"PATH": path, "XDG_STATE_HOME": str(directory / "state"), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **here}


def run(line: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line],
        check=False,
        cwd=directory,
        env=environment(directory),
        capture_output=True,
        text=True,
        timeout=patience(60),
    )


def exit_code(line: str, directory: Path) -> int:
    """Run a line, one of `hypergpu` in this process: importing it for each would take longer than the rest."""
    if line in ENDLESS:
        return interrupted(line, directory)
    if not line.startswith("hypergpu"):
        return run(line, directory).returncode
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line)[1:])
    return int(ended.value.code or 0)


def interrupted(line: str, directory: Path) -> int:
    """Interrupt a command once it has printed something."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {line}"], cwd=directory, env=environment(directory), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=patience(30))
    assert first.strip(), f"{line} printed nothing"
    return process.returncode


def reason_not_to_run(line: str) -> str:
    if line in NOT_RUN:
        return NOT_RUN[line]
    if line.startswith("hypergpu proxy"):
        return PORTS if line.endswith("--profile poor --seed 7") else NEEDS_OTHERS
    return "run with a free port below" if line.startswith(REAL_MACHINES) else ""


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory with what `make cluster` starts, some rounds into its run."""
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples/links.csv", tmp_path / "examples")
    hypergpu = str(Path(sys.executable).parent / "hypergpu")
    arguments = [hypergpu, "demo", "--stay", "--quiet", "--out", "runs/first"]
    with (tmp_path / "demo.log").open("wb") as output:
        demo = subprocess.Popen(
            arguments, cwd=tmp_path, env=environment(tmp_path), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        until = time.monotonic() + _START_SECONDS
        rounds = tmp_path / "runs/first/rounds.jsonl"
        while not rounds.exists() or len(rounds.read_text().splitlines()) < _ROUNDS:
            assert demo.poll() is None, (tmp_path / "demo.log").read_text()
            assert time.monotonic() < until, "no rounds were finished"
            time.sleep(0.2)
        yield tmp_path
        demo.send_signal(signal.SIGINT)
        assert demo.wait(patience(60)) == 0, (tmp_path / "demo.log").read_text()
        assert (tmp_path / "runs/first/report.html").is_file()
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()


def test_commands_for_a_running_cluster_work_in_order(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(scratch)
    monkeypatch.setenv("XDG_STATE_HOME", environment(scratch)["XDG_STATE_HOME"])
    of_the_run = [command for command in SHOWN if "runs/first" in command.line]  # before the run is restarted
    rest = [command for command in SHOWN if command not in of_the_run]
    done = []
    for command in (*of_the_run, *rest):
        if reason_not_to_run(command.line):
            continue
        code = exit_code(command.line, scratch)
        said = capsys.readouterr()
        allowed = {0, 130} if command.line in ENDLESS else {0, 1} if command.line in MAY_FIND_FAULTS else {0}
        assert code in allowed, f"{command}: {said.out[-2000:]}{said.err[-2000:]}"
        done.append(command.line)
    assert "hypergpu report" in done
    assert "hypergpu restart" in done
    assert (scratch / "model.safetensors").is_file()


def test_real_machines_train_with_the_token_and_certificate_that_are_shown(tmp_path: Path) -> None:
    made = [c.line for c in SHOWN if c.document == "README.md" and c.line.startswith(("openssl", "hypergpu token"))]
    assert len(made) == 2
    for line in made:
        assert run(line, tmp_path).returncode == 0
    shown = [next(c.line for c in SHOWN if c.line.startswith(start)) for start in REAL_MACHINES]
    free = "--http-listen 127.0.0.1:0"
    coordinator = f"exec {shown[0].replace('0.0.0.0:50051', '127.0.0.1:0')} {free} --rounds 1"
    log = tmp_path / "coordinator.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", coordinator],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + _START_SECONDS
        while not (found := re.search(r"^listening on (\S+)$", log.read_text(), re.MULTILINE)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        node = run(f"{shown[1].replace('train.example.org:50051', found[1])} {free}", tmp_path)
        assert node.returncode == 0, node.stderr
        assert process.wait(patience(60)) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert (tmp_path / "runs/real/model.safetensors").is_file()


def test_no_reason_is_given_for_a_command_that_is_shown_nowhere() -> None:
    lines = {command.line for command in SHOWN}
    assert lines >= set(NOT_RUN), set(NOT_RUN) - lines
    assert lines >= ENDLESS | MAY_FIND_FAULTS


@pytest.mark.parametrize("document", ["README.md", "docs/library.md", "docs/python-api.md"])
def test_the_library_works_as_shown(document: str, tmp_path: Path) -> None:
    blocks = python_blocks(document)
    assert blocks
    # One process for the blocks of the API: what each of them imports takes longer than the rest.
    for block in ["\n".join(blocks)] if document == "docs/python-api.md" else blocks:
        done = subprocess.run(
            [sys.executable, "-c", block],
            check=False,
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_continued_lines_comments_and_tables_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = "```sh\nmake up N=8   # start\npython -m x \\\n  --y 1 &\n```\n"
    text = f"{block}| `hypergpu a b`, `hypergpu c` | `hypergpu no` |\n"
    (tmp_path / "a.md").write_text(text)
    monkeypatch.setattr("tests.documents.ROOT", tmp_path)
    lines = ["make up N=8", "python -m x --y 1", "hypergpu a b", "hypergpu c"]
    assert list(commands("a.md")) == [Command("a.md", line) for line in lines]
