"""Files that are read again while the proxy runs; a bad one leaves everything as it was."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from hypergpu.common.errors import ConfigError, HyperGPUError
from hypergpu.netsim_proxy.api import control_service as control
from hypergpu.netsim_proxy.api.profile_registry import ProfileRegistry
from hypergpu.netsim_proxy.api.reload import Files, Reload
from hypergpu.netsim_proxy.api.schedule import Schedule
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.io.server import Proxy
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.profiles import find_profile
from hypergpu.netsim_proxy.options import ProxyOptions, check
from hypergpu.protos import netsim_pb2 as pb
from hypergpu.protos import netsim_pb2_grpc

PROFILES = "profiles: {lab: {rtt_ms: 10, loss: 0}, other: {rtt_ms: 4}}\n"
SCENARIO = "links: {node_1: lab}\nevents: [{type: partition, node: node_1, at_seconds: 500}]\n"


class Started:
    """A proxy with files, as `__main__` makes it."""

    def __init__(self, directory: Path) -> None:
        self.profiles, self.scenario = directory / "profiles.yaml", directory / "scenario.yaml"
        self.link_map = directory / "map.yaml"
        self.profiles.write_text(PROFILES)
        self.scenario.write_text(SCENARIO)
        self.link_map.write_text("addresses: {10.0.0.0/8: a}\n")
        options = ProxyOptions(
            upstream="127.0.0.1:1",
            listen=["127.0.0.1:0"],
            profiles=self.profiles,
            scenario=self.scenario,
            link_map=self.link_map,
            client_link=["127.0.0.1=mine"],
        )
        self.catalogue = ProfileRegistry()
        self.files = Files(options, check(options, {}), self.catalogue)

    async def start(self, pacer: Pacer) -> "Started":
        await self.files.load_profiles()
        self.ports = LinkRegistry(pacer, self.catalogue.profile("lab"), 1, profiles=self.catalogue.profile)
        self.schedule = Schedule(self.ports, pacer)
        await self.files.load(self.ports, self.schedule)
        self.proxy = Proxy("127.0.0.1:1", self.ports, pacer, link_map=self.files.link_map)
        self.reload = Reload(self.files, self.ports, self.schedule, self.proxy)
        return self

    def latency_ms(self, node_id: str) -> float:
        latency = self.ports.of(node_id).link.profile.up.latency
        assert isinstance(latency, Uniform)
        return latency.low * 2000

    def seen(self) -> tuple[Any, ...]:
        """All that a reload may change."""
        links = {port.name: port.link.profile for port in self.ports}
        events = [(entry.event_id, entry.event) for entry in self.schedule.entries()]
        return links, events, self.proxy.link_map, self.catalogue.profile("lab"), self.ports.profile_name


@pytest.fixture
async def pacer() -> AsyncIterator[Pacer]:
    pacer = Pacer()
    yield pacer
    pacer.close()


@pytest.fixture
async def started(tmp_path: Path, pacer: Pacer) -> Started:
    return await Started(tmp_path).start(pacer)


async def test_a_profile_that_changes_changes_the_links_that_have_it(started: Started) -> None:
    started.ports.set_profile("node_2", find_profile("poor"))
    planned = [entry.event_id for entry in started.schedule.entries()]
    assert started.latency_ms("node_1") == started.latency_ms("new") == pytest.approx(10)
    started.profiles.write_text(PROFILES.replace("rtt_ms: 10", "rtt_ms: 30"))
    assert await started.reload() == [str(started.profiles)]
    assert [started.latency_ms(name) for name in ("node_1", "new", "newer")] == [pytest.approx(30)] * 3
    assert started.ports.known("node_2").link.profile is find_profile("poor")
    assert [entry.event_id for entry in started.schedule.entries()] == planned  # the scenario does not begin anew


async def test_a_profile_that_changes_changes_the_links_at_a_distance(started: Started) -> None:
    started.ports.set_profile("far", started.catalogue.profile("lab", "eu-west"), "eu-west")
    started.ports.set_default(started.catalogue.profile("lab", "eu-west"), "eu-west")
    started.profiles.write_text(PROFILES.replace("rtt_ms: 10", "rtt_ms: 30"))
    await started.reload()
    for name in ("far", "new"):
        latency = started.ports.of(name).link.profile.up.latency
        assert latency.at(0.5) == pytest.approx((30 + 84) / 2000)


async def test_a_profile_change_of_all_links_keeps_the_distance_of_those_to_come(started: Started) -> None:
    started.ports.set_default(started.catalogue.profile("lab", "eu-west"), "eu-west")
    started.ports.apply(NetworkEvent("profile_change", "*", new_profile="other"))
    assert started.ports.of("new").link.profile.up.latency.at(0.5) == pytest.approx((4 + 84) / 2000)


async def test_a_scenario_that_changes_replaces_the_events_that_it_planned(started: Started) -> None:
    own = started.schedule.add(started.schedule.entries()[0].event, 900.0)
    started.scenario.write_text("links: {node_1: other}\nevents: [{type: flap, node: node_1, at_seconds: 60}]\n")
    assert await started.reload() == [str(started.scenario)]
    entries = started.schedule.entries()
    assert [entry.event.event_type for entry in entries] == ["partition", "flap"] and entries[0] is own
    assert started.latency_ms("node_1") == pytest.approx(4)


async def test_a_link_map_that_changes_counts_for_connections_from_then_on(started: Started) -> None:
    assert started.proxy.link_map.of_address("10.1.1.1") == "a"
    started.link_map.write_text("addresses: {10.0.0.0/8: b, 127.0.0.0/8: c}\n")
    assert await started.reload() == [str(started.link_map)]
    found = started.proxy.link_map
    assert [found.of_address(each) for each in ("10.1.1.1", "127.0.0.2", "127.0.0.1")] == ["b", "c", "mine"]


async def test_nothing_changes_where_nothing_has_changed(started: Started) -> None:
    before = started.seen()
    assert await started.reload() == []
    assert started.seen() == before


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("profiles", "profiles: {lab: {rtt: 5}}", "profiles.yaml:1"),
        ("scenario", "events: [{type: earthquake, node: node_1}]", "scenario.yaml:1"),
        ("scenario", "links: {node_1: none}", "scenario.yaml:1"),
        ("link_map", "addresses: {rack: a}", "map.yaml"),
        ("link_map", "\0", "map.yaml"),
        ("scenario", None, "cannot read"),
    ],
)
async def test_a_file_that_does_not_hold_leaves_everything_as_it_was_and_is_told(
    file: str, text: str | None, told: str, started: Started
) -> None:
    started.ports.of("seen")
    before = started.seen()
    good = {name: getattr(started, name) for name in ("profiles", "scenario", "link_map")}
    good["profiles"].write_text(PROFILES.replace("rtt_ms: 10", "rtt_ms: 77"))
    good["link_map"].write_text("addresses: {10.0.0.0/8: changed}\n")
    if text is None:
        good[file].unlink()
    else:
        good[file].write_text(text)
    with capture_logs() as logs, pytest.raises(ConfigError, match=told):
        await started.reload()
    assert started.seen() == before
    assert logs[-1]["event"] == "reload refused: everything stays as it was" and told in logs[-1]["reason"]
    good[file].write_text({"profiles": PROFILES, "scenario": SCENARIO, "link_map": "addresses: {}"}[file])
    assert str(good["link_map"]) in await started.reload()  # once it holds, the others count too


async def test_a_signal_tells_the_log_alone(started: Started) -> None:
    started.scenario.write_text("events: 5")
    with capture_logs() as logs:
        started.reload.start()
        while not logs:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert "scenario.yaml:1" in logs[0]["reason"]


async def test_the_control_api_reloads_and_says_what_is_wrong(started: Started) -> None:
    server = await control.make_server(started.ports, started.schedule, started.catalogue, {}, started.reload)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = netsim_pb2_grpc.NetsimStub(channel)
        started.link_map.write_text("addresses: {}")
        assert (await stub.Reload(pb.ReloadRequest())).changed == [str(started.link_map)]
        started.link_map.write_text("addresses: 5")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Reload(pb.ReloadRequest())
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "map.yaml:1" in (
            caught.value.details() or ""
        )
    await server.stop(0)


async def test_a_file_has_a_bound(started: Started) -> None:
    started.link_map.write_text("#" * ((4 << 20) + 1))
    with pytest.raises(HyperGPUError, match="larger than 4,194,304 bytes"):
        await started.reload()


@pytest.mark.parametrize("address", ["unix:{}/control.sock"])
async def test_the_control_api_on_a_unix_socket_is_for_its_user_alone(
    address: str, started: Started, tmp_path: Path
) -> None:
    address = address.format(tmp_path)
    server = await control.make_server(started.ports, started.schedule, started.catalogue, {})
    assert control.bind(server, address) == address
    await server.start()
    assert (tmp_path / "control.sock").stat().st_mode & 0o777 == 0o600
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = netsim_pb2_grpc.NetsimStub(channel)
        assert (await stub.ListLinks(pb.ListLinksRequest())).links[0].node_id == "node_1"
    await server.stop(0)
    control.unbind(address)
    assert not (tmp_path / "control.sock").exists()


async def test_a_byte_order_mark_is_no_part_of_a_file(started: Started) -> None:
    started.profiles.write_text(PROFILES.replace("rtt_ms: 10", "rtt_ms: 30"), encoding="utf-8-sig")
    await started.reload()
    assert started.latency_ms("node_1") == pytest.approx(30)
