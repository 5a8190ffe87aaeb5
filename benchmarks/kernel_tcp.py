"""Shares of 1 to 16 flows of the kernel's own TCP on one line, beside those of the link model: sum and fairness.

Two network namespaces with a TUN device each; a process of ours carries packets between the two devices. Each direction
has a bandwidth, a drop-tail queue, a constant delay and independent losses. Needs Linux, root and /dev/net/tun.
"""

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from hypergpu.common.errors import InvalidInput
from hypergpu.netsim_proxy.link import Deliver, Direction, Link, LossModel
from hypergpu.netsim_proxy.link.transfer import plain_profile

_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_TCP_CONGESTION: Final = 13
_PORT: Final = 9000
_HOSTS: Final = ("10.99.0.1", "10.99.0.2")
_PAUSE_SECONDS: Final = 0.005
"""Pause between the arrival of a message and the next one of its connection."""
_IPV4: Final = 4
_READ_BYTES: Final = 1 << 20
_SYSCTLS: Final = {"tcp_no_metrics_save": "1", "tcp_slow_start_after_idle": "1"}


@dataclass(frozen=True, slots=True)
class Line:
    """One direction of the line; the other is alike."""

    rtt_ms: float
    bandwidth_mbit: float
    queue_bytes: int
    loss: float = 0.0
    shared: bool = True
    """True if connections share the bandwidth; otherwise each has all of it."""
    drops: tuple[frozenset[int], ...] = ()
    """Packets with data that are lost, numbered from 0 on, for each connection in order of their first data."""


@dataclass(slots=True)
class Transfer:
    """One connection: the seconds that each of its messages took, one way."""

    sizes: Sequence[int]
    start: float = 0.0
    pause_seconds: float = _PAUSE_SECONDS
    seconds: list[float] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """Times since the start of the measurement, and the bytes that arrived then."""


def missing_privilege() -> str:
    """Return why kernel TCP cannot be measured here; empty if it can."""
    if os.name != "posix" or not Path("/proc/self/ns/net").exists():
        return "not Linux"
    if os.geteuid() != 0:
        return "not root"
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun"
    pid = os.fork()
    if pid == 0:
        try:
            _enter_new_namespace()
            _open_tun("probe")  # it lasts as long as this process
            _configure("probe", _HOSTS[0])
            os._exit(0)
        except (OSError, subprocess.CalledProcessError):
            os._exit(1)
    return "" if os.waitpid(pid, 0)[1] == 0 else "network namespaces or TUN devices are not permitted"


def measure(line: Line, transfers: Sequence[Transfer], *, seed: int = 0, most_seconds: float = 120.0) -> None:
    """Run `transfers` side by side through `line`, and fill in their seconds and arrivals.

    Runs in a process of its own, so that the caller stays in its network namespace.

    Raises:
        InvalidInput: this machine does not permit it; the message says why.
    """
    if reason := missing_privilege():
        raise InvalidInput(f"kernel TCP cannot be measured: {reason}")
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(readable)
            _measure_here(line, transfers, seed, most_seconds)
            with os.fdopen(writable, "w") as out:
                for number, transfer in enumerate(transfers):
                    out.writelines(f"s {number} {each!r}\n" for each in transfer.seconds)
                    out.writelines(f"a {number} {at!r} {nbytes}\n" for at, nbytes in transfer.arrivals)
            code = 0
        finally:
            os._exit(code)
    os.close(writable)
    with os.fdopen(readable) as results:
        for row in results:
            kind, index, *values = row.split()
            if kind == "s":
                transfers[int(index)].seconds.append(float(values[0]))
            else:
                transfers[int(index)].arrivals.append((float(values[0]), int(values[1])))
    if os.waitpid(pid, 0)[1] != 0:
        raise InvalidInput("kernel TCP cannot be measured: the measuring process failed")


# --- the line


class _Direction:
    """Packets from one device to the other."""

    def __init__(self, line: Line, source: int, target: int, random: Random, *, port_offset: int) -> None:
        self.source, self.target = source, target
        self._line, self._random, self._port_offset = line, random, port_offset
        self._seconds_per_byte = 1 / (line.bandwidth_mbit * 125_000)
        self._delay = line.rtt_ms / 2000
        self._busy_until: dict[bytes, float] = {}
        self._limit_seconds = line.queue_bytes * self._seconds_per_byte
        self._sent: dict[bytes, list[int]] = {}  # by port: number of the connection, packets with data so far

    def accept(self, now: float, packet: bytes) -> float | None:
        """Return when a packet arrives; None if it is lost."""
        if packet[0] >> 4 != _IPV4:
            return None  # the kernel looks for IPv6 routers
        key = b"" if self._line.shared else packet[20 + self._port_offset : 22 + self._port_offset]
        begin = max(now, self._busy_until.get(key, 0.0))
        seconds = len(packet) * self._seconds_per_byte
        if begin - now + seconds > self._limit_seconds:
            return None
        self._busy_until[key] = begin + seconds
        lost = self._random.random() < self._line.loss or (bool(self._line.drops) and self._is_to_drop(packet))
        return None if lost else begin + seconds + self._delay

    def _is_to_drop(self, packet: bytes) -> bool:
        if len(packet) <= 20 + (packet[32] >> 4) * 4 or self._port_offset:
            return False
        counts = self._sent.setdefault(packet[20:22], [len(self._sent), -1])
        counts[1] += 1
        return counts[1] in self._line.drops[counts[0] % len(self._line.drops)]


