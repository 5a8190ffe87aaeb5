import math
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from hypergpu.cli import main
from hypergpu.common.rpc import SERVER_OPTIONS
from hypergpu.discovery import Cluster
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import coordinator_pb2_grpc, netsim_pb2_grpc
from hypergpu.protos import netsim_pb2 as net

TOKEN = "a-join-token"


@dataclass
class FakeCoordinator(coordinator_pb2_grpc.ControlServicer):
    """Answers with what is set, and keeps what it was asked."""

    status: pb.Status = field(default_factory=pb.Status)
    nodes: list[pb.NodeInfo] = field(default_factory=list)
    events: list[pb.RunEvent] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    last_statuses: int | None = None
    """How many it still answers; then the run is over, and nobody answers."""
    over: threading.Event = field(default_factory=threading.Event)

    def _answer(self, request: Any, context: grpc.ServicerContext, reply: Any) -> Any:
        if ("authorization", f"Bearer {TOKEN}") not in [(k, v) for k, v in context.invocation_metadata()]:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong join token")
        self.asked.append(request)
        return reply

    def GetStatus(self, request: pb.GetStatusRequest, context: grpc.ServicerContext) -> Any:
        if self.last_statuses is not None:
            self.last_statuses -= 1
            if self.last_statuses < 0:
                self.over.set()
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return self._answer(request, context, self.status)

    Pause = Resume = Stop = GetStatus

    def Restart(self, request: pb.RestartRequest, context: grpc.ServicerContext) -> Any:
        before = pb.Status.FromString(self.status.SerializeToString())
        self.status.run_id, self.status.round = "run-2", 1
        return self._answer(request, context, before)

    def SetPolicy(self, request: pb.SetPolicyRequest, context: grpc.ServicerContext) -> Any:
        if request.policy not in ("reactive", "aggressive"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unknown policy {request.policy!r}")
        return self._answer(request, context, self.status)

    def ListNodes(self, request: pb.ListNodesRequest, context: grpc.ServicerContext) -> Any:
        return self._answer(request, context, pb.NodeList(nodes=self.nodes))

    def SetNodeRule(self, request: pb.SetNodeRuleRequest, context: grpc.ServicerContext) -> Any:
        rule = pb.SetNodeRuleRequest.Rule.Name(request.rule).lower()
        return self._answer(request, context, pb.NodeInfo(node_id=request.node_id, rule=rule, state="idle"))

    def WatchEvents(self, request: pb.WatchEventsRequest, context: grpc.ServicerContext) -> Iterator[pb.RunEvent]:
        self._answer(request, context, None)
        yield from self.events[-request.replay :]
        while self.last_statuses is not None and context.is_active():
            if self.over.wait(0.01):
                yield pb.RunEvent(seconds=9.0, round=25, kind="completed", text="the run is over: [25] rounds")
                return


@dataclass
class FakeProxy(netsim_pb2_grpc.NetsimServicer):
    links: list[net.LinkInfo] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)

    def ListLinks(self, request: net.ListLinksRequest, context: grpc.ServicerContext) -> net.LinkList:
        return net.LinkList(links=self.links, upstream=self._upstream(300))

    def SetProfile(self, request: net.SetProfileRequest, context: grpc.ServicerContext) -> net.LinkInfo:
        self.asked.append(request)
        return net.LinkInfo(node_id=request.node_id, profile=request.profile)

    def SetUpstreamBandwidth(
        self, request: net.SetUpstreamBandwidthRequest, context: grpc.ServicerContext
    ) -> net.UpstreamInfo:
        self.asked.append(request)
        return self._upstream(request.down_mbit)

    @staticmethod
    def _upstream(down_mbit: float) -> net.UpstreamInfo:
        up = net.SharedLaneInfo(bandwidth_mbit=math.inf)
        return net.UpstreamInfo(up=up, down=net.SharedLaneInfo(bandwidth_mbit=down_mbit, queue_bytes=2_000_000))

    def Inject(self, request: net.Event, context: grpc.ServicerContext) -> net.EventReply:
        self.asked.append(request)
        return net.EventReply(event_id="event-1", summary=f"{request.type} at {', '.join(request.nodes)}")

    def Schedule(self, request: net.ScheduleRequest, context: grpc.ServicerContext) -> net.EventReply:
        self.asked.append(request)
        return net.EventReply(event_id="event-2", summary=f"{request.event.type} later")

    def ListScheduled(self, request: net.ListScheduledRequest, context: grpc.ServicerContext) -> net.ScheduleList:
        event = net.Event(type="recovery")
        return net.ScheduleList(events=[net.ScheduledEvent(event_id="e2", event=event, state="over")])

    def Clear(self, request: net.ClearRequest, context: grpc.ServicerContext) -> net.ClearReply:
        self.asked.append(request)
        return net.ClearReply(cleared=1)

    def Reload(self, request: net.ReloadRequest, context: grpc.ServicerContext) -> net.ReloadReply:
        self.asked.append(request)
        return net.ReloadReply(changed=["map.yaml"])

    def LoadScenario(self, request: net.LoadScenarioRequest, context: grpc.ServicerContext) -> net.ScheduleList:
        self.asked.append(request)
        event = net.Event(type="latency_spike", nodes=["node_1"])
        return net.ScheduleList(events=[net.ScheduledEvent(event_id="e1", event=event, round=10, state="planned")])


