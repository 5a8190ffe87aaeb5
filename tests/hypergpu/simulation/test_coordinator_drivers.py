"""Both drivers of the coordinator's session, over gRPC and in virtual time: same script, same events and effects.

The nodes of each test do what the script says. What is compared is what `RoundMachine.handle` was given, what it
returned, and how each request was answered, without times. `--update-transcripts` writes what follows each command.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import HyperGPUError, NonFiniteUpdate, ResourceExhausted, StaleWork
from hypergpu.common.metric import ACCURACY, MetricSpec
from hypergpu.common.node_terms import FREE, NodeTerms
from hypergpu.common.rpc import LEASE
from hypergpu.common.step_times import StepTimes
from hypergpu.common.tensors import Payload
from hypergpu.coordinator.core.adaptation import build_orchestrator
from hypergpu.coordinator.core.model.fragment_sendings import NOTHING, Held, ModelSendings
from hypergpu.coordinator.core.model.outgoing import Sending
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.deadlines import DeadlineReason
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.state import CLOSING
from hypergpu.coordinator.core.rounds.work import WorkReason
from hypergpu.coordinator.link_telemetry import LinkTelemetry
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.simulation.coordinator import SimulatedCoordinator
from hypergpu.simulation.virtual_time import VirtualTime
from tests.coordinator.test_services import FakeNode, Order, Running, running
from tests.node.test_agent import until
from tests.transcripts import RequireTranscript

SCRIPTS = Path(__file__).parent / "coordinator_scripts"
ERRORS = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: StaleWork,
    grpc.StatusCode.OUT_OF_RANGE: NonFiniteUpdate,
}
CONTROL: dict[str, ev.Event] = {
    "stop": ev.Stop("enough"),
    "pause": ev.Pause(),
    "resume": ev.Resume(),
    "exclude-b": ev.OverrideSet("b", NodeOverride.EXCLUDE),
}


def configuration(options: Sequence[str]) -> dict[str, Any]:
    """Settings of a run over four rounds, in which half of the nodes make a quorum."""
    given = dict(option.split("=") for option in options)
    return {
        "training": {
            "rounds": 4,
            "local_steps": 2,
            "batch_size": 2,
            "quorum": 0.5,
            "min_nodes": given.get("min_nodes", 1),
            "mode": given.get("mode", "sync"),
            "buffer_size": given.get("buffer_size"),
            "max_staleness": given.get("max_staleness", 8),
            "close_share": given.get("close_share", 1.0),
        },
        "server": {
            "max_nodes": given.get("max_nodes", 10),
            "heartbeat_seconds": given.get("heartbeat_seconds", 2.0),
            "scrape_nodes": False,
            "linger_seconds": 5.0,
        },
        "orchestrator": {"policy": given.get("policy", "none")},
        "transfers": {"connections": given.get("connections", "auto")},
        "contribution": {"measured_share": 0},  # who is drawn is a secret, which differs
    }


def said(effect: ev.Effect) -> str:  # noqa: PLR0911  (one case per effect)
    match effect:
        case ev.RunEvent(decision=None):
            return effect.kind
        case ev.RunEvent(decision=decision):
            assert decision is not None
            return f"{decision.reason} {decision.subject}"
        case ev.StartRound():
            return f"StartRound {effect.round} of {'+'.join(effect.nodes)}"
        case ev.WorkAssigned():
            down, up = effect.connections
            over = f" over {down} and {up} connections" if (down, up) != (1, 1) else ""
            return f"WorkAssigned {effect.node} {effect.round}.{effect.attempt}{over}"
        case ev.UpdateReply(status=kind) | ev.CloseRound(reason=kind) | ev.Finish(reason=kind):
            return f"{type(effect).__name__} {kind}"
        case ev.RunOver(node=node):
            return f"RunOver {node}"
    return type(effect).__name__


def is_timing(effect: ev.Effect) -> bool:
    """Whether an effect depends on measured times, as the decisions of the adaptation do."""
    if isinstance(effect, ev.RunEvent) and effect.decision is not None:
        return not isinstance(effect.decision.reason, WorkReason | DeadlineReason)
    return isinstance(effect, ev.SetTimer)


def line(event: ev.Event, effects: Sequence[ev.Effect]) -> str:
    about = " ".join(str(getattr(event, name)) for name in ("node", "round", "attempt") if hasattr(event, name))
    found = [said(effect) for effect in effects if not is_timing(effect)]
    return f"{type(event).__name__} {about}".rstrip() + f": {', '.join(found) or 'nothing'}"


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    handle = RoundMachine.handle

    def recording(self: RoundMachine, event: ev.Event, now: float) -> list[ev.Effect]:
        effects = handle(self, event, now)
        told = line(event, effects)
        if told != "Tick: nothing":  # how often a timer is set anew is a matter of time
            lines.append(f"  {told}")
        return effects

    monkeypatch.setattr(RoundMachine, "handle", recording)
    return lines


# ---------------------------------------------------------------- real time


class RealCluster:
    """A coordinator over gRPC, and nodes that call it as the commands say."""

    def __init__(self, run: Running, trace: list[str]) -> None:
        self._run, self._trace = run, trace
        self._engine = run.coordinator.engine
        self._nodes: dict[str, FakeNode] = {}
        self._orders: dict[str, Order] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}

    async def perform(self, command: str, node: str = "", value: str = "") -> str | None:
        if command in CONTROL:
            self._engine.dispatch(CONTROL[command])
            answer = None
        else:
            if node and node not in self._nodes:
                self._nodes[node] = self._run.node(node)
                self._nodes[node].run_id = self._engine.run_id
                if (leases := self._engine.session.leases) is not None:  # as if it had registered with another process
                    self._nodes[node].metadata.append((LEASE, leases.secret(node, "1")))
            try:
                answer = await getattr(self, "_" + command.replace("-", "_"))(node, value)
            except grpc.aio.AioRpcError as error:
                answer = ERRORS[error.code()].__name__
        await self._settle()
        return answer

    async def leave(self) -> None:
        """Let every node leave."""
        for name in list(self._engine.machine.members.connected):
            await self._leave(name, "")

    async def _settle(self) -> None:
        """Wait until the coordinator has nothing to do, and every order is where it was asked for."""
        machine = self._engine.machine
        await until(lambda: machine.round_state.phase is not CLOSING)
        for name in [name for name in self._pulls if not machine.members.require(name).requesting]:
            await self._pulls.pop(name)

    async def _register(self, node: str, _: str) -> None:
        await self._nodes[node].register()

    async def _take_order(self, node: str, wait: float) -> None:
        found = await self._nodes[node].pull(wait)
        if isinstance(found, Order):
            self._orders[node] = found

    async def _pull(self, node: str, _: str) -> None:
        before = len(self._trace)
        self._pulls[node] = asyncio.create_task(self._take_order(node, 60.0))
        await until(lambda: f"WorkRequested {node}" in "".join(self._trace[before:]) or self._pulls[node].done())
        if self._pulls[node].done():
            await self._pulls.pop(node)

    async def _pull_in_vain(self, node: str, _: str) -> None:
        await self._take_order(node, 0.05)

    async def _push(self, node: str, value: str) -> str:
        order = self._orders[node]
        if value.isdigit():
            work = pb.WorkOrder()
            work.CopyFrom(order.order)
            work.work.round = int(value)
            order = replace(order, order=work)
        samples = order.order.batch_size * order.order.local_steps
        content = np.full(8, np.nan if value == "nan" else 0.0, np.float32)
        await self._nodes[node].push(order, content, samples=samples)
        return "taken"

    async def _ask_progress(self, node: str, _: str) -> str:
        of, work = self._nodes[node], self._orders[node].order.work
        return f"accepted: {(await of.stub.GetUploadProgress(work, metadata=of.metadata)).accepted}"

    async def _return(self, node: str, reason: str) -> None:
        of, work = self._nodes[node], self._orders[node].order.work
        await of.stub.ReturnWork(pb.ReturnWorkRequest(work=work, reason=reason), metadata=of.metadata)

    async def _leave(self, node: str, _: str) -> None:
        of = self._nodes[node]
        await of.stub.Leave(pb.LeaveRequest(node_id=node, run_id=of.run_id, reason="enough"), metadata=of.metadata)

    async def _heartbeat(self, node: str, state: str) -> str:
        return pb.HeartbeatReply.Directive.Name(await self._nodes[node].heartbeat(state))

    async def _await_deadline(self, *_: str) -> None:
        await until(lambda: "Tick: CloseRound" in "".join(self._trace))

    async def _lose(self, node: str, _: str) -> None:
        while node in self._engine.machine.members.connected:
            for other in self._engine.machine.members.connected.keys() - {node}:
                await self._nodes[other].heartbeat()
            await asyncio.sleep(0.02)


# ---------------------------------------------------------------- virtual time


class NoHeartbeats:
    """The script sends them."""

    def flush(self) -> None: ...

    def watch(self) -> None: ...


@dataclass
class Rpc:
    over: bool = False


@dataclass
class Node:
    """What the coordinator sees of a simulated node, and how it answered last."""

    node_id: str
    incarnation: int = 1
    largest_batch: int = 0
    terms: NodeTerms = FREE
    step_times: StepTimes | None = None
    held: Held = NOTHING
    info: dict[str, str] = field(default_factory=dict)
    state: str = "idle"
    attempts: int = 0
    failures: int = 0
    step_seconds: float = 0.0
    heartbeats: NoHeartbeats = field(default_factory=NoHeartbeats)
    work: ev.WorkAssigned | None = None
    answer: str | None = None

    def send_registered(self, _: Rpc) -> None: ...

    def send_work(self, work: ev.WorkAssigned, _: Rpc, sending: Sending, payload: Payload | None) -> None:
        assert sending == Sending("none")
        self.work = work

    def send_verdict(self, _: Rpc) -> None:
        self.answer = "taken"

    def reject(self, _: Rpc, error: HyperGPUError) -> None:
        self.answer = type(error).__name__


@dataclass
class ScriptedLearning:
    """Updates and evaluations without a model."""

    is_finite: bool = True
    model_bytes: int = 32
    metric: MetricSpec = ACCURACY
    samples: int = 40
    update_norms: tuple[float, float] | None = None
    step_sketch: None = None
    metric_fault: str = ""
    others: Mapping[str, float | None] = field(default_factory=dict)
    sendings: ModelSendings = field(default_factory=lambda: ModelSendings(1))

    def train(self, order: ev.WorkAssigned, compute_seconds: float = 0.0) -> ev.UpdateArrived:
        if not self.is_finite:
            raise NonFiniteUpdate("as the script wants it")
        samples = order.batch_size * order.local_steps
        return ev.UpdateArrived(
            order.node, order.round, order.attempt, samples, 0.5, compute_seconds, loss_before=0.5, norm=0.0
        )

    def data_report(self, node: str) -> None:
        pass

    def payload_bytes(self, codec: str, fragments: tuple[int, ...] = ()) -> int:
        assert codec == "none"
        return self.model_bytes

    def payload(self, sending: Sending) -> None: ...

    def received(self, node: str, sending: Sending, payload: Payload | None) -> None: ...

    def assigned(self, order: ev.WorkAssigned) -> None: ...

    def begun(self, order: ev.WorkAssigned) -> None: ...

    def computed(self, order: ev.WorkAssigned) -> None: ...

    def begin_round(self, number: int, nodes: Sequence[str] = ()) -> None: ...

    def keep_parameters(self, late: Collection[tuple[int, str]]) -> None: ...

    def process_started(self, node: str) -> None: ...

    def add(self, weight: int, late: tuple[int, int] | None = None) -> None: ...

    def gain(self) -> None:
        pass

    def discard(self) -> None: ...

    def step(self, *_: object) -> bool:
        return True

    step_fault = "the result is not finite"

    def keep(self) -> None: ...

    def revert(self) -> None: ...

    def evaluate(self) -> tuple[float, float | None]:
        return 0.5, 0.5


class NoRecords:
    """Keeps nothing."""

    def event(self, record: ev.RunEvent, now: float) -> None: ...

    def round_closed(self, *arguments: Any, **figures: Any) -> None: ...

    def finished(self, finish: ev.Finish, now: float) -> None: ...


class VirtualCluster:
    """A coordinator in virtual time, and nodes that call it as the commands say."""

    def __init__(self, tree: dict[str, Any]) -> None:
        config = SystemConfig.model_validate(tree)
        self._time, self._learning = VirtualTime(), ScriptedLearning()
        orchestrator = build_orchestrator(config, clock=self._time.clock)
        self._machine = RoundMachine(
            config.training,
            orchestrator,
            max_nodes=config.server.max_nodes,
            lost_after_seconds=config.server.lost_after_seconds,
        )
        self._api: Any = SimulatedCoordinator(
            self._time,
            self._machine,
            self._learning,
            LinkTelemetry(orchestrator),
            run_id="run",
            recorder=NoRecords(),
            evaluation_seconds=0.001,
            scrape_seconds=float("inf"),
            round_begins=lambda _: None,
        )
        self._nodes: dict[str, Node] = {}

    def perform(self, command: str, name: str = "", value: str = "") -> str | None:
        if command in CONTROL:
            self._api.dispatch(CONTROL[command])
            answer = None
        else:
            node = self._nodes.setdefault(name, Node(name))
            node.answer = None
            told = getattr(self, "_" + command.replace("-", "_"))(node, value)
            answer = told or node.answer
        if self._machine.round_state.phase is CLOSING:
            self._time.run(until=self._time.now + 0.001)
        return answer

    def _register(self, node: Node, _: str) -> None:
        self._api.register(node, Rpc())
        if node.answer is None:
            self._api.register(node, Rpc())  # when its task is loaded

    def _pull(self, node: Node, _: str) -> None:
        self._api.pull(node, Rpc())

    def _pull_in_vain(self, node: Node, _: str) -> None:
        rpc = Rpc()
        self._api.pull(node, rpc)
        assert self._api.end_pull(node, rpc)

    def _push(self, node: Node, value: str) -> None:
        assert node.work is not None
        work = replace(node.work, round=int(value)) if value.isdigit() else node.work
        self._learning.is_finite = value != "nan"
        self._api.push(node, work, 0.1, Rpc(), nbytes=8)

    def _ask_progress(self, node: Node, _: str) -> str:
        return f"accepted: {self._api.progress(node.work).accepted}"

    def _return(self, node: Node, reason: str) -> None:
        self._api.return_work(node, node.work, reason, "")

    def _leave(self, node: Node, _: str) -> None:
        self._api.leave(node, "enough")

    def _heartbeat(self, node: Node, state: str) -> str:
        node.state = state
        return str(self._api.heartbeat(node, self._time.now, 12.5, False).name)

    def _await_deadline(self, *_: object) -> None:
        self._time.run(until=self._machine.deadline_at or 0.0)

    def _lose(self, node: Node, _: str) -> None:
        connected = self._machine.members.connected
        while node.node_id in connected:
            self._time.run(until=self._time.now + 0.02)
            for other in connected.keys() - {node.node_id}:
                self._api.heartbeat(self._nodes[other], self._time.now, 12.5, False)


# ---------------------------------------------------------------- the contract

NAMES = sorted(file.stem for file in SCRIPTS.glob("*.txt"))


def commands(file: Path) -> tuple[str, list[str], list[list[str]]]:
    """Return what a script is about, the options of its run, and its commands."""
    title, start, *rest = file.read_text().splitlines()
    _, _, *options = start.split()
    return title, options, [text[2:].split() for text in rest if text.startswith("> ")]


def answered(answer: str | None) -> list[str]:
    return [f"= {answer}"] if answer else []


@pytest.mark.parametrize("name", NAMES)
async def test_real_time_follows_the_script(
    name: str, trace: list[str], tmp_path: Path, require_transcript: RequireTranscript
) -> None:
    file = SCRIPTS / f"{name}.txt"
    title, options, steps = commands(file)
    async with running(tmp_path, **configuration(options)) as run:
        cluster = RealCluster(run, trace)
        trace += [title, f"> run {' '.join(options)}".rstrip()]
        for words in steps:
            trace.append(f"> {' '.join(words)}")
            trace += answered(await cluster.perform(*words))
        done = list(trace)
        await cluster.leave()  # a coordinator waits for the nodes of its run to leave
    require_transcript(file, done)


@pytest.mark.parametrize("name", NAMES)
def test_virtual_time_follows_the_script(name: str, trace: list[str], require_transcript: RequireTranscript) -> None:
    file = SCRIPTS / f"{name}.txt"
    title, options, steps = commands(file)
    cluster = VirtualCluster(configuration(options))
    trace += [title, f"> run {' '.join(options)}".rstrip()]
    for words in steps:
        trace.append(f"> {' '.join(words)}")
        trace += answered(cluster.perform(*words))
    require_transcript(file, trace)


def test_the_scripts_cover_every_request_of_a_node() -> None:
    text = "".join((SCRIPTS / f"{name}.txt").read_text() for name in NAMES)
    verbs = {text[2:].split()[0] for text in text.splitlines() if text.startswith("> ")}
    assert verbs - {"run"} == CONTROL.keys() | {
        *("register", "pull", "pull-in-vain", "push", "ask-progress", "return", "leave", "heartbeat"),
        *("await-deadline", "lose"),
    }
