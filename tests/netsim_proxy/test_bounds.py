"""No call of the control API keeps the event loop from what travels, or fills the memory."""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest

from hypergpu.common.errors import ConfigError, InvalidInput, ResourceExhausted, suggest
from hypergpu.netsim_proxy.api.control_service import MAX_WATCHERS, ControlServicer
from hypergpu.netsim_proxy.api.profile_registry import MAX_PROFILES, MAX_TEXT, ProfileRegistry
from hypergpu.netsim_proxy.api.schedule import Schedule, State
from hypergpu.netsim_proxy.config.bounds import MAX_EVENTS, MAX_LINKS, MAX_TARGETS
from hypergpu.netsim_proxy.config.scenario_file import parse_scenario
from hypergpu.netsim_proxy.io import link_registry as ports_module
from hypergpu.netsim_proxy.io.link_registry import MAX_RUNNING, LinkRegistry
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.profiles import find_profile
from hypergpu.protos import netsim_pb2 as pb

SPIKE = NetworkEvent("latency_spike", "node_1", added_ms=10, duration_seconds=60)


@pytest.fixture
async def pacer() -> AsyncIterator[Pacer]:
    pacer = Pacer()
    yield pacer
    pacer.close()


@pytest.fixture
async def ports(pacer: Pacer) -> LinkRegistry:
    return LinkRegistry(pacer, find_profile("good"), seed=1)


@pytest.fixture
async def schedule(ports: LinkRegistry, pacer: Pacer) -> Schedule:
    return Schedule(ports, pacer)


@pytest.fixture
async def servicer(ports: LinkRegistry, schedule: Schedule) -> ControlServicer:
    return ControlServicer(ports, schedule, ProfileRegistry())


async def longest_pause(work: Awaitable[Any]) -> float:
    """How long the event loop stood still at most while `work` ran, in seconds of this thread's CPU.

    CPU seconds do not count what other processes of the machine took.
    """
    task = asyncio.ensure_future(work)
    gc.disable()  # the other tests' objects are not ours
    longest, at = 0.0, time.thread_time()
    while not task.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, at = max(longest, now - at), now
    gc.enable()
    await task
    return longest


async def test_changes_of_all_links_leave_the_loop_running(ports: LinkRegistry, servicer: ControlServicer) -> None:
    for number in range(2999):
        ports.of(f"node_{number}")
    ports.of(None)

    async def change() -> None:
        await servicer.SetProfile(pb.SetProfileRequest(node_id="*", profile="poor"), None)
        await servicer.Inject(pb.Event(type="latency_spike", nodes=["*"], added_ms=5), None)
        links = (await servicer.ListLinks(pb.ListLinksRequest(), None)).links
        assert {(link.profile, link.state) for link in links} == {("poor", "degraded")} and len(links) == 3000
        assert (await servicer.Clear(pb.ClearRequest(), None)).cleared == 3000
        assert {port.link.state(time.monotonic()) for port in ports} == {"up"}

    assert await longest_pause(change()) < 0.1  # 0.3 s where all are done at once


async def test_thousands_of_events_that_are_due_together_leave_the_loop_running(
    ports: LinkRegistry, servicer: ControlServicer
) -> None:
    for number in range(50):
        ports.of(f"node_{number}")
    event = "  - {type: profile_change, node: '*', profile: poor, round: 1}\n"
    text = "events:\n" + event * 700

    async def load() -> None:
        reply = await servicer.LoadScenario(pb.LoadScenarioRequest(yaml=text), None)
        assert len(reply.events) == 700
        await servicer.AnnounceRound(pb.AnnounceRoundRequest(round=1), None)
        listed = await servicer.ListScheduled(pb.ListScheduledRequest(), None)
        assert [event.state for event in listed.events] == ["over"] * 100

    assert await longest_pause(load()) < 0.2  # half a second where all are begun at once


async def test_a_link_that_is_used_meanwhile_is_changed_before(ports: LinkRegistry) -> None:
    for number in range(1000):
        ports.of(f"node_{number}")
    ports.set_profile("*", find_profile("poor"))
    ports.apply(NetworkEvent("partition", "*"))
    assert ports.busy
    assert ports.of("node_999").link.profile.name == "poor"
    assert ports.of("node_999").link.state(time.monotonic()) == "partitioned"
    await ports.settled()
    assert {port.link.state(time.monotonic()) for port in ports} == {"partitioned"}


