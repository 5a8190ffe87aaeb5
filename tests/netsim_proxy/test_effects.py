"""The relay as a function: bytes and time in, effects and later calls out."""

import math
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from hypergpu.netsim_proxy.io.transports import Transports
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.outcomes import DIRECTIONS, DOWN, UP, Direction
from hypergpu.netsim_proxy.link.profiles import Path, Profile
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.agenda import Agenda
from hypergpu.netsim_proxy.relay.effects import (
    Close,
    Closed,
    Effect,
    EndWriting,
    Pause,
    ReportInvalidHttp2,
    Resume,
    Write,
)
from hypergpu.netsim_proxy.relay.header_blocks import NO_TABLE, literal
from tests.netsim_proxy.virtual import Relayed, Wire

SLOW = Path(Uniform(0.5, 0.5), math.inf)


def request(stream: int) -> bytes:
    return http2.header_frames(stream, NO_TABLE + literal(b"x-node-id", b"node_1"), True, 16_384)


@pytest.fixture
def relayed() -> Relayed:
    """A connection on a link of half a second, whose peers have exchanged SETTINGS."""
    relayed = Relayed(Profile("slow", SLOW, SLOW))
    relayed.up(http2.settings())
    relayed.down(http2.settings())
    relayed.run()
    relayed.upstream.take()
    return relayed


def test_a_direction_is_an_index_of_pairs_and_has_an_opposite() -> None:
    assert [direction.ordinal for direction in DIRECTIONS] == [0, 1]
    assert (UP.opposite, DOWN.opposite) == (DOWN, UP)
    assert [*Direction] == ["up", "down"]


def test_what_is_read_becomes_a_write_when_the_link_says(relayed: Relayed) -> None:
    pair, agenda = relayed.pair, relayed.pacer.agenda
    assert pair.handle(10.0, UP, request(1)) is False
    assert agenda.take_effects() == []
    assert agenda.next_at == 10.5
    agenda.run_next(10.5)
    assert agenda.take_effects() == [Write(1, UP, request(1))]
    assert agenda.next_at == math.inf


def test_a_burst_is_taken_in_a_few_runs_at_a_time_and_each_with_the_time_that_it_is_then(relayed: Relayed) -> None:
    pair, agenda = relayed.pair, relayed.pacer.agenda
    streams = range(1, 31, 2)
    left = pair.handle(1.0, UP, b"".join(map(request, streams)))
    seen = [pair.last_seen_id]
    while left:
        left = pair.handle(1.0 + len(seen) / 4, UP)
        seen.append(pair.last_seen_id)
    assert seen == [9, 17, 25, 29]  # four requests have been offered, and the next one has been seen
    due = []
    while len(agenda):
        due.append(agenda.next_at)
        agenda.run_next(agenda.next_at)
    assert due == [1.5] * 4 + [1.75] * 4 + [2.0] * 4 + [2.25] * 3
    assert [effect.data for effect in agenda.take_effects() if isinstance(effect, Write)] == [*map(request, streams)]


def test_what_breaks_http2_is_reported_and_ends_both_connections(relayed: Relayed) -> None:
    relayed.pair.handle(1.0, UP, http2.frame(http2.DATA, 0, 0, b"x"))
    reason = "DATA on stream 0, which is not open"
    goaway = http2.goaway(0, http2.PROTOCOL_ERROR, f"netsim: {reason}")
    assert relayed.pacer.agenda.take_effects() == [
        ReportInvalidHttp2(1, UP, reason),
        Write(1, DOWN, goaway),
        Close(1, UP, reset=False),
        Close(1, DOWN, reset=False),
        Closed(1),
    ]
    assert relayed.pair.handle(1.0, UP, request(1)) is False
    assert relayed.pacer.agenda.take_effects() == []


def test_reading_pauses_for_the_first_reason_and_resumes_after_the_last(relayed: Relayed) -> None:
    reader, agenda = relayed.pair.readers[1], relayed.pacer.agenda
    reader.hold("a")
    reader.hold("b")
    reader.release("a")
    reader.release("a")
    assert agenda.take_effects() == [Pause(1, DOWN)]
    reader.release("b")
    assert agenda.take_effects() == [Resume(1, DOWN)]


def test_later_calls_come_in_order_of_time_and_then_of_asking_and_those_that_never_come_are_none() -> None:
    agenda, done = Agenda(), []
    for due, name in ((2.0, "last"), (1.0, "first"), (1.0, "second"), (math.inf, "never")):
        agenda.at(due, lambda now, name: done.append((now, name)), name)
    assert (len(agenda), agenda.next_at) == (3, 1.0)
    for now in (1.5, 1.6, 2.0):
        agenda.run_next(now)
    assert done == [(1.5, "first"), (1.6, "second"), (2.0, "last")]
    agenda.at(3.0, done.append)
    agenda.clear()
    assert agenda.next_at == math.inf


class Ends:
    """The transports of one pair of connections."""

    def __init__(self) -> None:
        self.transports, self.client, self.upstream, self.closed = Transports(), Wire(), Wire(), 0
        self.transports.add(1, self.over)
        self.transports.attach(1, UP, cast("Any", self.client))
        self.transports.attach(1, DOWN, cast("Any", self.upstream))

    def over(self) -> None:
        self.closed += 1

    def do(self, *effects: Effect) -> None:
        self.transports.carry_out([*effects])


def written(wire: Wire) -> list[bytes]:
    return [data for _, data in wire.writes]


def test_effects_are_carried_out_on_the_connection_that_they_mean() -> None:
    ends = Ends()
    ends.do(Write(1, UP, b"up"), Write(1, DOWN, b"down"), Write(2, UP, b"another's"))
    assert (written(ends.upstream), written(ends.client)) == ([b"up"], [b"down"])
    ends.do(Pause(1, UP), Pause(1, DOWN), Resume(1, UP))
    assert (ends.client.is_read, ends.upstream.is_read) == (True, False)
    ends.do(EndWriting(1, DOWN), Close(1, DOWN, reset=True))
    assert (ends.client.was_shut, ends.upstream.was_shut) == (True, False)
    assert (ends.client.closed, ends.upstream.was_reset) == (False, True)
    ends.do(Close(1, UP, reset=False))
    assert (ends.client.closed, ends.client.was_reset, ends.closed) == (True, False, 0)


def test_nothing_is_done_to_a_connection_that_is_closing() -> None:
    ends = Ends()
    ends.upstream.closed = True
    ends.do(Write(1, UP, b"late"), EndWriting(1, UP), Pause(1, DOWN), Close(1, DOWN, reset=True))
    assert (written(ends.upstream), ends.upstream.was_shut, ends.upstream.is_read) == ([], False, True)
    assert not ends.upstream.was_reset


def test_a_connection_that_was_left_to_another_owner_is_let_be() -> None:
    ends = Ends()
    ends.transports.detach(1, UP)
    ends.do(Write(1, DOWN, b"late"), Close(1, UP, reset=True), Closed(1), Closed(1))
    assert (written(ends.client), ends.client.closed, ends.closed) == ([], False, 1)


@pytest.mark.parametrize(("direction", "peer"), [(UP, "client"), (DOWN, "upstream")])
def test_invalid_http2_is_logged(direction: Direction, peer: str) -> None:
    with capture_logs() as logs:
        Ends().do(ReportInvalidHttp2(1, direction, "odd"))
    (line,) = logs
    assert (line["log_level"], line["peer"], line["reason"]) == ("warning", peer, "odd")
