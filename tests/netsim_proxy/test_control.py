"""The control API over gRPC, as `hypergpu` and grpcurl call it."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from hypergpu.common.call_budgets import USERS, CallBudgets
from hypergpu.common.roles import Role
from hypergpu.common.token import TokenSource
from hypergpu.netsim_proxy.api import control_service as control
from hypergpu.netsim_proxy.api import metrics
from hypergpu.netsim_proxy.api.profile_registry import ProfileRegistry
from hypergpu.netsim_proxy.api.schedule import Schedule
from hypergpu.netsim_proxy.io.lateness import DeliveryLateness
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.link.outcomes import Direction
from hypergpu.netsim_proxy.link.profiles import find_profile
from hypergpu.protos import netsim_pb2 as pb
from hypergpu.protos import netsim_pb2_grpc

Call = Callable[..., Any]


def control_of(channel: grpc.aio.Channel) -> Any:
    return netsim_pb2_grpc.NetsimStub(channel)


@pytest.fixture
async def pacer() -> AsyncIterator[Pacer]:
    pacer = Pacer()
    yield pacer
    pacer.close()


@pytest.fixture
async def ports(pacer: Pacer) -> LinkRegistry:
    ports = LinkRegistry(pacer, find_profile("good"), seed=1)
    ports.of("node_1")
    return ports


@pytest.fixture
async def address(ports: LinkRegistry, pacer: Pacer) -> AsyncIterator[str]:
    server = await control.make_server(
        ports, Schedule(ports, pacer), ProfileRegistry(), {Role.OPERATOR: TokenSource(["secret"])}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


@pytest.fixture
async def stub(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:

        class Authorized:
            def __getattr__(self, name: str) -> Call:
                method = getattr(control_of(channel), name)
                return lambda request: method(request, metadata=(("authorization", "Bearer secret"),), timeout=5)

        yield Authorized()


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_set_profile_acts_and_lists(stub: Any, ports: LinkRegistry) -> None:
    info = await stub.SetProfile(pb.SetProfileRequest(node_id="node_2", profile="poor", loss_model="transport"))
    assert (info.node_id, info.profile, info.loss_model, info.state) == ("node_2", "poor", "transport", "up")
    assert ports.known("node_2").link.profile.name == "poor"
    links = (await stub.ListLinks(pb.ListLinksRequest())).links
    assert [link.node_id for link in links] == ["node_1", "node_2"]
    await stub.SetProfile(pb.SetProfileRequest(node_id="*", profile="direct"))
    assert ports.of("node_3").transparent and ports.known("node_1").transparent


async def test_the_upstreams_bandwidth_is_set_and_listed(stub: Any, ports: LinkRegistry) -> None:
    await stub.SetProfile(pb.SetProfileRequest(node_id="node_1", profile="direct"))
    assert ports.known("node_1").transparent
    info = await stub.SetUpstreamBandwidth(pb.SetUpstreamBandwidthRequest(down_mbit=500))
    assert (info.down.bandwidth_mbit, info.up.bandwidth_mbit) == (500, math.inf)
    assert not ports.known("node_1").transparent
    request = pb.SetUpstreamBandwidthRequest(up_mbit=8, queue_bytes=100_000)
    assert (await stub.SetUpstreamBandwidth(request)).up.queue_ms == pytest.approx(100)
    upstream = (await stub.ListLinks(pb.ListLinksRequest())).upstream
    assert (upstream.down.bandwidth_mbit, upstream.up.bandwidth_mbit) == (500, 8)
    await stub.SetUpstreamBandwidth(pb.SetUpstreamBandwidthRequest(down_mbit=math.inf, up_mbit=math.inf))
    assert ports.known("node_1").transparent


@pytest.mark.parametrize(("section", "mbit"), [("{down_mbit: 8}", 8), ("{}", math.inf), ("null", 500)])
async def test_a_scenario_sets_the_upstreams_bandwidth(stub: Any, section: str, mbit: float) -> None:
    await stub.SetUpstreamBandwidth(pb.SetUpstreamBandwidthRequest(down_mbit=500))
    await stub.LoadScenario(pb.LoadScenarioRequest(yaml=f"upstream_bandwidth: {section}\n"))
    assert (await stub.ListLinks(pb.ListLinksRequest())).upstream.down.bandwidth_mbit == mbit


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (pb.SetUpstreamBandwidthRequest(), "needs down_mbit"),
        (pb.SetUpstreamBandwidthRequest(down_mbit=0.0), "above 0"),
        (pb.SetUpstreamBandwidthRequest(up_mbit=math.nan), "above 0"),
    ],
)
async def test_what_is_no_bandwidth_is_said(stub: Any, request_: pb.SetUpstreamBandwidthRequest, told: str) -> None:
    code, details = await failure(stub.SetUpstreamBandwidth(request_))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and told in details


async def test_region_comes_on_top(stub: Any) -> None:
    info = await stub.SetProfile(pb.SetProfileRequest(node_id="node_1", profile="direct", region="eu-west"))
    assert info.region == "eu-west" and 20 < info.up.latency_low_ms < 100


async def test_what_is_wrong_is_said(stub: Any) -> None:
    code, details = await failure(stub.SetProfile(pb.SetProfileRequest(node_id="node_1", profile="goood")))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "did you mean 'good'" in details
    event = pb.Event(type="latency_spike", nodes=["node_7"], added_ms=5)
    code, details = await failure(stub.Inject(event))
    assert code == grpc.StatusCode.NOT_FOUND and "node_1" in details
    code, details = await failure(stub.Inject(pb.Event(type="earthquake", nodes=["node_1"])))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "earthquake" in details
    code, details = await failure(stub.Clear(pb.ClearRequest(node_id="node_7")))
    assert code == grpc.StatusCode.NOT_FOUND
    code, details = await failure(stub.SetProfile(pb.SetProfileRequest(node_id="node_1", loss_model="udp")))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "transport" in details


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"after_seconds": math.nan}, "scheduled_time is 0 to"),
        ({"after_seconds": 1e300}, "scheduled_time is 0 to"),
        ({"round": 3, "event": {"profile": "goood"}}, "did you mean 'good'"),
        ({"round": 3, "event": {"nodes": ["node_7"]}}, "node_1"),
        ({"round": 3, "event": {"duration_seconds": math.inf}}, "duration_seconds is 0 to"),
        ({"round": 3, "event": {"factor": math.nan}}, "factor is 0 to"),
        ({"round": 3, "event": {"factor": 1e-300}}, "a factor is 1e-09 or more"),
        ({"round": 3, "event": {"added_ms": -1.0}}, "added_ms is 0 to"),
    ],
)
async def test_what_could_never_happen_is_said_when_it_is_scheduled(
    stub: Any, request_: dict[str, Any], told: str
) -> None:
    event = pb.Event(**{"type": "profile_change", "profile": "poor", "nodes": ["node_1"]} | request_.pop("event", {}))
    code, details = await failure(stub.Schedule(pb.ScheduleRequest(event=event, **request_)))
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND) and told in details
    assert not (await stub.ListScheduled(pb.ListScheduledRequest())).events


async def test_inject_and_clear(stub: Any) -> None:
    await stub.Inject(pb.Event(type="latency_spike", nodes=["node_1"], added_ms=50))
    link = (await stub.ListLinks(pb.ListLinksRequest())).links[0]
    assert link.state == "degraded" and "latency_spike" in link.active_events[0]
    assert (await stub.Clear(pb.ClearRequest(node_id="node_1"))).cleared == 1
    assert (await stub.ListLinks(pb.ListLinksRequest())).links[0].state == "up"


async def test_a_direction_travels_both_ways(stub: Any, ports: LinkRegistry) -> None:
    event = pb.Event(type="latency_spike", nodes=["node_1"], added_ms=40, direction="down")
    await stub.Inject(event)
    link = (await stub.ListLinks(pb.ListLinksRequest())).links[0]
    assert (link.up.latency_high_ms < 26, link.down.latency_low_ms > 40) == (True, True)
    assert list(link.active_events) == ["latency_spike on node_1: down, +40 ms"]
    await stub.Schedule(
        pb.ScheduleRequest(event=pb.Event(type="limit_data", nodes=["node_1"], limit_bytes=9), after_seconds=9)
    )
    await stub.Schedule(pb.ScheduleRequest(event=pb.Event(type="timeout", nodes=["*"], close_after_seconds=3), round=9))
    listed = [item.event for item in (await stub.ListScheduled(pb.ListScheduledRequest())).events]
    assert [(each.direction, each.limit_bytes, each.close_after_seconds) for each in listed] == [
        ("down", 0, 0.0),
        ("both", 9, 0.0),
        ("both", 0, 3.0),
    ]
    code, details = await failure(stub.Inject(pb.Event(type="partition", nodes=["node_1"], direction="sideways")))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "unknown direction 'sideways'" in details
    await stub.Inject(pb.Event(type="recovery", nodes=["node_1"], direction="down"))
    assert (await stub.ListLinks(pb.ListLinksRequest())).links[0].state == "up"


async def test_a_scenario_says_directions_and_limits(stub: Any) -> None:
    yaml = """