async def test_a_link_that_cannot_be_changed_keeps_no_other_from_it(ports: LinkRegistry) -> None:
    for number in range(200):
        ports.of(f"node_{number}")
    broken = ports.known("node_3")
    broken.changed = None  # type: ignore[method-assign, assignment]
    ports.set_profile("*", find_profile("poor"))
    await ports.settled()
    assert {port.link.profile.name for port in ports} == {"poor"}


async def test_events_that_are_planned_or_run_are_bounded(schedule: Schedule) -> None:
    for _ in range(MAX_EVENTS):
        schedule.add(SPIKE, 60.0)
    with pytest.raises(ResourceExhausted, match="10000 events"):
        schedule.add(SPIKE, 60.0)
    assert schedule.clear() == MAX_EVENTS
    assert schedule.add(SPIKE, 60.0).state == State.PLANNED


async def test_the_links_that_events_name_are_bounded(schedule: Schedule) -> None:
    many = NetworkEvent("partition", nodes=tuple(f"n{number}" for number in range(MAX_TARGETS // 20)))
    for _ in range(20):
        schedule.add(many, 60.0)
    with pytest.raises(ResourceExhausted, match="targets"):
        schedule.add(SPIKE, 60.0)
    schedule.forget(schedule.entries()[:1])
    schedule.add(SPIKE, 60.0)


async def test_planning_takes_no_longer_with_many_planned(schedule: Schedule) -> None:
    def seconds(count: int) -> float:
        began = time.thread_time()
        for _ in range(count):
            schedule.add(SPIKE, 60.0)
        return time.thread_time() - began

    first = min(seconds(500) for _ in range(3))
    seconds(7000)
    assert min(seconds(500) for _ in range(3)) < 5 * first + 0.01


async def test_events_that_run_on_a_link_are_bounded(ports: LinkRegistry, servicer: ControlServicer) -> None:
    ports.of("node_1")
    spike = pb.Event(type="latency_spike", nodes=["node_1"], added_ms=1)
    for _ in range(MAX_RUNNING):
        await servicer.Inject(spike, None)
    with pytest.raises(ResourceExhausted, match="100 events run on the link of node_1"):
        await servicer.Inject(spike, None)
    ports.apply(SPIKE)  # as one that was planned
    assert len(ports.known("node_1").link.active_events(time.monotonic())) == MAX_RUNNING
    (link,) = (await servicer.ListLinks(pb.ListLinksRequest(), None)).links
    assert len(link.active_events) == 11 and link.active_events[-1] == "and 90 more"
    await servicer.Inject(pb.Event(type="recovery", nodes=["node_1"]), None)
    await servicer.Inject(spike, None)


async def test_a_profile_for_all_links_without_an_end_takes_no_room(ports: LinkRegistry, schedule: Schedule) -> None:
    for name in ("poor", "average") * MAX_RUNNING:
        schedule.add(NetworkEvent("profile_change", "*", new_profile=name))
    await schedule.settled()
    assert ports.of("new").link.profile.name == "average" and not ports.running()
    for _ in range(MAX_RUNNING):
        ports.apply(NetworkEvent("latency_spike", "*", added_ms=1))
    with pytest.raises(ResourceExhausted, match="100 events run on all links"):
        ports.require(NetworkEvent("latency_spike", "*", added_ms=1))
    ports.require(NetworkEvent("recovery", "*"))


async def test_planned_events_begin_in_order_and_forgotten_ones_never(ports: LinkRegistry, schedule: Schedule) -> None:
    ports.of("node_1")
    late = schedule.add(NetworkEvent("profile_change", "node_1", new_profile="poor"), 0.05)
    early = schedule.add(NetworkEvent("profile_change", "node_1", new_profile="average"), 0.02)
    never = schedule.add(NetworkEvent("profile_change", "node_1", new_profile="unstable"), 0.03)
    schedule.forget([never])
    for entry, name in ((early, "average"), (late, "poor")):
        while entry.state == State.PLANNED:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        assert ports.known("node_1").link.profile.name == name
        assert entry.at is not None and time.monotonic() >= entry.at
    assert never.state == State.PLANNED


async def test_texts_and_names_are_bounded(servicer: ControlServicer) -> None:
    long_scenario = pb.LoadScenarioRequest(yaml="#" * (MAX_TEXT + 1))
    with pytest.raises(ResourceExhausted, match="1048577 characters"):
        await servicer.LoadScenario(long_scenario, None)
    with pytest.raises(ResourceExhausted, match="a profile of 1048577"):
        await servicer.SetProfile(pb.SetProfileRequest(node_id="n", profile=":" * (MAX_TEXT + 1)), None)
    with pytest.raises(InvalidInput, match="names at most 10000 links"):
        await servicer.Inject(pb.Event(type="partition", nodes=["n"] * (MAX_LINKS + 1)), None)


RULE = "take 1 to 64 letters, digits"


@pytest.mark.parametrize("name", ["n" * 65, "rack 1", "-n", "n\n", "n\u0661", "n" * 1_000_000])
async def test_a_name_that_no_node_can_have_is_refused_wherever_a_link_is_named(
    name: str, ports: LinkRegistry, schedule: Schedule, servicer: ControlServicer
) -> None:
    ports.of("node_1")
    for nodes, group_b in (([name], []), (["node_1"], [name])):
        event = pb.Event(type="partition", nodes=nodes, group_b=group_b)
        for call in (servicer.Inject(event, None), servicer.Schedule(pb.ScheduleRequest(event=event, round=1), None)):
            with pytest.raises(InvalidInput, match=RULE):
                await call
    with pytest.raises(InvalidInput, match=RULE):
        await servicer.SetProfile(pb.SetProfileRequest(node_id=name, profile="poor"), None)
    with pytest.raises(InvalidInput, match=RULE):
        await servicer.Clear(pb.ClearRequest(node_id=name), None)
    short = name[:1000]  # the longest key of YAML
    for scenario in (
        {"links": {short: "good"}},
        {"nodes": [{"id": short}]},
        {"events": [{"type": "flap", "node": short}]},
    ):
        with pytest.raises(InvalidInput, match=RULE) as caught:
            await servicer.LoadScenario(pb.LoadScenarioRequest(yaml=json.dumps(scenario)), None)
        assert len(str(caught.value)) < 400
    assert [port.name for port in ports] == ["node_1"] and not schedule.entries()


async def test_the_longest_name_of_a_node_is_taken(ports: LinkRegistry, servicer: ControlServicer) -> None:
    name = "N." + "_" * 61 + "9"
    assert (await servicer.SetProfile(pb.SetProfileRequest(node_id=name, profile="poor"), None)).node_id == name
    await servicer.LoadScenario(
        pb.LoadScenarioRequest(yaml=json.dumps({"links": {name: "average", "*": "good"}})), None
    )
    assert ports.known(name).link.profile.name == "average"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"profile": "p" * 1_000_000}, "unknown profile 'p{100}…'"),
        ({"profile": "poor", "region": "r" * 1_000_000}, "unknown region 'r{100}…'"),
        ({"loss_model": "l" * 1_000_000}, "unknown loss model 'l{100}…'"),
        ({"profile": "profiles: {'" + "p" * 65 + "': {rtt_ms: 4}}"}, "1 to 64 printable characters"),
        ({"profile": 'profiles: {"p\\u202e": {rtt_ms: 4}}'}, "1 to 64 printable characters"),
        ({"profile": "profiles: {'': {rtt_ms: 4}}"}, "1 to 64 printable characters"),
    ],
)
async def test_the_text_of_a_profile_is_checked(fields: dict[str, str], told: str, servicer: ControlServicer) -> None:
    with pytest.raises(InvalidInput, match=told) as caught:
        await servicer.SetProfile(pb.SetProfileRequest(node_id="n", **fields), None)
    assert len(str(caught.value)) < 600


