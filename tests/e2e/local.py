"""Real processes on this machine, for the tests of whole clusters."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.patience import until

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class Process:
    """One `python -m MODULE` with its log."""

    def __init__(self, log: Path, module: str, *arguments: str) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], stdout=output, stderr=output, env=ENVIRONMENT
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def address(self) -> str:
        def printed() -> str | None:
            assert self.popen.poll() is None, self.text
            found = re.search(r"listening on (\S+)", self.text)
            return found and found[1]

        return str(until(printed, f"an address of {self.log.name}"))

    def wait(self) -> int:
        until(lambda: self.popen.poll() is not None, f"the end of {self.log.name}", more=lambda: self.text[-2000:])
        return self.popen.returncode

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


class Cluster:
    """Processes whose run is in `out`; the fixture `cluster` ends what is left of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.out = path / "run"
        self.processes: list[Process] = []

    def start(self, name: str, module: str, *arguments: str) -> Process:
        process = Process(self.path / f"{name}.log", module, *arguments)
        self.processes.append(process)
        return process

    def coordinator(self, *arguments: str, listen: str = "127.0.0.1:0", name: str = "coordinator") -> Process:
        plain = (f"--listen={listen}", "--http-listen=127.0.0.1:0", "--insecure", f"--out={self.out}")
        return self.start(name, "coordinator", *plain, *arguments)

    def proxy(self, upstream: str, profile: str) -> Process:
        plain = ("--listen=127.0.0.1:0", "--seed=1")
        return self.start("proxy", "netsim_proxy", *plain, f"--upstream={upstream}", f"--profile={profile}")

    def node(self, name: str, address: str) -> Process:
        return self.start(name, "node", f"--coordinator={address}", f"--node-id={name}", "--insecure")

    def rounds(self) -> list[dict[str, Any]]:
        file = self.out / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def reach(self, round_number: int) -> None:
        text = lambda: self.processes[0].text[-2000:]  # noqa: E731
        until(lambda: len(self.rounds()) >= round_number, f"round {round_number}", more=text)

    def summary(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        return loaded
