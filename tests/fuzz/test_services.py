"""The servers against messages that nobody meant: no call ends with an error that is not ours, and they go on."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from hypergpu.common import http
from hypergpu.common.http import Answer, HttpServer, Limits
from hypergpu.common.roles import Role
from hypergpu.common.tensors import chunks
from hypergpu.common.token import TokenSource
from hypergpu.common.token_bucket import Budget, Budgets
from hypergpu.common.wire import encode_part, manifest_to_proto
from hypergpu.netsim_proxy.api import control_service
from hypergpu.netsim_proxy.api.profile_registry import ProfileRegistry
from hypergpu.netsim_proxy.api.schedule import Schedule
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.io.pacer import Pacer
from hypergpu.netsim_proxy.link.profiles import find_profile
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import netsim_pb2 as net
from tests.coordinator.test_services import FakeNode, Running, running
from tests.examples import examples
from tests.fuzz.mutations import inputs, messages
from tests.fuzz.samples import EVENT, HEADER, PROFILES, REGISTER, REPORT, SCENARIO

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
FEW, MANY = 40, 3_000
SOAK = settings(max_examples=MANY, derandomize=False, suppress_health_check=list(HealthCheck))
TRAINING, CONTROL = "/hypergpu.coordinator.v1.Training/", "/hypergpu.coordinator.v1.Control/"
NETSIM = "/hypergpu.netsim.v1.Netsim/"
STREAMING = {"PullWork", "PullParameters", "WatchEvents", "Watch"}
SECONDS = 0.2
"""Time for a call: some wait for work."""


class Fuzzed:
    """A server, and what to call it with."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.metadata: list[tuple[str, str]] = []
        self.faults: list[str] = []

    async def call(self, method: str, sent: list[bytes]) -> bytes | None:
        """Make a call of raw bytes, and return its answer; None after a status."""
        channel: Any = self.channel
        try:
            if method.endswith("PushUpdate"):
                return bytes(await channel.stream_unary(method)(iter(sent), metadata=self.metadata, timeout=2.0))
            if method.rpartition("/")[2] in STREAMING:
                stream = channel.unary_stream(method)(sent[0], metadata=self.metadata, timeout=SECONDS)
                return b"".join([bytes(part) async for part in stream])
            return bytes(await channel.unary_unary(method)(sent[0], metadata=self.metadata, timeout=2.0))
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            if error.code() is grpc.StatusCode.UNKNOWN or details.startswith("internal error"):
                self.faults.append(f"{method}: {error.code()}: {details}")
            return None

    def note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Note an exception that no task handles."""
        if not isinstance(context.get("exception"), asyncio.CancelledError | None):
            self.faults.append(repr(context))


def nodes_calls(run: Running, node: FakeNode) -> dict[str, Message]:
    """Return a valid message for each method of the coordinator, as of now."""
    machine = run.coordinator.engine.machine
    order = machine.wanted_unit(node.name, machine.round)
    work = pb.WorkId(run_id=node.run_id, round=machine.round, node_id=node.name, attempt=order.attempt if order else 1)
    manifest = manifest_to_proto(run.coordinator.engine.model.manifest)
    register, header = pb.RegisterRequest(), pb.UpdateHeader()
    register.CopyFrom(REGISTER)
    header.CopyFrom(HEADER)
    register.node_id = node.name
    register.ClearField("identity")
    header.work.CopyFrom(work)
    header.manifest.CopyFrom(manifest)
    header.encoding.payload_bytes = manifest.total_bytes
    beat = pb.HeartbeatRequest(node_id=node.name, run_id=node.run_id, state="training", rtt_ms=12.5, report=REPORT)
    return {
        f"{TRAINING}Register": register,
        f"{TRAINING}Heartbeat": beat,
        f"{TRAINING}PullWork": pb.PullWorkRequest(node_id=node.name, run_id=node.run_id, wait_seconds=0.01),
        f"{TRAINING}PullParameters": pb.PullParametersRequest(work=work, ranges=[pb.ByteRange(start=0, end=8)]),
        f"{TRAINING}PushUpdate": header,
        f"{TRAINING}GetUploadProgress": work,
        f"{TRAINING}ReturnWork": pb.ReturnWorkRequest(work=work, reason="Unavailable", detail="x"),
        f"{TRAINING}Leave": pb.LeaveRequest(node_id=node.name, run_id=node.run_id, reason="x"),
        f"{CONTROL}GetStatus": pb.GetStatusRequest(),
        f"{CONTROL}ListNodes": pb.ListNodesRequest(),
        f"{CONTROL}WatchEvents": pb.WatchEventsRequest(replay=3),
        f"{CONTROL}SetNodeRule": pb.SetNodeRuleRequest(node_id=node.name, rule=pb.SetNodeRuleRequest.INCLUDE),
        f"{CONTROL}SetPolicy": pb.SetPolicyRequest(policy="reactive"),
    }


@st.composite
def requests(draw: st.DrawFn, method: str, valid: Message) -> list[bytes]:
    """The messages of a call: changed valid ones, or any bytes. A report in a heartbeat is changed by itself."""
    if isinstance(valid, pb.HeartbeatRequest) and draw(st.booleans()):
        valid.report = draw(inputs([REPORT]))[:1024]
    changed = draw(st.one_of(messages([valid]), messages([valid]), st.binary(max_size=40)))
    if not method.endswith("PushUpdate"):
        return [changed]
    header = pb.UpdatePart()
    try:
        header.header.ParseFromString(changed)
    except Exception:
        return [changed]
    values = np.array(draw(st.lists(st.floats(width=32), min_size=8, max_size=8)), np.float32)
    parts = [encode_part(chunk) for chunk in chunks(values, chunk_bytes=draw(st.sampled_from((8, 16, 32, 64))))]
    if draw(st.booleans()):
        parts[draw(st.integers(0, len(parts) - 1))] = draw(inputs(parts))
    return [header.SerializeToString(), *parts]


def fuzz_coordinator(how_many: settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budgets, "spend", lambda *_: 0.0)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        server = {"max_nodes": 30, "heartbeat_seconds": 60.0}
        entering = running(folder, training={"rounds": 0, "min_nodes": 1}, server=server)
        run = runner.run(stack.enter_async_context(entering))
        node, fuzzed = run.node("a"), Fuzzed(run.channel)
        runner.get_loop().set_exception_handler(fuzzed.note)
        runner.run(_join(fuzzed, node))

        @how_many
        @given(data=st.data())
        def attempt(data: st.DataObject) -> None:
            calls = nodes_calls(run, node)
            method = data.draw(st.sampled_from(sorted(calls)))
            sent = data.draw(requests(method, calls[method]))
            answer = runner.run(fuzzed.call(method, sent))
            if answer is not None and method.endswith("Register"):
                node.show(pb.RegisterReply.FromString(answer).lease)
            if answer is not None and method.endswith(("Register", "Leave")):
                runner.run(_join(fuzzed, node))
            assert not fuzzed.faults, fuzzed.faults
            assert not run.done.done()

        try:
            attempt()
            runner.run(_join(fuzzed, node))
            assert runner.run(node.heartbeat()) == pb.HeartbeatReply.CONTINUE
        finally:
            runner.run(stack.aclose())


async def _join(fuzzed: Fuzzed, node: FakeNode) -> None:
    """Register the node, and let it ask for work once."""
    await node.register()
    fuzzed.metadata = node.metadata
    await node.pull(0.01)


def test_a_coordinator_bears_any_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz_coordinator(examples(FEW), tmp_path, monkeypatch)


@pytest.mark.soak
def test_a_coordinator_bears_many_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz_coordinator(SOAK, tmp_path, monkeypatch)


PROXY_CALLS: dict[str, list[Message]] = {
    f"{NETSIM}ListLinks": [net.ListLinksRequest()],
    f"{NETSIM}ListScheduled": [net.ListScheduledRequest()],
    f"{NETSIM}Watch": [net.WatchRequest(interval_seconds=0.1)],
    f"{NETSIM}SetProfile": [
        net.SetProfileRequest(node_id="node_1", profile="4g", loss_model="rpc", region="eu-west"),
        *(net.SetProfileRequest(node_id="node_1", profile=text) for text in PROFILES),
    ],
    f"{NETSIM}SetUpstreamBandwidth": [net.SetUpstreamBandwidthRequest(down_mbit=9.0, up_mbit=5.0, queue_bytes=9)],
    f"{NETSIM}Inject": [EVENT],
    f"{NETSIM}Schedule": [
        net.ScheduleRequest(event=EVENT, after_seconds=9.0),
        net.ScheduleRequest(event=EVENT, round=3),
    ],
    f"{NETSIM}Clear": [net.ClearRequest(node_id="node_1")],
    f"{NETSIM}AnnounceRound": [net.AnnounceRoundRequest(round=3)],
    f"{NETSIM}LoadScenario": [net.LoadScenarioRequest(yaml=text, name="x") for text in SCENARIO],
    f"{NETSIM}Reload": [net.ReloadRequest()],
}


async def _proxy() -> tuple[Fuzzed, Callable[[], Coroutine[Any, Any, None]]]:
    pacer = Pacer()
    links = LinkRegistry(pacer, find_profile("good"), seed=1)
    links.of("node_1")
    tokens = {Role.OPERATOR: TokenSource(["secret"])}
    server = await control_service.make_server(links, Schedule(links, pacer), ProfileRegistry(), tokens)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    fuzzed = Fuzzed(channel)
    fuzzed.metadata = [("authorization", "Bearer secret")]

    async def close() -> None:
        await channel.close()
        await server.stop(0)
        pacer.close()

    return fuzzed, close


def fuzz_proxy(how_many: settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Budgets, "spend", lambda *_: 0.0)
    with asyncio.Runner() as runner:
        fuzzed, close = runner.run(_proxy())
        runner.get_loop().set_exception_handler(fuzzed.note)

        @how_many
        @given(data=st.data())
        def attempt(data: st.DataObject) -> None:
            method = data.draw(st.sampled_from(sorted(PROXY_CALLS)))
            sent = data.draw(st.one_of(messages(PROXY_CALLS[method]), st.binary(max_size=40)))
            runner.run(fuzzed.call(method, [sent]))
            assert not fuzzed.faults, fuzzed.faults

        try:
            attempt()
            assert runner.run(fuzzed.call(f"{NETSIM}ListScheduled", [b""])) is not None
        finally:
            runner.run(close())


def test_the_control_api_of_the_proxy_bears_any_message(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz_proxy(examples(FEW), monkeypatch)


@pytest.mark.soak
def test_the_control_api_of_the_proxy_bears_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz_proxy(SOAK, monkeypatch)


def fuzz_http(how_many: settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_REQUESTS", Budget(1e9, 1e9))
    limits = Limits(requests=Budget(1e9, 1e9))
    server = HttpServer(
        "127.0.0.1:0", {"/metrics": http.metrics(CollectorRegistry()), "/x": lambda: Answer(b"x")}, limits
    )
    host, _, port = server.address.rpartition(":")
    valid = [b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n", b"HEAD /x?a=b HTTP/1.0\r\n\r\n"]

    def ask(data: bytes) -> bytes:
        with socket.create_connection((host, int(port)), timeout=8.0) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: connection.recv(65536), b""))
            except ConnectionError:
                return b""

    @how_many
    @given(data=inputs(valid))
    def attempt(data: bytes) -> None:
        answer = ask(data)
        assert not answer or answer.startswith(b"HTTP/1.1 "), answer
        assert b" 500 " not in answer.split(b"\r\n")[0]

    try:
        attempt()
        assert b"200 OK" in ask(valid[0])
    finally:
        server.close()


def test_the_http_server_bears_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz_http(examples(FEW), monkeypatch)


@pytest.mark.soak
def test_the_http_server_bears_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz_http(SOAK, monkeypatch)
