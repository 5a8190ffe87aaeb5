"""Delay line: carries packets between two TUN devices, each direction with a bandwidth, a queue, a delay and losses."""

import contextlib
import heapq
import math
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

_IPV4: Final = 4
_TCP: Final = 6
_IP_HEADER_BYTES: Final = 20
_SYN: Final = 2
_SEQUENCES: Final = 1 << 32
_LONGEST_PACKET: Final = 2048
_READS: Final = 64
"""Packets that are read from one device before the other has its turn."""


@dataclass(frozen=True, slots=True)
class Line:
    """A symmetric line."""

    rtt_ms: float
    bandwidth_mbit: float
    queue_bytes: int
    """Bytes that wait for the bandwidth, the packet on its way included; packets beyond it are dropped."""
    loss: float = 0.0
    """Share of packets lost, acknowledgements too. The first packet of a connection is spared in both directions."""
    shared: bool = True
    """True if connections share the bandwidth; otherwise each has all of it."""
    drops: tuple[frozenset[int], ...] = ()
    """Packets with data that are lost, for each connection in order of their first data.

    They are numbered from 0 on; packets that are sent again have no number and pass.
    """
    access_mbit: float = math.inf
    """Bandwidth in front of the line that all connections share, whatever `shared` says; infinite = none."""
    access_queue_bytes: int = 0
    """Bytes that wait for that bandwidth, the packet on its way included; packets beyond it are dropped."""


@contextlib.contextmanager
def carrying(line: Line, near: int, far: int, seed: int) -> Iterator[None]:
    """Carry packets between two devices, in a process of its own, until the block is left."""
    pid = os.fork()
    if pid == 0:
        try:
            carry(line, near, far, seed)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def carry(line: Line, near: int, far: int, seed: int) -> None:
    """Carry packets for ever."""
    with contextlib.suppress(OSError):  # late packets would count as the network's delay
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    random = Random(seed)
    lanes = (
        Lane(line, near, far, random, port_offset=0),
        Lane(line, far, near, random, port_offset=2),
    )
    due: list[tuple[float, int, int, bytes]] = []
    order = 0
    clock, read, write = time.monotonic, os.read, os.write
    for device in (near, far):
        os.set_blocking(device, False)
    while True:
        wait = max(0.0, due[0][0] - clock()) if due else 1.0
        ready = select.select((near, far), (), (), wait)[0]
        for lane in lanes:
            if lane.source not in ready:
                continue
            now = clock()
            with contextlib.suppress(BlockingIOError):
                for _ in range(_READS):
                    packet = read(lane.source, _LONGEST_PACKET)
                    at = lane.accept(now, packet)
                    if at is not None:
                        order += 1
                        heapq.heappush(due, (at, order, lane.target, packet))
        now = clock()
        while due and due[0][0] <= now:
            _, _, target, packet = heapq.heappop(due)
            with contextlib.suppress(BlockingIOError):
                write(target, packet)


class Lane:
    """One direction: packets from one device to the other.

    Args:
        line: the line.
        source: descriptor of the device that packets are read from.
        target: descriptor of the other device.
        random: draws of losses.
        port_offset: place of the port that names the connection, in the header of TCP.
    """

    def __init__(self, line: Line, source: int, target: int, random: Random, *, port_offset: int) -> None:
        self.source, self.target = source, target
        self._line, self._random, self._port_offset = line, random, port_offset
        self._seconds_per_byte = 1 / (line.bandwidth_mbit * 125_000)
        self._delay = line.rtt_ms / 2000
        self._busy_until: dict[bytes, float] = {}
        self._limit_seconds = line.queue_bytes * self._seconds_per_byte
        self._access_seconds_per_byte = 1 / (line.access_mbit * 125_000)
        self._access_busy_until = 0.0
        self._sent: dict[bytes, list[int]] = {}  # by port: number of the connection, packets so far, next byte

    def accept(self, now: float, packet: bytes) -> float | None:
        """Return when a packet arrives; None if it is lost."""
        if packet[0] >> 4 != _IPV4 or packet[9] != _TCP:
            return None  # the kernel looks for IPv6 routers
        port = _IP_HEADER_BYTES + self._port_offset
        key = b"" if self._line.shared else packet[port : port + 2]
        on_access = len(packet) * self._access_seconds_per_byte
        if on_access:
            passed = max(now, self._access_busy_until) + on_access
            if passed - now > self._line.access_queue_bytes * self._access_seconds_per_byte:
                return None
            self._access_busy_until = now = passed
        begin = max(now, self._busy_until.get(key, 0.0))
        seconds = len(packet) * self._seconds_per_byte
        if begin - now + seconds > self._limit_seconds:
            return None
        self._busy_until[key] = begin + seconds
        return None if self._loses(packet) else begin + seconds + self._delay

    def _loses(self, packet: bytes) -> bool:
        if packet[33] & _SYN:
            return False
        lost = self._random.random() < self._line.loss
        return lost or (bool(self._line.drops) and self._is_to_drop(packet))

    def _is_to_drop(self, packet: bytes) -> bool:
        if len(packet) <= _IP_HEADER_BYTES + (packet[32] >> 4) * 4 or self._port_offset:
            return False
        sequence = int.from_bytes(packet[24:28], "big")
        counts = self._sent.setdefault(packet[20:22], [len(self._sent), -1, sequence])
        if (sequence - counts[2]) % _SEQUENCES >= _SEQUENCES // 2:
            return False  # it is sent again
        counts[1] += 1
        counts[2] = (sequence + 1) % _SEQUENCES
        return counts[1] in self._line.drops[counts[0] % len(self._line.drops)]
