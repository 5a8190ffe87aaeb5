"""Rounds that a killed coordinator undoes: SIGKILL at random moments, resumed each time, with a node and a watcher.

    python benchmarks/restarts.py --kills 20

A round counts as told if the watcher saw `round_closed`, rounds.jsonl has its line, or the node was given work of the
next one. A told round is undone if the resumed coordinator does it again.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import coordinator_pb2_grpc

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
_FIRST_SECONDS, _LAST_SECONDS = 0.2, 3.0
"""Time after the first round of a process, in which it is killed."""


class Service:
    """One `hypergpu SERVICE` with its log."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("w") as file:
            command = [sys.executable, "-m", "hypergpu", *arguments, "--insecure"]
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=ENVIRONMENT)

    def find(self, pattern: str, seconds: float = 120.0) -> re.Match[str]:
        """Return the first match of a pattern in the log, once there is one."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := re.search(pattern, self.log.read_text()):
                return found
            time.sleep(0.02)
        raise SystemExit(f"{pattern!r} is not in {self.log}:\n{self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """End the process at once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Watcher:
    """Largest round that watchers were told of."""

    def __init__(self) -> None:
        self.told = 0

    def watch(self, address: str) -> None:
        """Watch a coordinator until it ends."""
        threading.Thread(target=self._watch, args=(address,), daemon=True).start()

    def _watch(self, address: str) -> None:
        stubs: Any = coordinator_pb2_grpc
        with contextlib.suppress(grpc.RpcError), grpc.insecure_channel(address) as channel:
            control = stubs.ControlStub(channel)
            for event in control.WatchEvents(pb.WatchEventsRequest(replay=1000)):
                if event.kind == "round_closed":
                    self.told = max(self.told, event.round)


def rounds_of(out: Path) -> list[int]:
    """Return the rounds in rounds.jsonl; a line that was cut short is none."""
    file = out / "rounds.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(int(json.loads(line)["round"]))
    return found


def measure(kills: int, seed: int, settings: list[str], directory: Path) -> dict[str, object]:
    """Kill a coordinator that often; return what was undone."""
    draws, out, watcher = random.Random(seed), directory / "run", Watcher()
    plain = ["--http-listen=127.0.0.1:0", "--rounds=0", f"--out={out}", *settings]
    coordinator = Service(directory / "coordinator.log", "coordinator", "--listen=127.0.0.1:0", *plain)
    address = coordinator.find(r"\blistening on (\S+)")[1]
    nodes = [
        Service(directory / f"{name}.log", "node", f"--coordinator={address}", f"--node-id={name}")
        for name in ("a", "b")
    ]
    undone, told = [], 0
    try:
        for kill in range(kills):
            watcher.watch(address)
            while not rounds_of(out) or max(rounds_of(out)) <= told:
                time.sleep(0.02)
            time.sleep(draws.uniform(_FIRST_SECONDS, _LAST_SECONDS))
            coordinator.kill()
            told = max([watcher.told, *rounds_of(out)])
            again = ["coordinator", f"--listen={address}", "--resume", *plain]
            coordinator = Service(directory / f"coordinator-{kill}.log", *again)
            coordinator.find(r"\blistening on (\S+)")
            went_on = re.search(r"resumed .*round (\d+)", coordinator.log.read_text())
            undone.append(told - (int(went_on[1]) if went_on else 0))
            print(f"kill {kill + 1}: {told} rounds were told, {undone[-1]} undone", file=sys.stderr)
    finally:
        for service in (coordinator, *nodes):
            service.kill()
    rounds = rounds_of(out)
    return {
        "kills": kills,
        "restarts_that_undid_rounds": sum(each > 0 for each in undone),
        "rounds_undone": sum(each for each in undone if each > 0),
        "most": max(undone),
        "rounds_told": told,
        "rounds_on_record_once": rounds == list(range(1, len(rounds) + 1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of the coordinator")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        settings = [f"--set={each}" for each in options.set]
        print(json.dumps(measure(options.kills, options.seed, settings, Path(directory))))


if __name__ == "__main__":
    main()
