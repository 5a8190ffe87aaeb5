"""Reads each node's /metrics in the background: the monitor's second source, after the RPCs themselves."""

import asyncio
import contextlib
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from common.config import SystemConfig
from common.errors import ConfigError
from common.rpc import split_address
from coordinator.core.membership import Member
from coordinator.engine import Engine
from coordinator.links import NodeLinks

TIMEOUT_SECONDS = 2.0
MAX_BYTES = 1 << 20
CONCURRENT = 256
CALLS = "hypergpu_node_rpcs_total"


class Scraper:
    """Scrapes all connected nodes every `monitor.update_interval_seconds`.

    It dials only the address that a node registered, and only if that is the host which the node itself calls from, or
    one that `server.scrape_hosts` allows: a node cannot make the coordinator call somebody else.
    """

    def __init__(self, engine: Engine, links: NodeLinks, config: SystemConfig) -> None:
        self._engine = engine
        self._links = links
        self._interval = config.monitor.update_interval_seconds
        self._allowed = frozenset(config.server.scrape_hosts)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin scraping."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End scraping."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        limit = asyncio.Semaphore(CONCURRENT)

        async def one(member: Member, host: str, port: int) -> None:
            async with limit:
                await self.scrape(member.node_id, host, port)

        while True:
            await asyncio.sleep(self._interval)
            targets = list(self.targets(self._engine.machine.members.connected.values()))
            await asyncio.gather(*(one(*target) for target in targets), return_exceptions=True)

    def targets(self, members: Iterable[Member]) -> Iterable[tuple[Member, str, int]]:
        """The nodes that may be scraped, and where."""
        for member in members:
            try:
                host, port = split_address(member.info.get("address", ""))
            except ConfigError:
                continue
            host = host.strip("[]")
            if port and (host == member.info.get("peer") or host in self._allowed):
                yield member, host, port

    async def scrape(self, node: str, host: str, port: int) -> None:
        """One node. A failure is no lost communication: the node may be behind a NAT that lets nobody in."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                text = await fetch(host, port)
            calls, failures = parse(text)
        except (OSError, TimeoutError, ValueError):
            self._links.unreachable(node)
            return
        self._links.scraped(node, calls, failures)


async def fetch(host: str, port: int) -> str:
    """The body of http://host:port/metrics.

    Raises:
        OSError: it cannot be reached.
        ValueError: the answer is not one, or over 1 MiB.
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        name = f"[{host}]" if ":" in host else host
        writer.write(f"GET /metrics HTTP/1.0\r\nHost: {name}:{port}\r\nAccept: text/plain\r\n\r\n".encode())
        await writer.drain()
        answer = await reader.read(MAX_BYTES)
        while chunk := await reader.read(MAX_BYTES):
            answer += chunk
            if len(answer) > MAX_BYTES:
                raise ValueError("the answer is too long")
    finally:
        writer.close()
    head, blank, body = answer.partition(b"\r\n\r\n")
    if not blank or b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
        raise ValueError("not an answer of 200")
    return body.decode("utf-8")


def parse(text: str) -> tuple[int, int]:
    """A node's calls to the coordinator, and how many of them failed.

    Raises:
        ValueError: not the Prometheus text format, or without these series.
    """
    calls = failures = 0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == CALLS:
                calls += int(sample.value)
                failures += int(sample.value) if sample.labels.get("outcome") == "failure" else 0
    if not calls:
        raise ValueError(f"there is no {CALLS}")
    return calls, failures
