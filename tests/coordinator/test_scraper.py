"""What is scraped, and what is never dialled."""

import asyncio
from typing import Any, cast

import pytest

from common.config import SystemConfig
from coordinator.core.membership import Member
from coordinator.core.orchestration import build_orchestrator
from coordinator.links import NodeLinks
from coordinator.scraper import Scraper, fetch, parse

PAGE = """# TYPE hypergpu_node_rpcs_total counter
hypergpu_node_rpcs_total{outcome="success"} 90.0
hypergpu_node_rpcs_total{outcome="failure"} 10.0
"""


def scraper(**server: Any) -> tuple[Scraper, NodeLinks]:
    config = SystemConfig.model_validate({"server": server})
    links = NodeLinks(build_orchestrator(config))
    return Scraper(cast(Any, None), links, config), links


def member(address: str, peer: str = "10.0.0.7") -> Member:
    return Member("a", info={"address": address, "peer": peer})


def test_only_the_host_that_calls_is_dialled() -> None:
    strict, _ = scraper()
    named, _ = scraper(scrape_hosts=["node.example"])

    def hosts(which: Scraper, address: str) -> list[tuple[str, int]]:
        return [(host, port) for _, host, port in which.targets([member(address)])]

    assert hosts(strict, "10.0.0.7:9100") == [("10.0.0.7", 9100)]
    for forged in ("169.254.169.254:80", "127.0.0.1:22", "node.example:9100", "10.0.0.7:0", "10.0.0.7", "", "x:y"):
        assert hosts(strict, forged) == []
    assert hosts(named, "node.example:9100") == [("node.example", 9100)]


def test_parse() -> None:
    assert parse(PAGE) == (100, 10)
    with pytest.raises(ValueError, match="hypergpu_node_rpcs_total"):
        parse("other 1\n")


async def serve(answer: bytes) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


async def test_a_scrape_reaches_the_monitor_and_the_report_only_steps_in() -> None:
    one, links = scraper()
    links.register("a", 0)
    async with await serve(b"HTTP/1.0 200 OK\r\n\r\n" + PAGE.encode()) as server:
        port = server.sockets[0].getsockname()[1]
        assert await fetch("127.0.0.1", port) == PAGE
        links.heard("a", {}, 20.0)
        await one.scrape("a", "127.0.0.1", port)
    known = links.describe("a")
    assert known["loss_rate"] > 0.02
    before = known["loss_rate"]
    links.heard("a", {"network": {"events": 100, "failures": 10}}, 20.0)
    assert links.describe("a")["loss_rate"] == pytest.approx(before, abs=0.01), "the same calls were counted twice"
    await one.scrape("a", "127.0.0.1", port)  # nobody listens any more
    links.heard("a", {"network": {"events": 140, "failures": 50}}, 20.0)
    assert links.describe("a")["loss_rate"] > before


@pytest.mark.parametrize("report", [{}, {"network": 3}, {"network": {"events": "x", "failures": -1}}, {"network": {}}])
def test_nonsense_in_a_report_is_passed_over(report: dict[str, Any]) -> None:
    _, links = scraper()
    links.register("a", 0)
    links.heard("a", report, float("nan"))
    assert links.describe("nobody") == {}


async def test_an_answer_that_is_none_or_endless_is_refused() -> None:
    async with await serve(b"HTTP/1.0 404 Not Found\r\n\r\n") as server:
        with pytest.raises(ValueError, match="200"):
            await fetch("127.0.0.1", server.sockets[0].getsockname()[1])
    async with await serve(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * (3 << 20)) as server:
        with pytest.raises(ValueError, match="too long"):
            await fetch("127.0.0.1", server.sockets[0].getsockname()[1])
