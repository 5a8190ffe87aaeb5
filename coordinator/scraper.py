"""Background scraper of the nodes' /metrics: the monitor's second source beside the RPCs."""

import asyncio
import re

import structlog

from hypergpu.common.background import OnResult, PeriodicTask
from hypergpu.common.config import SystemConfig
from hypergpu.coordinator.engine import Engine
from hypergpu.coordinator.link_telemetry import LinkTelemetry
from hypergpu.coordinator.scrape_targets import ScrapeRule, ScrapeTarget

log = structlog.get_logger()

TIMEOUT_SECONDS = 2.0
MAX_BYTES = 256 << 10
"""Largest accepted response. A node's page takes about 10 KiB."""
MAX_LINE_BYTES = 1 << 10
"""Longest sample line of the wanted series."""
MAX_SAMPLES = 16
"""Largest number of samples of that series: it has one per outcome."""
MAX_COUNT = 1 << 53
"""Largest count that a float64 sample holds exactly."""
CONCURRENT = 64
"""Concurrent scrapes; together they use at most 16 MiB."""
CALLS = "hypergpu_node_rpcs_total"

_SAMPLE = re.compile(
    rf"^{CALLS}\{{outcome=\"(success|failure)\"\}}[ \t]+([0-9]{{1,17}}(?:\.[0-9]+)?(?:[eE][+]?[0-9]{{1,2}})?)"
    rf"(?:[ \t]+-?[0-9]{{1,20}})?[ \t]*\r?$",
    re.ASCII,
)


class Scraper:
    """Scrapes all connected nodes every `monitor.update_interval_seconds`.

    It dials only what `ScrapeRule` permits: a node cannot make the coordinator call somebody else. A node's page is
    read up to a bound and searched in linear time, so that no page holds up the event loop.
    """

    def __init__(
        self, engine: Engine, links: LinkTelemetry, config: SystemConfig, on_result: OnResult = lambda error: None
    ) -> None:
        self._engine = engine
        self._links = links
        self._rule = ScrapeRule(config.server.scrape_hosts)
        self._limit = asyncio.Semaphore(CONCURRENT)
        self._scraping = PeriodicTask(self._scrape_all, config.monitor.update_interval_seconds, on_result)

    def start(self) -> None:
        """Start scraping."""
        self._scraping.start()

    async def stop(self) -> None:
        """Stop scraping."""
        await self._scraping.stop()

    async def _scrape_all(self) -> None:
        targets = self._rule.targets(self._engine.machine.members.connected.values())
        for result in await asyncio.gather(*map(self._scrape_in_turn, targets), return_exceptions=True):
            if isinstance(result, Exception):
                log.error("scrape failed", error=f"{type(result).__name__}: {result}")

    async def _scrape_in_turn(self, target: ScrapeTarget) -> None:
        async with self._limit:
            await self.scrape(target)

    async def scrape(self, target: ScrapeTarget) -> None:
        """Read one node's counters. A failed scrape is not a lost communication: the node may be behind a NAT."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                page = await fetch(target)
            calls, failures = parse(page)
        except (OSError, TimeoutError, ValueError):
            self._links.unreachable(target.node)
            return
        self._links.scraped(target.node, calls, failures)


async def fetch(target: ScrapeTarget) -> bytes:
    """Return the body of http://HOST:PORT/metrics.

    Raises:
        OSError: the endpoint cannot be reached.
        ValueError: the answer is not a 200, or is longer than 256 KiB.
    """
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(f"GET /metrics HTTP/1.0\r\nHost: {target.address}\r\nAccept: text/plain\r\n\r\n".encode())
        await writer.drain()
        answer = bytearray()
        while chunk := await reader.read(MAX_BYTES + 1 - len(answer)):
            answer += chunk
            if len(answer) > MAX_BYTES:
                raise ValueError("the answer is too long")
    finally:
        writer.close()
    head, blank, body = answer.partition(b"\r\n\r\n")
    if not blank or b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
        raise ValueError("not an answer of 200")
    return bytes(body)


def parse(page: bytes) -> tuple[int, int]:
    """Return a node's calls to the coordinator, and how many of them failed.

    Looks for the two samples of `hypergpu_node_rpcs_total` in the Prometheus text format and passes over all else, in
    time linear in the page.

    Raises:
        ValueError: the series is missing, malformed, or repeated beyond reason.
    """
    counts: dict[str, int] = {}
    start = 0 if page.startswith(CALLS.encode()) else _next_sample(page, 0)
    for _ in range(MAX_SAMPLES):
        if start < 0:
            break
        end = page.find(b"\n", start, start + MAX_LINE_BYTES)
        line = page[start : end if end >= 0 else start + MAX_LINE_BYTES]
        outcome, count = _sample(line.decode("utf-8", errors="replace"))
        if outcome in counts:
            raise ValueError(f"{CALLS} has two samples of outcome {outcome!r}")
        counts[outcome] = count
        start = _next_sample(page, start)
    calls = sum(counts.values())
    if not calls:
        raise ValueError(f"there is no {CALLS}")
    return calls, counts.get("failure", 0)


def _next_sample(page: bytes, start: int) -> int:
    """Return the position of the next line that begins with the series' name, or -1."""
    found = page.find(b"\n" + CALLS.encode(), start)
    return found + 1 if found >= 0 else -1


def _sample(line: str) -> tuple[str, int]:
    match = _SAMPLE.match(line)
    if match is None:
        raise ValueError(f"not a sample of {CALLS}: {line[:80]!r}")
    count = float(match[2])
    if count > MAX_COUNT:
        raise ValueError(f"{CALLS} counts {match[2]}: more than {MAX_COUNT}")
    return match[1], int(count)