events:
  - {type: partition, node: node_1, direction: up}
  - {type: limit_data, node: node_1, limit_bytes: 1000, at_seconds: 5}
  - {type: slow_close, node: node_1, close_after_seconds: 2, at_seconds: 5}
"""
    listed = (await stub.LoadScenario(pb.LoadScenarioRequest(yaml=yaml))).events
    found = [(each.event.direction, each.event.limit_bytes, each.event.close_after_seconds) for each in listed]
    assert found == [("up", 0, 0.0), ("both", 1000, 0.0), ("both", 0, 2.0)]
    wrong = yaml.replace("direction: up", "direction: upp")
    code, details = await failure(stub.LoadScenario(pb.LoadScenarioRequest(yaml=wrong, name="s.yaml")))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("s.yaml:3: events.0.direction: unknown direction 'upp'")


async def test_schedule_by_time(stub: Any, ports: LinkRegistry) -> None:
    event = pb.Event(type="profile_change", nodes=["node_1"], profile="poor")
    await stub.Schedule(pb.ScheduleRequest(event=event, after_seconds=0.3))
    (entry,) = (await stub.ListScheduled(pb.ListScheduledRequest())).events
    assert 0 < entry.in_seconds <= 0.3 and entry.event.profile == "poor"
    assert ports.known("node_1").link.profile.name == "good"
    end = time.monotonic() + 3
    while ports.known("node_1").link.profile.name != "poor":
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    (entry,) = (await stub.ListScheduled(pb.ListScheduledRequest())).events
    assert (entry.state, entry.in_seconds) == ("over", 0)


async def test_events_without_an_end_are_active_until_they_are_ended(stub: Any) -> None:
    async def states() -> list[str]:
        return [entry.state for entry in (await stub.ListScheduled(pb.ListScheduledRequest())).events]

    spike = pb.Event(type="latency_spike", nodes=["node_1"], added_ms=50)
    partition = pb.Event(type="partition", nodes=["*"])
    await stub.Schedule(pb.ScheduleRequest(event=spike, round=3))
    await stub.Schedule(pb.ScheduleRequest(event=partition, round=4))
    assert await states() == ["planned", "planned"]
    await stub.AnnounceRound(pb.AnnounceRoundRequest(round=3))
    assert await states() == ["active", "planned"]
    await stub.AnnounceRound(pb.AnnounceRoundRequest(round=4))
    await stub.Inject(pb.Event(type="recovery", nodes=["node_1"]))
    assert await states() == ["over", "active", "over"]
    await stub.Inject(pb.Event(type="recovery"))
    assert await states() == ["over"] * 4


async def test_events_that_are_over_are_not_kept_without_bound(stub: Any) -> None:
    for _ in range(150):
        await stub.Inject(pb.Event(type="profile_change", nodes=["node_1"], profile="poor"))
    assert len((await stub.ListScheduled(pb.ListScheduledRequest())).events) == 100


async def test_schedule_by_round(stub: Any, ports: LinkRegistry) -> None:
    for number, profile in ((3, "poor"), (5, "average")):
        event = pb.Event(type="profile_change", nodes=["node_1"], profile=profile)
        await stub.Schedule(pb.ScheduleRequest(event=event, round=number))
    await stub.AnnounceRound(pb.AnnounceRoundRequest(round=2))
    assert ports.known("node_1").link.profile.name == "good"
    await stub.AnnounceRound(pb.AnnounceRoundRequest(round=4))
    assert ports.known("node_1").link.profile.name == "poor"
    begun, left = (await stub.ListScheduled(pb.ListScheduledRequest())).events
    assert (begun.state, left.round, left.state) == ("over", 5, "planned")
    assert (await stub.Clear(pb.ClearRequest())).cleared == 1
    await stub.AnnounceRound(pb.AnnounceRoundRequest(round=9))
    assert ports.known("node_1").link.profile.name == "poor"


async def test_scenario_sets_links_and_plans_events(stub: Any, ports: LinkRegistry) -> None:
    yaml = """
