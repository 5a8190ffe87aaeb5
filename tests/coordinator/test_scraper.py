"""What is scraped, and what is never dialled."""

import asyncio
import time
from typing import Any, cast

import pytest

from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import ConfigError
from hypergpu.coordinator.core.adaptation import build_orchestrator
from hypergpu.coordinator.core.rounds.membership import Member
from hypergpu.coordinator.core.session import Register
from hypergpu.coordinator.link_telemetry import LinkTelemetry
from hypergpu.coordinator.scrape_targets import ScrapeRule, ScrapeTarget
from hypergpu.coordinator.scraper import MAX_BYTES, Scraper, fetch, parse

PAGE = b"""# TYPE hypergpu_node_rpcs_total counter
hypergpu_node_rpcs_total{outcome="success"} 90.0
hypergpu_node_rpcs_total{outcome="failure"} 10.0
"""


def scraper(**server: Any) -> tuple[Scraper, LinkTelemetry]:
    config = SystemConfig.model_validate({"server": server})
    links = LinkTelemetry(build_orchestrator(config))
    return Scraper(cast(Any, None), links, config), links


def member(address: str, peer: str = "10.0.0.7") -> Member:
    return Member("a", info={"address": address, "peer": peer})


def addresses(rule: ScrapeRule, address: str, peer: str = "10.0.0.7") -> list[str]:
    return [target.address for target in rule.targets([member(address, peer)])]


FORGED = ("169.254.169.254:80", "127.0.0.1:22", "node.example:9100", "10.0.0.7:0", "10.0.0.7", "", "x:y", "[::1]:9100")


def test_only_the_host_that_calls_is_dialled() -> None:
    rule = ScrapeRule()
    assert addresses(rule, "10.0.0.7:9100") == ["10.0.0.7:9100"]
    assert addresses(rule, "[fd00::7]:9100", peer="fd00::7") == ["[fd00::7]:9100"]
    for forged in FORGED:
        assert addresses(rule, forged) == []


def test_a_named_host_and_a_network_may_be_dialled_too() -> None:
    rule = ScrapeRule(["node.example", "172.16.0.0/12", "fd00::/8"])
    assert addresses(rule, "node.example:9100") == ["node.example:9100"]
    assert addresses(rule, "172.16.0.0:9100") == ["172.16.0.0:9100"]
    assert addresses(rule, "172.31.255.255:9100") == ["172.31.255.255:9100"]
    assert addresses(rule, "[fd00::9]:9100") == ["[fd00::9]:9100"]
    for outside in ("172.15.255.255:80", "172.32.0.0:80", "evil.example:80", "169.254.169.254:80", "[fe80::1]:80"):
        assert addresses(rule, outside) == []


def test_what_is_no_network_is_told_by_its_setting() -> None:
    with pytest.raises(ConfigError, match=r"server\.scrape_hosts: '10\.0\.0/99' is not a network"):
        ScrapeRule(["10.0.0/99"])


def test_parse() -> None:
    assert parse(PAGE) == (100, 10)
    assert parse(PAGE.replace(b"# TYPE", b"# HELP x\n# TYPE")) == (100, 10)
    assert parse(b'hypergpu_node_rpcs_total{outcome="success"} 7 1700000000000\n') == (7, 0)
    assert parse(b'hypergpu_node_rpcs_total{outcome="success"} 1.2e+06') == (1_200_000, 0)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"other 1\n",
        b'hypergpu_node_rpcs_total{outcome="success"} NaN\n',
        b'hypergpu_node_rpcs_total{outcome="success"} +Inf\n',
        b'hypergpu_node_rpcs_total{outcome="success"} -1\n',
        b'hypergpu_node_rpcs_total{outcome="success"} 1e99\n',
        b'hypergpu_node_rpcs_total{outcome="success"} 0\n',
        b'hypergpu_node_rpcs_total{outcome="success"} 99999999999999999999999\n',
        b'hypergpu_node_rpcs_total{outcome="success"} 9007199254740994\n',
        b'hypergpu_node_rpcs_total{outcome="other"} 1\n',
        b"hypergpu_node_rpcs_total 1\n",
        b'hypergpu_node_rpcs_total{outcome="success"} 1\n' * 2,
        b'hypergpu_node_rpcs_total{outcome="success",x="' + b"y" * 100_000 + b'"} 1\n',
    ],
)
def test_a_page_without_usable_counts_is_refused(page: bytes) -> None:
    with pytest.raises(ValueError, match="hypergpu_node_rpcs_total"):
        parse(page)


@pytest.mark.parametrize(
    "filler",
    [b'x{a="' + b"\\" * MAX_BYTES, b"x" * MAX_BYTES, b"\n" * MAX_BYTES, b'{a="b",' * (MAX_BYTES // 7)],
)
def test_a_hostile_page_costs_time_linear_in_its_size(filler: bytes) -> None:
    def seconds(page: bytes) -> float:
        start = time.process_time()
        for _ in range(10):
            with pytest.raises(ValueError, match="hypergpu_node_rpcs_total"):
                parse(page)
        return time.process_time() - start

    assert seconds(filler[:MAX_BYTES]) < 1.0, "a parser of the whole format takes minutes for ten of these"


async def serve(answer: bytes) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


def local(server: asyncio.Server) -> ScrapeTarget:
    return ScrapeTarget("a", "127.0.0.1", server.sockets[0].getsockname()[1])


async def test_a_scrape_reaches_the_monitor_and_the_report_only_steps_in() -> None:
    one, links = scraper()
    links.register(Register("a", "1", 0, {}, None))
    async with await serve(b"HTTP/1.0 200 OK\r\n\r\n" + PAGE) as server:
        target = local(server)
        assert await fetch(target) == PAGE
        links.observe_heartbeat("a", {}, 20.0, False)
        await one.scrape(target)
    known = links.describe("a")
    assert known["loss_rate"] > 0.02
    before = known["loss_rate"]
    links.observe_heartbeat("a", {"network": {"events": 100, "failures": 10}}, 20.0, False)
    assert links.describe("a")["loss_rate"] == pytest.approx(before, abs=0.01), "the same calls were counted twice"
    await one.scrape(target)  # the endpoint is gone
    links.observe_heartbeat("a", {"network": {"events": 140, "failures": 50}}, 20.0, False)
    assert links.describe("a")["loss_rate"] > before


@pytest.mark.parametrize("report", [{}, {"network": 3}, {"network": {"events": "x", "failures": -1}}, {"network": {}}])
def test_nonsense_in_a_report_is_passed_over(report: dict[str, Any]) -> None:
    _, links = scraper()
    links.register(Register("a", "1", 0, {}, None))
    links.observe_heartbeat("a", report, float("nan"), False)
    assert links.describe("nobody") == {}


async def test_an_answer_that_is_no_200_or_too_long_is_refused() -> None:
    async with await serve(b"HTTP/1.0 404 Not Found\r\n\r\n") as server:
        with pytest.raises(ValueError, match="200"):
            await fetch(local(server))
    head = b"HTTP/1.0 200 OK\r\n\r\n"
    async with await serve(head + b"x" * (MAX_BYTES - len(head))) as server:
        assert len(await fetch(local(server))) == MAX_BYTES - len(head)
    async with await serve(head + b"x" * (MAX_BYTES - len(head) + 1)) as server:
        with pytest.raises(ValueError, match="too long"):
            await fetch(local(server))
