"""Heartbeats, newcomers and memory of a coordinator while callers flood it, with real processes.

    python benchmarks/floods.py --seconds 10

Each flood has four processes with 16 calls in flight each, on this machine: with the join token, and a viewer's where
it needs one. All callers have one address. Meanwhile a node in a process of its own sends 20 heartbeats a second, and
one newcomer a second registers.
"""

import argparse
import asyncio
import multiprocessing
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from hypergpu.common.rpc import metadata_for, open_channel
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import coordinator_pb2_grpc

PROCESSES, IN_FLIGHT = 4, 16
JOIN, VIEWER = (os.environ.setdefault(f"FLOODS_{kind}", secrets.token_urlsafe(16)) for kind in ("JOIN", "VIEWER"))
"""Tokens, which the processes of a flood inherit."""
FLOODS = ("none", "registrations", "heartbeats", "uploads", "status", "watchers", "wrong tokens", "http")
Call = Callable[[], Awaitable[Any]]


def main() -> None:
    """Print a row for each flood."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each flood")
    seconds = parser.parse_args().seconds
    print(
        f"{'flood':<14} {'heartbeats':>10} {'p50 ms':>7} {'p99 ms':>7} {'newcomers':>9} {'worst ms':>8} {'MiB more':>8}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for flood in FLOODS:
            print(row(flood, Path(folder) / flood, seconds), flush=True)


def row(flood: str, folder: Path, seconds: float) -> str:
    """Return the figures of one flood, before a coordinator of its own."""
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        command = [
            sys.executable,
            "-m",
            "hypergpu",
            "coordinator",
            "--insecure",
            "--rounds=0",
            "--set=server.heartbeat_seconds=0.5",
            f"--out={folder / 'run'}",
        ]
        listen = ["--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--min-nodes=2"]
        environment = os.environ | {"HYPERGPU_TOKEN": JOIN, "HYPERGPU_VIEWER_TOKEN": VIEWER, "OMP_NUM_THREADS": "1"}
        coordinator = subprocess.Popen([*command, *listen], stdout=log, stderr=log, env=environment)
    try:
        address, http = addresses(folder / "log", coordinator)
        before = resident_mib(coordinator.pid)
        context = multiprocessing.get_context("spawn")
        calls = context.Value("q", 0)
        arguments = (flood, address, http, seconds + 2.0, calls)
        floods = [context.Process(target=start, args=arguments) for _ in range(PROCESSES)]
        for process in floods if flood != "none" else ():
            process.start()
        time.sleep(2.0)
        found = asyncio.run(measure(address, seconds))
        more = resident_mib(coordinator.pid) - before
        for process in floods if flood != "none" else ():
            process.join()
    finally:
        coordinator.terminate()
        coordinator.wait()
    beats, joins = found
    p50, p99 = np.quantile(beats, [0.5, 0.99])
    figures = f"{len(beats):>10} {p50:>7.1f} {p99:>7.1f}"
    counts = f"{calls.value / (seconds + 2.0):>7.0f} {figures} {len(joins):>9}"
    return f"{flood:<14} {counts} {max(joins, default=0.0):>8.0f} {more:>8.0f}"


async def measure(address: str, seconds: float) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each heartbeat of a node, and of each newcomer's registration."""
    beats: list[float] = []
    joins: list[float] = []

    async def beat() -> None:
        async with open_channel(address, None) as channel:
            node = await Node.join(channel, "node")
            while True:
                beats.append(await milliseconds(node.heartbeat()))
                await asyncio.sleep(max(0.0, 0.05 - beats[-1] / 1000))

    async def come() -> None:
        while True:
            async with open_channel(address, None) as channel:
                joins.append(await milliseconds(Node.join(channel, f"newcomer-{len(joins)}")))
            await asyncio.sleep(1.0)

    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(beat(), come()), seconds)
    return beats, joins


async def milliseconds(operation: Awaitable[object]) -> float:
    """Return the duration of an operation."""
    began = time.monotonic()
    await operation
    return 1000 * (time.monotonic() - began)


