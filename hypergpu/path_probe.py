"""Measuring a real path into a trace: calls to a gRPC health service, each timed, and summed up per row.

Round trips and losses come from small calls. Bandwidth comes from trains of large ones, each sent all at once: what
counts is how far apart the answers of its second half are, so that the round trip is not in it (the dispersion of
packet trains; Dovrolis et al., "What do packet dispersion techniques measure?", INFOCOM 2001). Trains get longer until
TCP's window has grown to what the path can carry.
"""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from hypergpu.common.clock import monotonic
from hypergpu.common.errors import Unavailable
from hypergpu.common.rpc import open_channel
from hypergpu.common.tls import Tls
from hypergpu.netsim_proxy.link.traces import Row

Check = Callable[..., Awaitable[bytes]]

_CHECK = "/grpc.health.v1.Health/Check"
_TIMEOUT_SECONDS = 5.0
_READ = (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)
"""What a server answers once it has read the whole request."""
_ANSWERS = (*_READ, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED)
"""What only the far end can say, so that it was reached; any other status is a loss."""
_PROBE_CALLS = 8
_PROBE_TIMEOUT_SECONDS = 30.0
"""After which a bandwidth is not waited for any longer."""
_PROBE_SHARES = (1 / 8, 1 / 4, 1 / 2, 1, 1, 1)
"""Lengths of the trains of one measurement."""
_ALIKE = 1.1
"""The factor that two trains in turn may differ by; one that is faster by more was held back by TCP before."""
_ROUND_TRIPS = 4
"""What the second half of a train must last, so that jitter is small beside it."""
MAX_PROBE_BYTES = _PROBE_CALLS * 3_000_000
"""Calls below the 4 MiB that a server takes by default."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A row of the trace, and what it is worth."""

    row: Row
    at_least: bool = False
    """Whether trains were too short to fill the path, so that its bandwidth may be higher."""


async def record(
    address: str,
    tls: Tls | None,
    *,
    seconds: float,
    row_seconds: float = 1.0,
    calls_per_row: int = 10,
    probe_bytes: int = 0,
    probe_every_seconds: float = 30.0,
) -> AsyncIterator[Measured]:
    """Rows of a trace, each as soon as it is measured: the median round trip, and the share of calls that failed.

    A row in which no call came back repeats the last round trip. Every `probe_every_seconds` a row begins with trains
    of up to `probe_bytes` (0 = none, and no bandwidth) and lasts longer by them; together they are of 3 / 8 to 4 times
    as many bytes. Their rate is what one TCP connection carried, the way up; no health service sends as much down. It
    holds until it is measured again, also where no train came through.

    Raises:
        Unavailable: nothing answers at the start.
    """
    async with open_channel(address, tls) as channel:
        check: Check = channel.unary_unary(_CHECK)
        # The first call also makes the connection; it is not measured.
        if await _time_of(check) is None and await _time_of(check) is None:
            raise Unavailable(f"nothing answers at {address}: is it HOST:PORT of a gRPC server, with or without TLS?")
        last_ms = 1000 * (await _time_of(check) or 0.0)
        began = start = monotonic()
        next_probe, up_mbit, at_least = began if probe_bytes else math.inf, math.inf, False
        while start - began < max(seconds - row_seconds / 2, 1e-9):
            if start >= next_probe:
                next_probe += probe_every_seconds
                up_mbit, at_least = await _bandwidth(check, probe_bytes, last_ms / 1000) or (up_mbit, at_least)
            calls = monotonic()
            due = [calls + call * row_seconds / calls_per_row for call in range(calls_per_row)]
            times = await asyncio.gather(*(_later(check, at) for at in due))
            answered = [time for time in times if time is not None]
            last_ms = median(answered) * 1000 if answered else last_ms
            yield Measured(Row(start - began, last_ms, 1 - len(answered) / calls_per_row, up_mbit), at_least)
            start = max(calls + row_seconds, monotonic())
            await asyncio.sleep(start - monotonic())


async def _later(check: Check, at: float) -> float | None:
    await asyncio.sleep(at - monotonic())
    return await _time_of(check)


async def _time_of(check: Check) -> float | None:
    """Seconds of one call, or None where nothing came back."""
    began = monotonic()
    try:
        await check(b"", timeout=_TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() not in _ANSWERS:
            return None
    return monotonic() - began


async def _bandwidth(check: Check, most_bytes: int, round_trip: float) -> tuple[float, bool] | None:
    """Mbit/s of the way up, and whether it may be more; None where hardly a train came through whole."""
    rates: list[float] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(_PROBE_TIMEOUT_SECONDS):
            for share in _PROBE_SHARES:
                call_bytes = max(1, int(most_bytes * share) // _PROBE_CALLS)
                times = await _train(check, call_bytes)
                if times is None:
                    continue
                rate, seconds = rate_of_train(times, call_bytes)
                rates.append(rate)
                if seconds >= _ROUND_TRIPS * round_trip and len(rates) > 1 and 1 / _ALIKE < rate / rates[-2] < _ALIKE:
                    break
    return (median(rates[-3:]), rates[-1] > rates[-2] * _ALIKE) if len(rates) > 1 else None


async def _train(check: Check, call_bytes: int) -> list[float] | None:
    """When the answers to calls of that size came, in order (seconds); None where one of them failed."""
    # A field that the service does not know, which protobuf skips: no server looks for a service of that name.
    request = AnyMessage(value=os.urandom(call_bytes)).SerializeToString()

    async def answered() -> float:
        try:
            await check(request)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _READ:
                return math.inf
        return monotonic()

    times = await asyncio.gather(*(answered() for _ in range(_PROBE_CALLS)))
    return None if math.inf in times else sorted(times)


def rate_of_train(times: Sequence[float], call_bytes: int) -> tuple[float, float]:
    """Mbit/s and length in seconds of the second half of a train, from the times (seconds) of its answers in order.

    The rate is by the median of all pairs of answers (Theil and Sen), so that one noticed late moves it little.
    """
    half = times[len(times) // 2 - 1 :]
    seconds_per_call = median((b - a) / (j - i) for (i, a), (j, b) in combinations(enumerate(half), 2))
    return call_bytes * 8 / 1e6 / max(seconds_per_call, 1e-9), half[-1] - half[0]