profiles:
  lab: {rtt_ms: [100, 100], loss: 0}
loss_model: transport
nodes:
  far: {profile: lab, region: eu-west}
links: {node_1: lab, "*": poor}
events:
  - {round: 2, type: profile_change, node: node_1, profile: good}
  - {at_seconds: 60, type: latency_spike, node: "*", added_ms: 10}
"""
    reply = await stub.LoadScenario(pb.LoadScenarioRequest(yaml=yaml, name="s.yaml"))
    assert [event.event.type for event in reply.events] == ["profile_change", "latency_spike"]
    assert ports.known("node_1").link.profile.name == "lab"
    assert ports.of("node_5").link.profile.name == "poor"
    assert ports.known("far").region == "eu-west"
    assert {port.link.loss_model for port in ports} == {"transport"}
    code, details = await failure(stub.LoadScenario(pb.LoadScenarioRequest(yaml="events: [{type: x}]", name="s.yaml")))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "s.yaml:1" in details


async def test_profile_in_yaml(stub: Any) -> None:
    text = "profiles: {mine: {rtt_ms: [8, 8], bandwidth_mbit: 5}}"
    info = await stub.SetProfile(pb.SetProfileRequest(node_id="node_1", profile=text))
    assert (info.profile, info.up.latency_low_ms, info.up.bandwidth_mbit) == ("mine", 4.0, 5.0)


async def test_watch_repeats(stub: Any) -> None:
    seen = []
    async for links in stub.Watch(pb.WatchRequest(interval_seconds=0.1)):
        seen.append(links)
        if len(seen) == 2:
            break
    assert seen[1].links[0].node_id == "node_1"


async def test_token_guards_control_but_not_health(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        code, _ = await failure(control_of(channel).ListLinks(pb.ListLinksRequest()))
        assert code == grpc.StatusCode.UNAUTHENTICATED
        health: Any = health_pb2_grpc.HealthStub(channel)
        reply = await health.Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection: Any = getattr(reflection_pb2_grpc, "ServerReflectionStub")(channel)  # noqa: B009 - its stubs say sync
        async for answer in reflection.ServerReflectionInfo(iter([ask])):
            names = {service.name for service in answer.list_services_response.service}
    assert "hypergpu.netsim.v1.Netsim" in names


async def test_metrics_tell_what_links_did(ports: LinkRegistry) -> None:
    registry, lateness = CollectorRegistry(), DeliveryLateness(bound_seconds=0.001)
    metrics.register(registry, ports, lateness)
    link = ports.known("node_1").link
    rpc = link.begin(0.0)
    link.offer(0.0, Direction.UP, 1000, rpc)
    lateness.observe(0.0003)
    lateness.observe(0.5)
    labels = {"link": "node_1", "direction": "up"}
    assert registry.get_sample_value("netsim_bytes_total", labels) == 1000
    assert registry.get_sample_value("netsim_messages_total", labels) == 1
    assert (registry.get_sample_value("netsim_injected_delay_seconds_total", labels) or 0) >= 0.005
    assert registry.get_sample_value("netsim_losses_total", {"link": "node_1", "cause": "loss"}) == 0
    assert registry.get_sample_value("netsim_pacer_lateness_seconds_bucket", {"le": "0.0005"}) == 1
    assert registry.get_sample_value("netsim_pacer_lateness_seconds_count") == 2
    assert registry.get_sample_value("netsim_deliveries_beyond_bound_total") == 1


async def test_health_knows_the_whole_server_and_the_service(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "hypergpu.netsim.v1.Netsim"):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


WRONG_TOKENS = (None, "", "secret", "Bearer ", "Bearer s", "Bearer secre", "Bearer secrets", "bearer secret")
METHODS = list(pb.DESCRIPTOR.services_by_name["Netsim"].methods)


async def status_of_call(channel: grpc.aio.Channel, method: Any, shown: str | None) -> grpc.StatusCode:
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    call: Any = kind(f"/{method.containing_service.full_name}/{method.name}")
    made = call(b"", metadata=() if shown is None else (("authorization", shown),), timeout=10)
    try:
        await (made.read() if method.server_streaming else made)
    except grpc.aio.AioRpcError as error:
        return error.code()
    made.cancel()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", METHODS, ids=lambda each: each.name)
async def test_every_method_needs_the_whole_token(address: str, method: Any) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        for shown in WRONG_TOKENS:
            assert await status_of_call(channel, method, shown) is grpc.StatusCode.UNAUTHENTICATED, shown
        right = await status_of_call(channel, method, "Bearer secret")
        assert right is not grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(("method", "what"), [("ListScheduled", "status"), ("Clear", "control")])
async def test_whoever_calls_too_often_is_refused(ports: LinkRegistry, pacer: Pacer, method: str, what: str) -> None:
    server = await control.make_server(
        ports, Schedule(ports, pacer), ProfileRegistry(), {}, budgets=CallBudgets(clock=lambda: 0.0)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    other = {"ListScheduled": "Clear", "Clear": "ListScheduled"}[method]
    requests = {"ListScheduled": pb.ListScheduledRequest(), "Clear": pb.ClearRequest()}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(int(USERS.burst)):
            await getattr(control_of(channel), method)(requests[method])
        code, details = await failure(getattr(control_of(channel), method)(requests[method]))
        await getattr(control_of(channel), other)(requests[other])
    await server.stop(0)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details.startswith(f"too many calls for {what} of 127.0.0.1: 50 a second are permitted")