def _carry(line: Line, devices: tuple[int, int], seed: int) -> None:
    """Carry packets for ever."""
    random = Random(seed)
    up = _Direction(line, devices[0], devices[1], random, port_offset=0)
    down = _Direction(line, devices[1], devices[0], random, port_offset=2)
    due: list[tuple[float, int, int, bytes]] = []
    order = 0
    clock, read, write = time.monotonic, os.read, os.write
    for device in devices:
        os.set_blocking(device, False)
    while True:
        wait = max(0.0, due[0][0] - clock()) if due else 1.0
        ready = select.select(devices, (), (), wait)[0]
        for direction in (up, down):
            if direction.source not in ready:
                continue
            now = clock()
            with contextlib.suppress(BlockingIOError):
                for _ in range(64):
                    packet = read(direction.source, 2048)
                    at = direction.accept(now, packet)
                    if at is not None:
                        order += 1
                        heapq.heappush(due, (at, order, direction.target, packet))
        now = clock()
        while due and due[0][0] <= now:
            _, _, target, packet = heapq.heappop(due)
            with contextlib.suppress(BlockingIOError):
                write(target, packet)


# --- namespaces


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _enter_new_namespace() -> int:
    if _libc().unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def _enter(namespace: int) -> None:
    if _libc().setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _open_tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def _configure(name: str, host: str) -> None:
    for command in (
        f"ip addr add {host}/24 dev {name}",
        f"ip link set {name} txqueuelen 20000 mtu 1500 up",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)
    for key, value in _SYSCTLS.items():
        Path(f"/proc/sys/net/ipv4/{key}").write_text(value)


@contextlib.contextmanager
def _namespaces(line: Line, seed: int) -> Iterator[tuple[int, int]]:
    namespaces, devices = [], []
    for name, host in zip(("near", "far"), _HOSTS, strict=True):
        namespaces.append(_enter_new_namespace())
        devices.append(_open_tun(name))
        _configure(name, host)
    pid = os.fork()
    if pid == 0:
        try:
            _carry(line, (devices[0], devices[1]), seed)
        finally:
            os._exit(1)
    try:
        yield namespaces[0], namespaces[1]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# --- the transfers


class _Flow:
    def __init__(self, number: int, transfer: Transfer, client: socket.socket) -> None:
        self.number, self.transfer, self.client = number, transfer, client
        self.server: socket.socket | None = None
        self.index = -1
        self.due = transfer.start
        self.began = 0.0
        self.left_to_send = self.left_to_read = 0
        self.done = False


def _measure_here(line: Line, transfers: Sequence[Transfer], seed: int, most_seconds: float) -> None:
    with _namespaces(line, seed) as (near, far):
        _enter(far)
        listener = socket.create_server((_HOSTS[1], _PORT), backlog=1024)
        _enter(near)
        _run(listener, [_connect(number, transfer) for number, transfer in enumerate(transfers)], most_seconds)


def _connect(number: int, transfer: Transfer) -> _Flow:
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, b"cubic")
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _Flow(number, transfer, client)


def _run(listener: socket.socket, flows: list[_Flow], most_seconds: float) -> None:
    """Connect each flow, find its far side by its port, and run its messages."""
    by_port = {}
    for flow in flows:
        flow.client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            flow.client.connect((_HOSTS[1], _PORT))
        by_port[flow.client.getsockname()[1]] = flow
    listener.settimeout(30)
    for _ in flows:
        server, peer = listener.accept()
        server.setblocking(False)
        by_port[peer[1]].server = server
    for flow in flows:  # the client's side is up half a round trip later
        select.select((), (flow.client,), (), 30)
    time.sleep(0.2)
    _pump(flows, most_seconds)


