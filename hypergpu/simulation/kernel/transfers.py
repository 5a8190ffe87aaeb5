"""Transfers by the kernel's own TCP between two network namespaces, over a delay line."""

import contextlib
import os
import select
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from hypergpu.common.errors import HyperGPUError, InvalidInput
from hypergpu.simulation.kernel.delay_line import Line, carrying
from hypergpu.simulation.kernel.namespaces import enter, enter_new_namespace, missing_permission, open_device

_TCP_CONGESTION: Final = 13
_PORT: Final = 9000
_HOSTS: Final = ("10.99.0.1", "10.99.0.2")
_PAUSE_SECONDS: Final = 0.005
"""Pause between the arrival of a message and the next one of its connection, as in `transfer_times`."""
_CONNECT_SECONDS: Final = 30.0
_BETWEEN_CONNECTIONS_SECONDS: Final = 0.002
"""Pause between two connections. If handshakes waited for one another, the kernel would take its least round trip for
longer than it is, and then RACK mistrusts the acknowledgement of a tail-loss probe (RFC 8985, section 6.2)."""
_SETTLE_SECONDS: Final = 0.2
"""Pause after the connections are open, so that the last of their acknowledgements have arrived."""
_READ_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Transfer:
    """One connection: the seconds that each of its messages took, one way."""

    sizes: Sequence[int]
    start: float = 0.0
    """Seconds after the start of the measurement."""
    pause_seconds: float = _PAUSE_SECONDS
    seconds: list[float] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """Times since the start of the measurement, and the bytes that arrived then."""


def measure(
    line: Line,
    transfers: Sequence[Transfer],
    *,
    seed: int = 0,
    most_seconds: float = 120.0,
    congestion_control: str = "cubic",
) -> None:
    """Run `transfers` side by side through `line`, and fill in their seconds and arrivals.

    Runs in a process of its own, so that the caller stays in its network namespace. A message that has not arrived
    within `most_seconds` gets no seconds.

    Raises:
        InvalidInput: this machine does not permit it; the message says why.
        HyperGPUError: the measuring process failed.
    """
    if reason := missing_permission():
        raise InvalidInput(f"the kernel's TCP cannot be measured here: {reason}")
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(readable)
            _measure_here(line, transfers, seed, most_seconds, congestion_control)
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
        raise HyperGPUError("the kernel's TCP was not measured: the measuring process failed")


@contextlib.contextmanager
def _namespaces(line: Line, seed: int) -> Iterator[tuple[int, int]]:
    namespaces, devices = [], []
    for name, host in zip(("near", "far"), _HOSTS, strict=True):
        namespaces.append(enter_new_namespace())
        devices.append(open_device(name, host))
    with carrying(line, devices[0], devices[1], seed):
        yield namespaces[0], namespaces[1]


class _Flow:
    def __init__(self, number: int, transfer: Transfer, client: socket.socket) -> None:
        self.number, self.transfer, self.client = number, transfer, client
        self.server: socket.socket | None = None
        self.index = -1
        self.due = transfer.start
        self.began = 0.0
        self.left_to_send = self.left_to_read = 0
        self.done = False


def _measure_here(
    line: Line, transfers: Sequence[Transfer], seed: int, most_seconds: float, congestion_control: str
) -> None:
    with _namespaces(line, seed) as (near, far):
        enter(far)
        listener = socket.create_server((_HOSTS[1], _PORT), backlog=1024)
        enter(near)
        flows = [_flow(number, transfer, congestion_control) for number, transfer in enumerate(transfers)]
        _run(listener, flows, most_seconds)


def _flow(number: int, transfer: Transfer, congestion_control: str) -> _Flow:
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_TCP, _TCP_CONGESTION, congestion_control.encode())
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
        time.sleep(_BETWEEN_CONNECTIONS_SECONDS)
    listener.settimeout(_CONNECT_SECONDS)
    for _ in flows:
        server, peer = listener.accept()
        server.setblocking(False)
        by_port[peer[1]].server = server
    for flow in flows:  # the client's side is up half a round trip later
        select.select((), (flow.client,), (), _CONNECT_SECONDS)
    time.sleep(_SETTLE_SECONDS)
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