async def test_the_name_of_a_scenario_is_bounded_and_harmless(servicer: ControlServicer) -> None:
    with pytest.raises(InvalidInput, match="4,097 characters: 4,096 are allowed"):
        await servicer.LoadScenario(pb.LoadScenarioRequest(yaml="{}", name="n" * 4097), None)
    with pytest.raises(ConfigError, match=r"^\\x1b\[2J:1: "):
        await servicer.LoadScenario(pb.LoadScenarioRequest(yaml="[]", name="\x1b[2J"), None)


async def test_a_link_beyond_the_last_is_refused_and_the_default_link_left_alone(
    ports: LinkRegistry, servicer: ControlServicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports_module, "MAX_LINKS", 2)
    ports.of("a")
    await servicer.LoadScenario(pb.LoadScenarioRequest(yaml="links: {a: poor, b: poor}"), None)
    ports.of(None)
    with pytest.raises(ResourceExhausted, match="1 more links are too many beside 3: 2 are allowed"):
        await servicer.SetProfile(pb.SetProfileRequest(node_id="c", profile="poor"), None)
    with pytest.raises(ResourceExhausted):
        await servicer.LoadScenario(pb.LoadScenarioRequest(yaml="links: {a: average, c: average}"), None)
    assert {port.name: port.profile_name for port in ports} == {"a": "poor", "b": "poor", "default": "good"}
    assert (await servicer.SetProfile(pb.SetProfileRequest(node_id="b", profile="average"), None)).profile == "average"


