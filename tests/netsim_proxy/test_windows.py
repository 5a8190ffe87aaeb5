"""What a slow reader can be sent ahead, and that a link stays busy: gRPC measures the path, not our queues."""

from typing import Any, cast

import pytest
from hpack import Encoder

from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.profiles import Path, Profile
from hypergpu.netsim_proxy.relay import connection as relay
from hypergpu.netsim_proxy.relay import frame_reader as lane
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay import paced_link as port
from hypergpu.netsim_proxy.relay.connection import ConnectionPair
from hypergpu.netsim_proxy.relay.paced_link import DOWN, UP
from tests.netsim_proxy.agenda import Agenda

MIB = 1 << 20
PING = http2.frame(http2.PING, 0, 0, b"a probe.")


def link(rtt_ms: float, mbit: float) -> Profile:
    path = Path(Uniform(rtt_ms / 2000, rtt_ms / 2000), mbit)
    return Profile("fixed", path, path)


class Wire:
    """One of the two connections: what was written to it, and whether it is read from."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.is_read = True

    def write(self, data: bytes) -> None:
        self.size += len(data)
        self.parts.append(bytes(data))

    @property
    def written(self) -> bytes:
        return b"".join(self.parts)

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def is_closing(self) -> bool:
        return False

    def kinds(self) -> list[tuple[int, int]]:
        """Type and flags of the frames that were written."""
        data = self.written.removeprefix(http2.PREFACE)
        return [(kind, flags) for _, _, kind, flags, _ in http2.frames(data)]

    def granted(self) -> list[int]:
        """By how much each window update for the connection opened it."""
        data = self.written.removeprefix(http2.PREFACE)
        updates = (at for at, _, kind, _, stream in http2.frames(data) if (kind, stream) == (http2.WINDOW_UPDATE, 0))
        return [http2.increment_of(data[at + 9 : at + 13]) for at in updates]

    def settings(self) -> dict[int, int]:
        """What was written as settings, the last of each."""
        data = self.written.removeprefix(http2.PREFACE)
        found: dict[int, int] = {}
        for at, length, kind, _, _ in http2.frames(data):
            if kind == http2.SETTINGS:
                found.update(http2.read_settings(data[at + 9 : at + 9 + length]))
        return found


class Both:
    """A relay with a request on it, between a client and an upstream that the test plays."""

    def __init__(self, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pacer = cast("Any", Agenda())
        for module in (lane, port, relay):
            monkeypatch.setattr(module, "monotonic", lambda: self.pacer.now)
        self.client, self.upstream = Wire(), Wire()
        wires: Any = (self.client, self.upstream)
        self.relay = ConnectionPair(LinkRegistry(self.pacer, profile, seed=1), self.pacer, 1, lambda _: None)
        self.relay.attach(*wires)
        self.relay.received(UP, http2.settings())
        block = Encoder().encode([(":method", "POST"), (":path", "/a/b"), ("x-node-id", "node_1")])
        self.relay.received(UP, http2.frame(http2.HEADERS, http2.END_HEADERS, 1, block))
        self.pacer.run()
        self.relay.received(DOWN, http2.settings())

    def turn(self, profile: Profile) -> None:
        """The link becomes another."""
        assert self.relay.port is not None
        self.relay.port.link.set_profile(profile, self.pacer.now)
        self.relay.port.changed()

    def download(self, nbytes: int, piece: int = 16_000) -> int:
        """The upstream sends that much on the stream, or what is read of it."""
        sent = 0
        while sent < nbytes and self.upstream.is_read:
            self.relay.received(DOWN, http2.frame(http2.DATA, 0, 1, bytes(piece)))
            sent += piece
        return sent


def test_a_probe_turns_round_at_the_end_of_the_link_before_what_waits_for_the_bandwidth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = Both(link(20, 80), monkeypatch)
    both.download(MIB)
    both.relay.received(UP, PING)
    both.pacer.run()
    kinds = both.client.kinds()
    assert (http2.PING, 0) not in both.upstream.kinds()
    assert kinds.count((http2.PING, http2.ACK)) == 1
    # The path holds 200 kB in a round trip, and 100 ms of the queue are still to come behind them.
    before = kinds.index((http2.PING, http2.ACK))
    assert 0 < kinds[before:].count((http2.DATA, 0)) * 16_000 < MIB
    assert kinds[:before].count((http2.DATA, 0)) * 16_000 <= 300_000


def test_a_probe_turns_round_on_a_link_that_is_too_full_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind all that the upstream's kernel holds, its answer would come when the client has given the server up."""
    both = Both(link(100, 1), monkeypatch)
    both.download(MIB)
    assert not both.upstream.is_read
    both.pacer.now += 0.2
    both.relay.received(UP, PING)
    both.pacer.run(until=both.pacer.now + 0.2)
    assert (http2.PING, http2.ACK) in both.client.kinds()


