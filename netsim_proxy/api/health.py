"""Health endpoints: `/healthz` checks that the event loop runs, `/readyz` that clients are accepted."""

import asyncio
from typing import Final

from prometheus_client import CollectorRegistry

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.http import Answer, Routes, metrics

_BEAT_SECONDS: Final = 0.5
_STALLED_SECONDS: Final = 5.0
"""Time without an iteration of the event loop after which `/healthz` fails: the proxy delivers nothing."""


class Health:
    """State of the proxy for the health endpoints. Created in its event loop; readable from any thread."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self.is_accepting = False
        """True if clients may connect: not before the proxy listens and while it drains."""
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._beat()

    def healthz(self) -> Answer:
        """Answer 200 as long as the event loop runs."""
        silent_seconds = self._clock() - self._beat_at
        if silent_seconds > _STALLED_SECONDS:
            return Answer(f"the event loop has not run for {silent_seconds:.0f} s\n".encode(), status=503)
        return Answer(b"running\n")

    def readyz(self) -> Answer:
        """Answer 200 as long as clients are accepted."""
        health = self.healthz()
        if health.status != 200:
            return health
        return Answer(b"accepting clients\n") if self.is_accepting else Answer(b"accepting no clients\n", status=503)

    def _beat(self) -> None:
        self._beat_at = self._clock()
        self._loop.call_later(_BEAT_SECONDS, self._beat)


def routes(registry: CollectorRegistry, health: Health) -> Routes:
    """Return the HTTP routes of the proxy."""
    return {"/metrics": metrics(registry), "/healthz": health.healthz, "/readyz": health.readyz}
