"""Bytes on their way on a link: counted until they are delivered or dropped, and no longer than their connection."""

from typing import Any

import pytest

from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import DOWN, UP, LossModel
from hypergpu.netsim_proxy.link.profiles import Path, Profile
from hypergpu.netsim_proxy.relay.effects import Close, EndWriting, Pause
from hypergpu.netsim_proxy.relay.paced_link import PacedLink
from hypergpu.netsim_proxy.relay.raw_connection import RawConnectionPair
from tests.netsim_proxy.virtual import VirtualPacer

LATENCY_SECONDS = 0.125


class OneConnection:
    """A connection that is passed through unchanged on a link of 125 ms each way."""

    def __init__(self, loss_model: LossModel = LossModel.RPC) -> None:
        path = Path(Uniform(LATENCY_SECONDS, LATENCY_SECONDS))
        self.pacer = VirtualPacer()
        link = Link("node", Profile("fixed", path, path), 1, loss_model=loss_model)
        self.paced = PacedLink(0.0, link, self.pacer.agenda)
        self.pair = RawConnectionPair(0.0, self.paced, self.pacer.agenda, 1)
        self.pair.begin(0.0, b"", at_end=False)
        self.effects: list[Any] = []

    def cut(self) -> None:
        """Let nothing pass the link."""
        self.paced.link.apply(NetworkEvent("partition", target_node="node"), self.pacer.time)
        self.paced.changed(self.pacer.time)

    def mend(self) -> None:
        """Let everything pass again."""
        self.paced.link.clear(self.pacer.time)
        self.paced.changed(self.pacer.time)

    def run(self, until: float) -> None:
        """Let everything arrive that is due by then, and note what the driver was told to do."""
        agenda = self.pacer.agenda
        while agenda.next_at <= until:
            self.pacer.time = agenda.next_at
            agenda.run_next(self.pacer.time)
        self.pacer.time = until
        self.effects += agenda.take_effects()


@pytest.fixture(params=LossModel)
def connection(request: Any) -> OneConnection:
    return OneConnection(request.param)


def test_the_end_of_a_connection_is_held_longer_than_its_last_bytes(connection: OneConnection) -> None:
    connection.pair.handle(0.0, UP, b"the last bytes")
    connection.cut()
    connection.pair.end(0.0, UP)
    assert connection.paced.in_flight == [14, 0]
    connection.run(until=1.0)
    assert connection.paced.in_flight == [0, 0], "the last bytes were sent before the link was cut"
    assert EndWriting(1, UP) not in connection.effects
    connection.mend()
    connection.run(until=2.0)
    assert EndWriting(1, UP) in connection.effects


def test_the_end_of_a_connection_without_bytes_is_held_and_passes(connection: OneConnection) -> None:
    connection.cut()
    connection.pair.end(0.0, DOWN)
    connection.mend()
    connection.run(until=1.0)
    assert connection.effects[-1] == EndWriting(1, DOWN)
    assert connection.paced.in_flight == [0, 0]


def test_a_reader_that_waits_for_room_resumes_after_an_end_was_held(connection: OneConnection) -> None:
    connection.cut()
    connection.pair.handle(0.0, UP, bytes(8 << 20))
    connection.pair.end(0.0, UP)
    connection.run(until=1.0)
    assert connection.effects == [Pause(1, UP)]
    connection.mend()
    connection.run(until=11.0)
    assert connection.paced.in_flight == [0, 0]
    assert EndWriting(1, UP) in connection.effects


def test_a_connection_that_closes_takes_its_held_end_with_it(connection: OneConnection) -> None:
    connection.pair.handle(0.0, UP, b"bytes")
    connection.cut()
    connection.pair.end(0.0, UP)
    connection.run(until=1.0)
    connection.pair.close(1.0)
    connection.mend()
    connection.run(until=2.0)
    assert connection.paced.in_flight == [0, 0]
    assert connection.effects[-3:-1] == [Close(1, UP, reset=False), Close(1, DOWN, reset=False)]


def test_bytes_of_a_closed_connection_count_until_they_would_have_arrived(connection: OneConnection) -> None:
    connection.pair.handle(0.0, UP, b"on their way")
    connection.pair.close(0.0)
    assert connection.paced.in_flight == [12, 0]
    connection.run(until=1.0)
    assert connection.paced.in_flight == [0, 0]


@pytest.mark.parametrize("held_bytes", [0, 50], ids=["first", "behind others"])
def test_a_link_holds_no_piece_of_a_closed_connection(connection: OneConnection, held_bytes: int) -> None:
    verdicts: list[float] = []
    other = RawConnectionPair(0.0, connection.paced, connection.pacer.agenda, 2)
    other.begin(0.0, b"", at_end=False)
    connection.cut()
    other.handle(0.0, UP, bytes(held_bytes))
    connection.pair.close(0.0)
    reader, rpc = connection.pair.readers[0], connection.pair.link_rpc
    connection.paced.offer(0.0, reader, 100, rpc, False, lambda now, _: verdicts.append(now))
    assert connection.paced.in_flight == [held_bytes, 0]
    connection.mend()
    connection.run(until=1.0)
    assert verdicts == []
    assert connection.paced.in_flight == [0, 0]