@dataclass(frozen=True)
class Fakes:
    coordinator: FakeCoordinator
    proxy: FakeProxy
    cluster: Cluster


@pytest.fixture
def fakes() -> Iterator[Fakes]:
    coordinator = FakeCoordinator(
        status=pb.Status(
            run_id="run-1",
            state="training",
            task="digits",
            round=7,
            rounds=25,
            loss=0.31,
            metric=pb.Metric(name="accuracy", better="higher", format="percent", value=0.94),
            policy="reactive",
            phase="adaptive",
            nodes_connected=2,
            nodes_selected=2,
            decisions=[pb.DecisionRecord(round=7, kind="batch_size", subject="node_2", reason="high_latency")],
        ),
        nodes=[
            pb.NodeInfo(node_id="node_10", state="idle", rounds_contributed=3, quality="good", score=81.0),
            pb.NodeInfo(node_id="node_2", state="working", rounds_contributed=7, quality="poor", score=44.0),
        ],
        events=[
            pb.RunEvent(seconds=1.0, round=6, kind="round_closed", text="round 6 closed", json='{"accuracy": 0.9}'),
            pb.RunEvent(seconds=2.0, round=7, kind="round_started", text="round 7 started", json="{}"),
        ],
    )
    proxy = FakeProxy(links=[net.LinkInfo(node_id="node_2", profile="poor", rpcs=40, rpcs_lost=2)])
    servers = []
    for add, servicer in (
        (coordinator_pb2_grpc.add_ControlServicer_to_server, coordinator),
        (netsim_pb2_grpc.add_NetsimServicer_to_server, proxy),
    ):
        server = grpc.server(ThreadPoolExecutor(4), options=SERVER_OPTIONS)
        add(servicer, server)
        servers.append((server, server.add_insecure_port("127.0.0.1:0")))
        server.start()
    yield Fakes(coordinator, proxy, Cluster(f"127.0.0.1:{servers[0][1]}", f"127.0.0.1:{servers[1][1]}", TOKEN))
    for server, _ in servers:
        server.stop(None)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in an empty directory of an otherwise empty user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("COORDINATOR", "PROXY", "TOKEN", "TOKEN_FILE", "TLS_CA", "INSECURE"):
        monkeypatch.delenv(f"HYPERGPU_{name}", raising=False)

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        printed = capsys.readouterr()
        assert isinstance(exit.value.code, int)
        return Result(exit.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def on_fakes(cli: Cli, fakes: Fakes) -> Cli:
    """Run the command line against the fakes."""
    where = fakes.cluster

    def run(*arguments: str) -> Result:
        return cli(*arguments, "--coordinator", where.coordinator, "--proxy", where.proxy, "--token", where.token)

    return run


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port on which nobody answers."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
