"""Measurement of a real path as a trace: calls to a gRPC health service, timed and summarised per row.

Round trips and losses are measured with small calls, bandwidth with trains of large calls that are sent at once: the
spacing of the replies to the second half of a train gives the bandwidth, independent of the round trip (the dispersion
of packet trains; Dovrolis et al., "What do packet dispersion techniques measure?", INFOCOM 2001). Trains get longer
until TCP's window has grown to the capacity of the path.
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
"""Status codes of a server that has read the whole request."""
_ANSWERS = (*_READ, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED)
"""Status codes that only the server can send; any other counts as a loss."""
_PROBE_CALLS = 8
_PROBE_TIMEOUT_SECONDS = 30.0
"""Longest duration of one bandwidth measurement."""
_PROBE_SHARES = (1 / 8, 1 / 4, 1 / 2, 1, 1, 1)
"""Lengths of the trains of one measurement, as shares of the longest."""
_ALIKE = 1.1
"""Largest factor between two consecutive trains; a larger one means that TCP limited the earlier train."""
_ROUND_TRIPS = 4
"""Shortest second half of a train, in round trips, so that jitter is small in comparison."""
MAX_PROBE_BYTES = _PROBE_CALLS * 3_000_000
"""Longest train: each call is below the 4 MiB that a server accepts by default."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Row of a trace, and whether its bandwidth is a lower bound."""

    row: Row
    at_least: bool = False
    """True if the trains were too short to fill the path, so that its bandwidth may be higher."""


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
    """Yield the rows of a trace as they are measured: median round trip, and share of failed calls.

    A row without a reply repeats the last round trip. Every `probe_every_seconds` a row begins with trains of up to
    `probe_bytes` (0: no bandwidth is measured), which make it longer; together they have 3 / 8 to 4 times as many
    bytes. Their rate is the upload bandwidth of one TCP connection; a health service cannot measure downloads. The
    bandwidth holds until the next successful measurement.

    Raises:
        Unavailable: the server does not answer at the start.
    """
    async with open_channel(address, tls) as channel:
        check: Check = channel.unary_unary(_CHECK)
        # The first call also opens the connection, so it is not measured.
        if await _time_of(check) is None and await _time_of(check) is None:
            raise Unavailable(f"no gRPC server answers at {address}: check HOST:PORT, and whether it uses TLS")
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
    """Return the seconds of one call; None without a reply."""
    began = monotonic()
    try:
        await check(b"", timeout=_TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() not in _ANSWERS:
            return None
    return monotonic() - began


async def _bandwidth(check: Check, most_bytes: int, round_trip: float) -> tuple[float, bool] | None:
    """Return the upload bandwidth in Mbit/s, and whether it is a lower bound; None if it could not be measured."""
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
    """Return the sorted times (seconds) of the replies to a train; None if a call failed."""
    # An unknown field, which protobuf skips: no server looks up a service of that name.
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
    """Return rate (Mbit/s) and duration (seconds) of the second half of a train, from its sorted reply times (seconds).

    The rate is the median over all pairs of replies (Theil–Sen), which is robust against a late one.
    """
    half = times[len(times) // 2 - 1 :]
    seconds_per_call = median((b - a) / (j - i) for (i, a), (j, b) in combinations(enumerate(half), 2))
    return call_bytes * 8 / 1e6 / max(seconds_per_call, 1e-9), half[-1] - half[0]