class Node:
    """A node that is registered, and trains nothing."""

    def __init__(self, stub: Any, name: str, reply: pb.RegisterReply) -> None:
        self.stub, self.name, self.run_id = stub, name, reply.run_id
        self.metadata = metadata_for(name, JOIN, reply.lease)

    @classmethod
    async def join(cls, channel: grpc.aio.Channel, name: str) -> "Node":
        """Register, however often that takes."""
        stub: Any = coordinator_pb2_grpc.TrainingStub(channel)
        request = pb.RegisterRequest(node_id=name, incarnation=secrets.token_hex(16))
        while True:
            try:
                return cls(stub, name, await stub.Register(request, metadata=metadata_for(name, JOIN)))
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)

    async def heartbeat(self) -> None:
        """Send a heartbeat."""
        request = pb.HeartbeatRequest(node_id=self.name, run_id=self.run_id, state="idle")
        await self.stub.Heartbeat(request, metadata=self.metadata)


def start(flood: str, address: str, http: str, seconds: float, calls: Any) -> None:
    """Flood until the time is over, and add the number of calls to `calls`."""
    made = [0]
    with suppress(TimeoutError):
        asyncio.run(asyncio.wait_for(run_flood(flood, address, http, made), seconds))
    with calls.get_lock():
        calls.value += made[0]


async def run_flood(flood: str, address: str, http: str, made: list[int]) -> None:
    """Keep calls in flight; failures are what a flood expects."""

    async def repeat(call: Call) -> None:
        while True:
            made[0] += 1
            with suppress(grpc.aio.AioRpcError, OSError):
                await call()

    async with open_channel(address, None) as channel:
        call = await call_of(flood, channel, http)
        await asyncio.gather(*(repeat(call) for _ in range(IN_FLIGHT)))


async def call_of(flood: str, channel: grpc.aio.Channel, http: str) -> Call:
    """Return the call that a flood consists of."""
    training: Any = coordinator_pb2_grpc.TrainingStub(channel)
    control: Any = coordinator_pb2_grpc.ControlStub(channel)
    viewer, wrong = metadata_for(None, VIEWER), metadata_for("node", "wrong")
    if flood in {"heartbeats", "uploads"}:
        node = await Node.join(channel, f"flooder-{os.getpid()}")
        work = pb.WorkId(run_id=node.run_id, round=1, node_id=node.name, attempt=1)
        part = pb.UpdatePart(header=pb.UpdateHeader(work=work, samples=1, loss=0.5))
        push: Any = channel.stream_unary(
            "/hypergpu.coordinator.v1.Training/PushUpdate", pb.UpdatePart.SerializeToString
        )
        return node.heartbeat if flood == "heartbeats" else lambda: push(iter([part]), metadata=node.metadata)

    def register() -> Any:
        request = pb.RegisterRequest(node_id=f"ghost-{secrets.token_hex(8)}", incarnation="ghost")
        return training.Register(request, metadata=metadata_for(None, JOIN))

    async def get() -> None:
        host, _, port = http.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        await reader.read()
        writer.close()

    calls: dict[str, Call] = {
        "registrations": register,
        "status": lambda: control.GetStatus(pb.GetStatusRequest(), metadata=viewer),
        "watchers": lambda: control.WatchEvents(pb.WatchEventsRequest(replay=500), metadata=viewer).read(),
        "wrong tokens": lambda: training.Heartbeat(pb.HeartbeatRequest(node_id="node"), metadata=wrong),
        "http": get,
    }
    return calls[flood]


def addresses(log: Path, coordinator: "subprocess.Popen[bytes]") -> tuple[str, str]:
    """Return the addresses of gRPC and HTTP once both accept connections."""
    while not (found := re.search(r"^listening on (\S+)$", log.read_text(), re.MULTILINE)):
        if coordinator.poll() is not None:
            sys.exit(log.read_text())
        time.sleep(0.1)
    http = re.search(r"^metrics on (\S+)$", log.read_text(), re.MULTILINE)
    assert http is not None
    host, _, port = http[1].rpartition(":")
    socket.create_connection((host, int(port))).close()
    return found[1], http[1]


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    main()