def _pump(flows: list[_Flow], most_seconds: float) -> None:
    """Send and read the messages of connected flows, each when it is due."""
    selector = selectors.DefaultSelector()
    for flow in flows:
        assert flow.server is not None
        selector.register(flow.server, selectors.EVENT_READ, flow)
    payload = memoryview(bytes(_READ_BYTES))
    origin = time.monotonic()
    end = origin + most_seconds
    for flow in flows:
        flow.due += origin
    waiting = list(flows)
    sending: set[_Flow] = set()
    while (now := time.monotonic()) < end and not all(flow.done for flow in flows):
        for flow in [flow for flow in waiting if flow.due <= now]:
            waiting.remove(flow)
            flow.index += 1
            flow.left_to_send = flow.left_to_read = flow.transfer.sizes[flow.index]
            flow.began = time.monotonic()
            _send(flow, payload, selector, sending)
        timeout = max(0.0, min([flow.due for flow in waiting], default=end) - time.monotonic())
        for key, _ in selector.select(min(timeout, 1.0)):
            flow = key.data
            if key.fileobj is flow.client:
                _send(flow, payload, selector, sending)
            elif _read(flow, origin):
                if flow.index + 1 < len(flow.transfer.sizes):
                    flow.due = time.monotonic() + flow.transfer.pause_seconds
                    waiting.append(flow)
                else:
                    flow.done = True


def _send(flow: _Flow, payload: memoryview, selector: selectors.BaseSelector, sending: set[_Flow]) -> None:
    with contextlib.suppress(BlockingIOError):
        while flow.left_to_send:
            flow.left_to_send -= flow.client.send(payload[: flow.left_to_send])
    if flow.left_to_send and flow not in sending:
        sending.add(flow)
        selector.register(flow.client, selectors.EVENT_WRITE, flow)
    elif not flow.left_to_send and flow in sending:
        sending.discard(flow)
        selector.unregister(flow.client)


def _read(flow: _Flow, origin: float) -> bool:
    """Read what is there; return whether the message is complete."""
    assert flow.server is not None
    with contextlib.suppress(BlockingIOError):
        while flow.left_to_read:
            nbytes = len(flow.server.recv(min(_READ_BYTES, flow.left_to_read)))
            if not nbytes:
                break
            now = time.monotonic()
            flow.left_to_read -= nbytes
            flow.transfer.arrivals.append((now - origin, nbytes))
    if flow.left_to_read:
        return False
    flow.transfer.seconds.append(time.monotonic() - flow.began)
    return True


# --- comparison

_PIECE_BYTES: Final = 16 << 10
_WARM_UP_SECONDS: Final = 3.0


def kernel_shares(line: Line, flows: int, seconds: float) -> list[float]:
    """Return the Mbit/s of each connection of the kernel, after a warm-up."""
    transfers = [Transfer([10**9], start=0.001 * number) for number in range(flows)]
    measure(line, transfers, most_seconds=seconds)
    return [
        sum(nbytes for at, nbytes in transfer.arrivals if at >= _WARM_UP_SECONDS) * 8e-6 / (seconds - _WARM_UP_SECONDS)
        for transfer in transfers
    ]


def model_shares(line: Line, flows: int, seconds: float) -> list[float]:
    """Return the same of the link model."""
    profile = plain_profile(line.rtt_ms, line.bandwidth_mbit, line.loss, queue_bytes=line.queue_bytes)
    link = Link("n", profile, seed=0, loss_model=LossModel.TRANSPORT)
    rpcs = [link.begin(0.0, number) for number in range(flows)]
    due, received = [(0.001 * number, number) for number in range(flows)], [0] * flows
    while due[0][0] < seconds:
        now, number = heapq.heappop(due)
        outcome = link.offer(now, Direction.UP, _PIECE_BYTES, rpcs[number])
        assert isinstance(outcome, Deliver)
        received[number] += _PIECE_BYTES if _WARM_UP_SECONDS <= outcome.at < seconds else 0
        heapq.heappush(due, (link.room_at(now, Direction.UP, number), number))
    return [nbytes * 8e-6 / (seconds - _WARM_UP_SECONDS) for nbytes in received]


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtt-ms", type=float, default=40)
    parser.add_argument("--bandwidth-mbit", type=float, default=20)
    parser.add_argument("--queue-bytes", type=int, default=100_000)
    parser.add_argument("--loss", type=float, default=0.01)
    parser.add_argument("--seconds", type=float, default=15, help="length of each measurement")
    arguments = parser.parse_args()
    if reason := missing_privilege():
        print(f"skipped: {reason}")
        return
    line = Line(arguments.rtt_ms, arguments.bandwidth_mbit, arguments.queue_bytes, arguments.loss)
    for flows in (1, 2, 4, 8, 16):
        for name, shares in (
            ("kernel", kernel_shares(line, flows, arguments.seconds)),
            ("model", model_shares(line, flows, arguments.seconds)),
        ):
            fairness = sum(shares) ** 2 / (flows * sum(share * share for share in shares))
            print(f"{flows:3} flows, {name:6} {sum(shares):6.2f} Mbit/s, Jain's index {fairness:.2f}")


if __name__ == "__main__":
    main()