@pytest.mark.parametrize("profile", [link(20, 80), link(0, float("inf"))], ids=["delayed", "transparent"])
def test_a_ping_reaches_the_upstream_where_that_has_sent_nothing_lately(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Both(profile, monkeypatch)
    both.pacer.now += 1.0
    both.relay.received(UP, PING)
    both.pacer.run()
    assert (http2.PING, 0) in both.upstream.kinds()
    assert (http2.PING, http2.ACK) not in both.client.kinds()
    both.relay.received(DOWN, http2.frame(http2.PING, http2.ACK, 0, b"a probe."))
    both.pacer.run()
    assert both.client.kinds().count((http2.PING, http2.ACK)) == 1


def test_a_ping_of_a_server_that_goes_is_answered_by_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer tells that all requests that there will be have been seen."""
    both = Both(link(20, 80), monkeypatch)
    both.relay.received(DOWN, http2.goaway((1 << 31) - 1, http2.NO_ERROR))
    both.relay.received(DOWN, PING)
    both.pacer.run()
    assert (http2.PING, 0) in both.client.kinds()
    assert (http2.PING, http2.ACK) not in both.upstream.kinds()


def test_a_transparent_link_answers_a_probe_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(link(0, float("inf")), monkeypatch)
    both.download(100_000)
    both.relay.received(UP, PING)
    assert both.client.kinds()[-1] == (http2.PING, http2.ACK)
    assert (http2.PING, 0) not in both.upstream.kinds()


@pytest.mark.parametrize(
    ("allowed", "passed"), [(65_535, 65_535), (8 * MIB, 8 * MIB), (16 * MIB, 12 * MIB), (64 * MIB, 36 * MIB)]
)
def test_the_writer_hears_of_little_more_than_half_of_a_wide_window(
    allowed: int, passed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Both(link(1, 1000), monkeypatch)
    both.relay.received(UP, http2.settings((http2.INITIAL_WINDOW_SIZE, allowed), (http2.MAX_FRAME_SIZE, 4 * MIB)))
    both.pacer.run()
    assert both.upstream.settings()[http2.INITIAL_WINDOW_SIZE] == passed > allowed // 2
    assert both.upstream.settings()[http2.MAX_FRAME_SIZE] == 128 << 10


@pytest.mark.parametrize(("mbit", "ahead"), [(1, 65_535), (80, 1_010_000), (float("inf"), 5 * MIB)])
def test_a_writer_may_send_no_more_ahead_than_its_link_has_use_for(
    mbit: float, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its kernel took would delay all that it says later, its keepalives too."""
    both = Both(link(0, mbit), monkeypatch)
    both.relay.received(UP, http2.window_update(4 * MIB))
    left, sent = 65_535, 0
    for _ in range(100):
        both.pacer.run(until=both.pacer.now + 1)
        sent += min(left, 16_000)
        both.relay.received(DOWN, http2.frame(http2.DATA, 0, 1, bytes(min(left, 16_000))))
        left = 65_535 + sum(both.upstream.granted()) - sent
        assert left <= ahead
        assert left > 0 or sent >= 65_535 + 4 * MIB, "and it never starves"
    assert mbit > 1 or left <= 20_000, "of the first window, which is wider, nothing is left"
    both.pacer.run()
    assert both.client.size >= sent == 1_600_000


def test_a_writer_never_starves_however_its_frames_were_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that are passed on before their end is there, and have others wait behind them, count like all others."""
    both = Both(link(0, 1), monkeypatch)
    both.relay.received(UP, http2.window_update(MIB))
    both.pacer.run()
    both.turn(link(0, float("inf")))
    data, sent = http2.frame(http2.DATA, 0, 1, bytes(16_000)), 0
    for _ in range(65):
        both.relay.received(DOWN, data[:5_000])
        both.relay.received(UP, PING)
        both.relay.received(DOWN, data[5_000:])
        sent += 16_000
    both.turn(link(0, 1))
    both.relay.received(UP, http2.window_update(MIB))
    for _ in range(70):
        both.pacer.run(until=both.pacer.now + 1)
        left = 65_535 + sum(both.upstream.granted()) - sent
        assert left > 0 or sent == 65_535 + 2 * MIB
        both.relay.received(DOWN, http2.frame(http2.DATA, 0, 1, bytes(min(left, 16_000))))
        sent += min(left, 16_000)
    assert sent > 2 * MIB


def test_a_long_fat_link_may_be_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Both(link(300, 1000), monkeypatch)  # 37.5 MB in a round trip
    both.relay.received(UP, http2.settings((http2.INITIAL_WINDOW_SIZE, 128 * MIB)))
    both.pacer.run()
    assert both.upstream.settings()[http2.INITIAL_WINDOW_SIZE] >= 64 * MIB + 37_500_000


@pytest.mark.parametrize("profile", [link(20, 1000), link(300, 100), link(1, 200), link(100, 20)])
def test_a_link_is_never_idle_while_there_is_something_to_send(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading goes on early enough, though it takes the event loop 3 ms to come to it."""
    both = Both(profile, monkeypatch)
    most = 0

    def read() -> None:
        nonlocal most
        if both.upstream.is_read:
            both.download(MIB)
        most = max(most, sum(both.relay.port.in_flight) if both.relay.port else 0)
        both.pacer.at(both.pacer.now + 0.003, read)

    read()
    both.pacer.run(until=0.6)
    before = both.client.size
    both.pacer.run(until=1.1)
    rate = (both.client.size - before) / 0.5
    in_path = profile.down.bytes_per_second * profile.down.latency.at(0.5)
    assert rate == pytest.approx(profile.down.bytes_per_second, rel=0.01)
    assert most <= in_path + MIB + (32 << 10)
