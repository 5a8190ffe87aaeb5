"""Measuring a real path into a trace: small calls to a gRPC health service, each timed, and summed up per row."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from statistics import median

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.clock import monotonic
from common.errors import Unavailable
from common.rpc import Tls, open_channel
from netsim_proxy.link.traces import Row

Check = Callable[..., Awaitable[health_pb2.HealthCheckResponse]]

_TIMEOUT_SECONDS = 5.0
_ANSWERS = (
    grpc.StatusCode.OK,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
)
"""What only the far end can say, so that it was reached; any other status is a loss."""


async def record(
    address: str, tls: Tls | None, *, seconds: float, row_seconds: float = 1.0, calls_per_row: int = 10
) -> AsyncIterator[Row]:
    """Rows of a trace, each as soon as it is measured: the median round trip, and the share of calls that failed.

    A row in which no call came back repeats the last round trip. Bandwidth is not measured: that would load the path.

    Raises:
        Unavailable: nothing answers at the start.
    """
    async with open_channel(address, tls) as channel:
        check: Check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # generated at run time
        # The first call also makes the connection; it is not measured.
        if await _time_of(check) is None and await _time_of(check) is None:
            raise Unavailable(f"nothing answers at {address}: is it HOST:PORT of a gRPC server, with or without TLS?")
        began = monotonic()
        last_ms = 0.0
        for row in range(max(1, math.ceil(seconds / row_seconds))):
            due = [began + row * row_seconds + call * row_seconds / calls_per_row for call in range(calls_per_row)]
            times = await asyncio.gather(*(_later(check, at) for at in due))
            answered = [time for time in times if time is not None]
            last_ms = median(answered) * 1000 if answered else last_ms
            yield Row(row * row_seconds, last_ms, 1 - len(answered) / calls_per_row)


async def _later(check: Check, at: float) -> float | None:
    await asyncio.sleep(at - monotonic())
    return await _time_of(check)


async def _time_of(check: Check) -> float | None:
    """Seconds of one call, or None where nothing came back."""
    began = monotonic()
    try:
        await check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError as error:
        if error.code() not in _ANSWERS:
            return None
    return monotonic() - began
