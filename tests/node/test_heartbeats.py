"""The round trip that a heartbeat reports, and whether it waited behind the node's own transfer."""

from types import SimpleNamespace
from typing import Any

import pytest

from hypergpu.common.errors import Unavailable
from hypergpu.node.core.metrics_collector import MetricsCollector
from hypergpu.node.core.states import State
from hypergpu.node.heartbeats import HeartbeatLoop
from hypergpu.protos import coordinator_pb2 as pb


class Client:
    """Answers heartbeats; while one is on its way, the node comes into the next of `states`."""

    node_id = "n1"

    def __init__(self, life: Any) -> None:
        self.life = life
        self.requests: list[pb.HeartbeatRequest] = []
        self.states: list[State] = []
        self.fails = False

    async def heartbeat(self, request: pb.HeartbeatRequest, *, timeout_seconds: float) -> pb.HeartbeatReply:
        assert timeout_seconds > 0
        self.requests.append(request)
        if self.states:
            self.life.state = self.states.pop(0)
        if self.fails:
            raise Unavailable("as the test wants it")
        return pb.HeartbeatReply(directive=pb.HeartbeatReply.CONTINUE)


@pytest.fixture
def loop() -> tuple[Any, Client]:
    life = SimpleNamespace(state=State.IDLE, work=None)
    client = Client(life)
    subject: Any = HeartbeatLoop(client, MetricsCollector("n1"), life, lambda event: None)  # type: ignore[arg-type]
    return subject, client


@pytest.mark.parametrize(
    ("before", "after", "loaded"),
    [
        (State.IDLE, State.IDLE, False),
        (State.TRAINING, State.TRAINING, False),
        (State.IDLE, State.PULLING, True),
        (State.PULLING, State.TRAINING, True),
        (State.TRAINING, State.PUSHING, True),
        (State.PUSHING, State.IDLE, True),
    ],
)
async def test_a_transfer_at_the_beginning_or_the_end_of_a_heartbeat_loads_it(
    loop: tuple[Any, Client], before: State, after: State, loaded: bool
) -> None:
    subject, client = loop
    client.life.state, client.states = before, [after]
    await subject._send()
    client.life.state = State.IDLE
    await subject._send()
    await subject._send()
    assert [request.loaded for request in client.requests] == [False, loaded, False]
    assert [request.rtt_ms > 0 for request in client.requests] == [False, True, True]


async def test_a_heartbeat_that_failed_leaves_no_round_trip(loop: tuple[Any, Client]) -> None:
    subject, client = loop
    await subject._send()
    client.fails = True
    await subject._send()
    client.fails = False
    await subject._send()
    assert [request.rtt_ms > 0 for request in client.requests] == [False, True, False]
