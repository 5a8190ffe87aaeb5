"""Both drivers of a node's life cycle, over gRPC and in virtual time: the same script, the same events and effects.

The coordinator of each test does what the script says. What is compared is what `LifeCycle.handle` was given and what
it returned, without times.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from hypergpu.common.config import NodeConfig, SystemConfig
from hypergpu.common.errors import HyperGPUError, NonFiniteUpdate, StaleWork, Unavailable
from hypergpu.common.step_times import StepTimes
from hypergpu.common.tensors import Payload
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.model.outgoing import Sending
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.session import Directive
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.profiles import Loss, Path, Profile
from hypergpu.node.core import events as life
from hypergpu.node.core.lifecycle import LifeCycle
from hypergpu.node.core.states import State
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.simulation.node import LocalSteps, SimulatedNode
from hypergpu.simulation.rpc import SimulatedConnection, SimulatedRpc
from hypergpu.simulation.virtual_time import VirtualTime
from tests.node.conftest import TASK, cluster
from tests.node.test_agent import order, until

MIB = 1 << 20
STATUS = {
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    StaleWork: grpc.StatusCode.FAILED_PRECONDITION,
    NonFiniteUpdate: grpc.StatusCode.OUT_OF_RANGE,
}
Failures = Sequence[tuple[str, type[HyperGPUError]]]


@dataclass(frozen=True)
class Script:
    """What happens to a node that is given one work unit, and is told then that the run is over."""

    failures: Failures = ()
    """Calls that fail once each."""
    breaks_push: bool = False
    """The first push breaks when the coordinator has one chunk of it."""
    while_training: str = ""
    """abandon: a heartbeat is answered so; stop: the process is asked to; both in the midst of training."""
    grace_seconds: float = 5.0
    trains_for_long: bool = False


def line(event: Any, effects: Sequence[Any]) -> str:
    return f"{said(event)}: {', '.join(map(said, effects)) or 'nothing'}"


def said(message: Any) -> str:  # noqa: PLR0911  (one case per message)
    match message:
        case life.Failed():
            return f"Failed({message.kind})"
        case life.Push(offset=offset):
            return f"Push({offset})"
        case life.ProgressKnown(accepted, next_offset):
            return f"ProgressKnown({accepted}, {next_offset})"
        case life.Prepared(announce):
            return f"Prepared({announce})"
        case life.BackOff(attempt=attempt, failure=failure):
            return f"BackOff({failure}, {attempt})"
        case life.Return(kind=kind) | life.Leave(reason=kind) | life.RunFinished(reason=kind):
            return f"{type(message).__name__}({kind})"
    return type(message).__name__


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    handle = LifeCycle.handle

    def recording(self: LifeCycle[Any], event: life.Event[Any]) -> list[life.Effect[Any]]:
        effects = handle(self, event)
        lines.append(line(event, effects))
        return effects

    monkeypatch.setattr(LifeCycle, "handle", recording)
    return lines


# ---------------------------------------------------------------- real time


async def run_for_real(script: Script) -> None:
    fail = [(call, STATUS[error]) for call, error in script.failures]
    steps = 100_000 if script.trains_for_long else 60 if script.while_training else 2
    async with cluster(
        order(1, local_steps=steps),
        grace=script.grace_seconds,
        fail=fail,
        break_push_after=[1] if script.breaks_push else [],
    ) as c:
        running = asyncio.create_task(c.run())
        if script.while_training:
            await until(lambda: c.agent.state is State.TRAINING)
            if script.while_training == "stop":
                c.agent.stop("SIGTERM")
            else:
                c.fake.orders.clear()
                await until(lambda: "training" in c.fake.states)
                c.fake.directives.append(pb.HeartbeatReply.ABANDON_WORK)
        await running


# ---------------------------------------------------------------- virtual time


@dataclass
class ScriptedCoordinator:
    """The fake of real time in virtual time (see `tests/node/conftest.py`)."""

    time: VirtualTime
    failures: list[tuple[str, type[HyperGPUError]]]
    keeps_parts: bool
    """Whether it keeps what arrived of a broken push."""
    is_done: bool = False
    held: int = 0
    directives: list[Directive] = field(default_factory=list)

    def _fails(self, call: str, node: SimulatedNode) -> bool:
        """Whether this call fails: on the link, or by the error in its reply."""
        for failure in self.failures:
            if failure[0] == call:
                self.failures.remove(failure)
                rpc = node.connection.work
                assert rpc is not None
                if failure[1] is Unavailable:
                    self.time.at(self.time.now, rpc.fail)
                else:
                    node.reject(rpc, failure[1]("as the test wants it"))
                return True
        return False

    def register(self, node: SimulatedNode, rpc: SimulatedRpc) -> None:
        if not self._fails("Register", node):
            node.send_registered(rpc)

    def pull(self, node: SimulatedNode, rpc: SimulatedRpc) -> None:
        if self._fails("PullWork", node):
            return
        if self.is_done:
            node.reply(rpc, life.RunFinished("done"))
        else:
            node.send_work(
                ev.WorkAssigned(1, "n1", 1, 8, 2, 0.01, "sgd", ev.Shard(0, 2, 8), 30.0), rpc, Sending("none")
            )

    def end_pull(self, node: SimulatedNode, rpc: SimulatedRpc) -> bool:
        raise NotImplementedError

    def received(self, node: SimulatedNode, sending: Sending, payload: Payload | None) -> None: ...

    def begun(self, work: ev.WorkAssigned) -> None: ...

    def computed(self, work: ev.WorkAssigned) -> None: ...

    def sent_ahead(self, node: SimulatedNode, work: ev.WorkAssigned, nbytes: int) -> None: ...

    def is_over(self, work: ev.WorkAssigned) -> bool:
        return False

    def offer(self, work: ev.WorkAssigned, at: float) -> None: ...

    def progress(self, work: ev.WorkAssigned) -> life.ProgressKnown:
        return life.ProgressKnown(self.is_done, self.held)

    def push(
        self,
        node: SimulatedNode,
        work: ev.WorkAssigned,
        compute_seconds: float,
        rpc: SimulatedRpc,
        *,
        nbytes: int,
    ) -> None:
        if not self._fails("PushUpdate", node):
            self.is_done = True
            node.send_verdict(rpc)

    def push_broke(self, node: SimulatedNode, work: ev.WorkAssigned, next_offset: int) -> None:
        self.held = next_offset if self.keeps_parts else 0

    def begin_download(self, node: SimulatedNode, nbytes: int) -> None:
        assert nbytes > 0

    def downloaded(self, node: SimulatedNode, transfer: Transfer) -> None:
        assert transfer.seconds > 0.0

    def uploaded(self, node: SimulatedNode, transfer: Transfer) -> None:
        assert transfer.seconds > 0.0

    def return_work(self, node: SimulatedNode, work: ev.WorkAssigned, kind: str, detail: str) -> None:
        self.is_done = not self._fails("ReturnWork", node)

    def leave(self, node: SimulatedNode, reason: str) -> None:
        self._fails("Leave", node)

    def heartbeat(self, node: SimulatedNode, at: float, rtt_ms: float, loaded: bool) -> Directive:
        return self.directives.pop() if self.directives else Directive.CONTINUE

    def is_straggler(self, node: SimulatedNode) -> bool:
        return False


@dataclass
class FixedCompute:
    duration: float

    def seconds(self, node_id: str, steps: LocalSteps, now: float) -> float:
        return self.duration

    def step_times(self, node_id: str) -> StepTimes | None:
        return None


def run_virtually(script: Script, total_bytes: int) -> None:
    time = VirtualTime()
    path = Path(Uniform(0.01, 0.01), 8.0, Loss(0.0))  # 1 MB/s
    connection = SimulatedConnection(time, Link("n1", Profile("test", up=path, down=path), seed=1))
    coordinator = ScriptedCoordinator(time, list(script.failures), script.breaks_push)
    config = SystemConfig(node=NodeConfig(grace_seconds=script.grace_seconds))
    node = SimulatedNode(
        "n1",
        connection,
        coordinator,
        time,
        FixedCompute(1000.0 if script.trains_for_long else 1.0 if script.while_training else 0.1),
        seed=0,
        payload_bytes=lambda codec, fragments: total_bytes,
        config=config,
        info={},
    )
    node.start()
    when(time, lambda: node.state is State.TRAINING and bool(script.while_training), lambda: disturb(script, node))
    if script.breaks_push:
        when(time, lambda: node.state is State.PUSHING and arrived(node) >= 2 * MIB, lambda: drop(node))
    time.run(until=300.0)
    assert not node.running


def when(time: VirtualTime, condition: Callable[[], bool], act: Callable[[], None]) -> None:
    """Act once, as soon as the condition holds, for a minute."""
    if condition():
        act()
    elif time.now < 60.0:
        time.at(time.now + 0.05, when, time, condition, act)


def disturb(script: Script, node: SimulatedNode) -> None:
    if script.while_training == "stop":
        node.stop("SIGTERM")
        return
    api: Any = node._api
    api.is_done = True
    api.directives.append(Directive.ABANDON_WORK)
    node.heartbeats.watch()


def arrived(node: SimulatedNode) -> int:
    return node.connection.work.arrived_bytes if node.connection.work is not None else 0


def drop(node: SimulatedNode) -> None:
    assert node.connection.work is not None
    node.connection.work.fail(reconnect=True)


# ---------------------------------------------------------------- the contract

JOIN = [
    "Started: Register",
    "Registered: Prepare",
    "Prepared(True): Register",
    "Registered: Prepare",
    "Prepared(False): Pull",
]
WORK = ["WorkAnnounced: nothing", "WorkReceived: Train"]
TRAINED = ["Trained: Push(0)"]
END = ["RunFinished(done): Leave(done)", "Left: Exit"]
STOPPED = ["Left: Exit"]
SCRIPTS = {
    "nothing goes wrong": (Script(), [*JOIN, *WORK, *TRAINED, "Pushed: Pull", *END]),
    "a broken push continues with what is missing": (
        Script(breaks_push=True),
        [
            *(*JOIN, *WORK, *TRAINED),
            "Failed(Unavailable): BackOff(transient, 1)",
            "BackoffExpired: AskProgress",
            f"ProgressKnown(False, {MIB}): Push({MIB})",
            "Pushed: Pull",
            *END,
        ],
    ),
    "stale work leads to a backoff and a pull": (
        Script(failures=[("PushUpdate", StaleWork)]),
        [
            *(*JOIN, *WORK, *TRAINED),
            "Failed(StaleWork): BackOff(stale, 1)",
            "BackoffExpired: Pull",
            *(*WORK, *TRAINED, "Pushed: Pull", *END),
        ],
    ),
    "a node that is not known backs off and registers": (
        Script(failures=[("PullWork", StaleWork)]),
        [
            *JOIN,
            "Failed(StaleWork): BackOff(unknown_node, 1)",
            "BackoffExpired: Register",
            "Registered: Prepare",
            "Prepared(False): Pull",
            *(*WORK, *TRAINED, "Pushed: Pull", *END),
        ],
    ),
    "failures in a row count until the update is pushed": (
        Script(failures=[("PushUpdate", Unavailable), ("PushUpdate", Unavailable)]),
        [
            *(*JOIN, *WORK, *TRAINED),
            "Failed(Unavailable): BackOff(transient, 1)",
            "BackoffExpired: AskProgress",
            "ProgressKnown(False, 0): Push(0)",
            "Failed(Unavailable): BackOff(transient, 2)",
            "BackoffExpired: AskProgress",
            "ProgressKnown(False, 0): Push(0)",
            "Pushed: Pull",
            *END,
        ],
    ),
    "an update that cannot be used is returned": (
        Script(failures=[("PushUpdate", NonFiniteUpdate), ("ReturnWork", Unavailable)]),
        [
            *(*JOIN, *WORK, *TRAINED),
            "Failed(NonFiniteUpdate): Return(NonFiniteUpdate)",
            "Returned: BackOff(bad_work, 1)",
            "BackoffExpired: Pull",
            *(*WORK, *TRAINED, "Pushed: Pull", *END),
        ],
    ),
    "abandoned work makes room for the next": (
        Script(while_training="abandon", trains_for_long=True),
        [*JOIN, *WORK, "AbandonRequested: Pull", *END],
    ),
    "a node that stops finishes its work": (
        Script(while_training="stop"),
        [*JOIN, *WORK, "StopRequested: StartGrace", *TRAINED, "Pushed: Leave(SIGTERM)", *STOPPED],
    ),
    "a node that stops returns what takes too long": (
        Script(while_training="stop", trains_for_long=True, grace_seconds=0.1),
        [
            *(*JOIN, *WORK, "StopRequested: StartGrace", "GraceExpired: Return(shutting_down)"),
            *("Returned: Leave(SIGTERM)", *STOPPED),
        ],
    ),
    "a coordinator that is away when a node leaves is not waited for": (
        Script(failures=[("Leave", Unavailable)]),
        [*JOIN, *WORK, *TRAINED, "Pushed: Pull", END[0]],
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_real_time_follows_the_script(name: str, trace: list[str]) -> None:
    script, expected = SCRIPTS[name]
    await run_for_real(script)
    assert trace[: len(expected)] == expected


@pytest.mark.parametrize("name", SCRIPTS)
def test_virtual_time_follows_the_script(name: str, trace: list[str]) -> None:
    script, expected = SCRIPTS[name]
    run_virtually(script, total_bytes=sum(p.numel() for p in TASK.model().parameters()) * 4)
    assert trace[: len(expected)] == expected
