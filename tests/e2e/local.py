"""Real processes on this machine, for the tests of whole clusters.

Half of a short test was once the import of torch in each of its processes. They are forked from one server that has
imported it, and are processes in every other way: they have their own memory, descriptors and signals.
"""

import json
import multiprocessing
import os
import re
import runpy
import signal
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from tests.patience import patience, until

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
_IMPORTED = (
    "hypergpu.coordinator.app",
    "hypergpu.node.worker",
    "hypergpu.netsim_proxy.io.server",
    "hypergpu.tasks.digits",
    "torch._dynamo",
)
"""What takes long, and starts no thread: a fork has only the thread that called it."""


def fork_server() -> ForkServerContext:
    """Return the server that all processes are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


def _main(service: str, arguments: tuple[str, ...], log: Path, environment: Mapping[str, str], directory: Path) -> None:
    """Become `hypergpu SERVICE ARGUMENTS`, with both streams in `log`."""
    assert set(_IMPORTED) <= set(sys.modules), "the server has not imported what it should"
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # the real one: nothing captures it here
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["hypergpu", service, *arguments]
    runpy.run_module("hypergpu", run_name="__main__", alter_sys=True)


class Process:
    """One `hypergpu SERVICE` with its log."""

    def __init__(self, log: Path, service: str, *arguments: str, directory: Path | None = None) -> None:
        self.log = log
        log.touch()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")  # for the server too: it is started with the first process
            target = (service, arguments, log, dict(os.environ), directory or Path.cwd())
            self._process = fork_server().Process(target=_main, args=target)
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def returncode(self) -> int | None:
        """The exit code once it has ended, the negative signal that ended it, or None."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def address(self) -> str:
        def printed() -> str | None:
            assert self.returncode is None, self.text
            found = re.search(r"\blistening on (\S+)", self.text)
            return found and found[1]

        return str(until(printed, f"an address of {self.log.name}"))

    def wait(self) -> int | None:
        until(lambda: self.returncode is not None, f"the end of {self.log.name}", more=lambda: self.text[-2000:])
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)
            self._process.join(patience())


class Cluster:
    """Processes whose run is in `out`; the fixture `cluster` ends what is left of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.out = path / "run"
        self.processes: list[Process] = []

    def start(self, name: str, service: str, *arguments: str, directory: Path | None = None) -> Process:
        process = Process(self.path / f"{name}.log", service, *arguments, directory=directory)
        self.processes.append(process)
        return process

    def coordinator(self, *arguments: str, listen: str = "127.0.0.1:0", name: str = "coordinator") -> Process:
        plain = (f"--listen={listen}", "--http-listen=127.0.0.1:0", "--insecure", f"--out={self.out}")
        return self.start(name, "coordinator", *plain, *arguments)

    def proxy(self, upstream: str, profile: str) -> Process:
        plain = ("--listen=127.0.0.1:0", "--seed=1")
        return self.start("proxy", "proxy", *plain, f"--upstream={upstream}", f"--profile={profile}")

    def node(self, name: str, address: str) -> Process:
        state = f"--set=node.state_dir={self.path / 'leases'}"
        return self.start(name, "node", f"--coordinator={address}", f"--node-id={name}", "--insecure", state)

    def rounds(self) -> list[dict[str, Any]]:
        file = self.out / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def rounds_told(self) -> list[int]:
        """Return the rounds on record, without a last line that is cut short."""
        file = self.out / "rounds.jsonl"
        text = file.read_text() if file.exists() else ""
        return [int(json.loads(line)["round"]) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def reach(self, round_number: int) -> None:
        text = lambda: self.processes[0].text[-2000:]  # noqa: E731
        until(lambda: len(self.rounds()) >= round_number, f"round {round_number}", more=text)

    def summary(self, run: Path | None = None) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(((run or self.out) / "summary.json").read_text())
        return loaded