async def test_custom_profiles_are_bounded(servicer: ControlServicer) -> None:
    catalogue = ProfileRegistry()
    for number in range(MAX_PROFILES):
        catalogue._custom[f"p{number}"] = find_profile("good")
    await catalogue.described("profiles: {p1: {loss: 0.1}}")  # there already
    with pytest.raises(ResourceExhausted, match="1000 custom profiles"):
        await catalogue.described("profiles: {new: {loss: 0.1}}")


async def test_watchers_are_bounded_and_share_what_they_see(
    servicer: ControlServicer, ports: LinkRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports.of("node_1")
    request = pb.WatchRequest(interval_seconds=60)
    watchers: list[Any] = [servicer.Watch(request, None) for _ in range(MAX_WATCHERS + 1)]
    seen = [await anext(watcher) for watcher in watchers[:MAX_WATCHERS]]
    assert seen[0].links[0].node_id == "node_1" and seen[1] is seen[0]
    with pytest.raises(ResourceExhausted, match="16 clients watch"):
        await anext(watchers[-1])
    await watchers[0].aclose()
    again: Any = servicer.Watch(request, None)
    assert (await anext(again)).links
    for watcher in (*watchers[1:], again):
        await watcher.aclose()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"nodes: {{edge: {{count: {MAX_LINKS + 1}}}}}", "10001 links are too many"),
        (f"nodes: {{a: {{count: {MAX_LINKS}}}, b: {{}}}}", "10001 links are too many"),
        ("events: [" + "{type: recovery}," * (MAX_EVENTS + 1) + "]", "10001 events"),
        ("nodes: {g: {count: 10000}}\nevents: [" + "{type: partition, node: g}," * 21 + "]", "210000 targets"),
    ],
)
def test_a_scenario_asks_for_no_more_than_there_may_be(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_scenario(text, "s.yaml")


def test_many_faults_are_told_in_one_reading() -> None:
    text = "events:\n" + "  - {type: 5, no: 1}\n" * 500
    began = time.thread_time()
    with pytest.raises(ConfigError) as caught:
        parse_scenario(text, "s.yaml")
    assert time.thread_time() - began < 5  # a reading for each fault took a minute
    assert str(caught.value).endswith("; and 980 more") and "s.yaml:2: " in str(caught.value)


def test_a_hint_is_found_in_time_whatever_is_asked_for() -> None:
    began = time.thread_time()
    message = suggest("x" * 5_000_000, [f"node_{number}" for number in range(MAX_LINKS)])
    assert time.thread_time() - began < 2 and "10000 in all" in message
    assert "did you mean 'node_1'" in suggest("nod_1", ["node_1"])


async def test_links_beyond_the_bound_share_the_default(monkeypatch: pytest.MonkeyPatch, ports: LinkRegistry) -> None:
    monkeypatch.setattr(ports_module, "MAX_LINKS", 2)
    ports.of("a"), ports.of("b")
    assert ports.of("c").name == "default"
    ports.apply(NetworkEvent("partition", nodes=("c", "d")))
    assert ports.of(None).link.state(time.monotonic()) == "up"  # an event on them strikes nobody else


def test_the_server_says_what_was_exhausted() -> None:
    from hypergpu.common.rpc import status_of

    assert status_of(ResourceExhausted("full")) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")


def test_a_long_message_is_cut_for_the_trailers() -> None:
    from hypergpu.common.rpc import status_of

    assert status_of(InvalidInput("x" * 2_000))[1] == "x" * 2_000
    assert status_of(InvalidInput("x" * 2_001))[1] == "x" * 2_000 + "…"
