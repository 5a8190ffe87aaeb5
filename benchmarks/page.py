"""Size of the live page, time to its first content and from an event to the screen, frames a second, CPU of viewers.

    python -m benchmarks.page                    # five nodes
    python -m benchmarks.page runs/thousand      # a run, such as `hypergpu simulate thousand-nodes --out` leaves

A copy of the run grows while `hypergpu view` shows it: an event every 0.2 s, a round and nodes.json every 2 s. The
server of the page is the same in a coordinator.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from hypergpu.coordinator.page import static_files
from tests.browser import Browser

VIEWERS = 5
SECONDS = 10.0
# What each drawing of the page shows is on the screen with the frame after it.
WATCH = """(() => {
  globalThis.delays = [];
  const draw = hypergpu.draw.bind(hypergpu);
  let seen = hypergpu.history.records.length;
  hypergpu.draw = (now) => {
    draw(now);
    const { records } = hypergpu.history;
    const fresh = records.slice(seen).map((each) => each.data.written).filter(Boolean);
    seen = records.length;
    const note = () => fresh.forEach((at) => delays.push(Date.now() - at));
    if (fresh.length) requestAnimationFrame(() => setTimeout(note));
  };
})()"""
FRAMES = """new Promise((resolve) => {
  const round = hypergpu.history.rounds.at(-1), began = performance.now();
  let frames = 0;
  const count = () => {
    frames += 1;
    if (!hypergpu.map.flights) hypergpu.map.fly(round);
    if (performance.now() - began < 5000) requestAnimationFrame(count);
    else resolve(1000 * frames / (performance.now() - began));
  };
  requestAnimationFrame(count);
})"""


def made(directory: Path) -> None:
    """Write the beginning of a run of five nodes."""
    nodes = [f"node_{n}" for n in range(5)]
    joined = [{"seconds": 0.1, "round": 1, "kind": "node_joined", "text": f"{n} joined", "node": n} for n in nodes]
    (directory / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in joined))
    row = {"round": 1, "seconds": 1.0, "ended_seconds": 1.2, "loss": 1.0, "accuracy": 0.5, "contributors": nodes}
    traffic = {name: dict.fromkeys(nodes, 100_000) for name in ("bytes_down", "bytes_up")}
    (directory / "rounds.jsonl").write_text(json.dumps(row | traffic) + "\n")
    (directory / "nodes.json").write_text(json.dumps([{"node_id": n, "state": "working"} for n in nodes], indent=1))


class Growing(threading.Thread):
    """A run that goes on."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self._directory = directory
        self._round = json.loads((directory / "rounds.jsonl").read_text().splitlines()[-1])
        self._nodes = (directory / "nodes.json").read_bytes()

    def run(self) -> None:
        number, seconds = self._round["round"], self._round["ended_seconds"]
        for count in range(1_000_000):
            seconds += 0.2
            event = {
                "seconds": seconds,
                "round": number,
                "kind": "decision",
                "text": "batch_size node_1: fills_idle_time",
            }
            event |= {"subject": "node_1", "reason": "fills_idle_time", "figures": {"from": 32, "to": 64}}
            self._append("events.jsonl", event | {"written": time.time() * 1000})
            if count % 10 == 9:
                number += 1
                self._append("rounds.jsonl", self._round | {"round": number, "ended_seconds": seconds})
                (self._directory / "new").write_bytes(self._nodes)
                (self._directory / "new").replace(self._directory / "nodes.json")
            if self.over.wait(0.2 + 0.013 * (count % 7)):  # in no step with the server's looks
                return

    def _append(self, name: str, row: dict[str, object]) -> None:
        with (self._directory / name).open("a") as file:
            file.write(json.dumps(row) + "\n")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_on(address: str, token: str, stack: ExitStack) -> None:
    """Be a viewer: read the stream to its end."""
    request = Request(f"http://{address}/events", headers={"Authorization": f"Bearer {token}"})
    reply = stack.enter_context(urlopen(request))

    def read() -> None:
        while reply.read1(1 << 16):
            pass

    threading.Thread(target=read, daemon=True).start()


def cpu_of_viewers(pid: int, address: str, token: str) -> float:
    """Return the share of a core that the server spends on viewers."""
    with ExitStack() as stack:
        for _ in range(VIEWERS):
            read_on(address, token, stack)
        time.sleep(3.0)  # they have read the records so far
        before = cpu_seconds(pid)
        time.sleep(SECONDS)
        return (cpu_seconds(pid) - before) / SECONDS


def in_browser(url: str, home: Path) -> dict[str, float]:
    with Browser(home) as browser:
        browser.show(url, width=1920, height=1080)
        browser.until("hypergpu.caughtUp && hypergpu.history.records.length > 0", 60)
        ready = browser.value("performance.now()")
        painted = browser.value("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        browser.value(WATCH)
        time.sleep(SECONDS)
        delays = sorted(browser.value("delays"))
        frames = browser.value(FRAMES)
        assert browser.errors == []
    figures = {"first content, ms": painted, "whole run read, ms": ready, "events": len(delays)}
    figures |= {"event to screen, median ms": delays[len(delays) // 2], "p95 ms": delays[int(0.95 * len(delays))]}
    return figures | {"frames a second, bytes moving": frames}


def main() -> None:
    folder = Path(static_files.__file__).parent / "static"
    files = [file for file in folder.iterdir() if not file.name.endswith(".txt")]
    loaded = [static_files.as_sent(file.name, file.read_bytes()) for file in files]
    print(f"size: {sum(map(len, loaded)):,} bytes, {sum(len(gzip.compress(each)) for each in loaded):,} as sent")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        directory = Path(temporary) / "run"
        if len(sys.argv) > 1:
            shutil.copytree(sys.argv[1], directory)
        else:
            directory.mkdir()
            made(directory)
        growing = Growing(directory)
        growing.start()
        command = [sys.executable, "-m", "hypergpu", "view", str(directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            address, token = urlsplit(url).netloc, urlsplit(url).fragment.removeprefix("token=")
            time.sleep(2.0)
            before = cpu_seconds(server.pid)
            time.sleep(SECONDS / 2)
            idle = (cpu_seconds(server.pid) - before) / (SECONDS / 2)
            busy = cpu_of_viewers(server.pid, address, token)
            print(f"CPU: {idle:.2%} of a core without viewers, {busy:.2%} with {VIEWERS}")
            for name, value in in_browser(url, Path(temporary) / "chromium").items():
                print(f"{name}: {value:.0f}")
            growing.over.set()
            server.terminate()


if __name__ == "__main__":
    main()
