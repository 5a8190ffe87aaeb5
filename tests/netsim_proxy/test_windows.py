"""What a slow reader can be sent ahead, and that a link stays busy: gRPC measures the path, not our queues."""

import pytest
from hpack import Encoder

from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.profiles import Path, Profile
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.paced_link import PacedLink
from tests.netsim_proxy.virtual import Relayed, Wire

MIB = 1 << 20
PING = http2.frame(http2.PING, 0, 0, b"a probe.")


def link(rtt_ms: float, mbit: float) -> Profile:
    path = Path(Uniform(rtt_ms / 2000, rtt_ms / 2000), mbit)
    return Profile("fixed", path, path)


class Both(Relayed):
    """A relay with a request on it, between a client and an upstream that the test plays."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self.up(http2.settings())
        block = Encoder().encode([(":method", "POST"), (":path", "/a/b"), ("x-node-id", "node_1")])
        self.up(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, block))
        self.run()
        self.down(http2.settings())

    @property
    def paced(self) -> PacedLink:
        assert self.pair.paced is not None
        return self.pair.paced

    def turn(self, profile: Profile) -> None:
        """The link becomes another."""
        self.paced.link.set_profile(profile, self.pacer.time)
        self.pacer.run(self.paced.changed)

    def download(self, nbytes: int, piece: int = 16_000) -> int:
        """The upstream sends that much on the stream, or what is read of it."""
        sent = 0
        while sent < nbytes and self.upstream.is_read:
            self.down(http2.frame(http2.DATA, 0, 1, bytes(piece)))
            sent += piece
        return sent


def granted(wire: Wire) -> int:
    """By how much window updates for the connection have opened it."""
    frames = wire.frames()
    return sum(
        http2.increment_of(payload) for kind, _, stream, payload in frames if (kind, stream) == (http2.WINDOW_UPDATE, 0)
    )


def settings(wire: Wire) -> dict[int, int]:
    """What was written as settings, the last of each."""
    found: dict[int, int] = {}
    for kind, _, _, payload in wire.frames():
        if kind == http2.SETTINGS:
            found.update(http2.read_settings(payload))
    return found


def test_a_probe_turns_round_at_the_end_of_the_link_before_what_waits_for_the_bandwidth() -> None:
    both = Both(link(20, 80))
    both.download(MIB)
    both.up(PING)
    both.run()
    kinds = both.client.kinds()
    assert (http2.PING, 0) not in both.upstream.kinds()
    assert kinds.count((http2.PING, http2.ACK)) == 1
    # The path holds 200 kB in a round trip, and 100 ms of the queue are still to come behind them.
    before = kinds.index((http2.PING, http2.ACK))
    assert 0 < kinds[before:].count((http2.DATA, 0)) * 16_000 < MIB
    assert kinds[:before].count((http2.DATA, 0)) * 16_000 <= 300_000


def test_a_probe_turns_round_on_a_link_that_is_too_full_to_be_read() -> None:
    """Behind all that the upstream's kernel holds, its answer would come when the client has given the server up."""
    both = Both(link(100, 1))
    both.download(MIB)
    assert not both.upstream.is_read
    both.pacer.time += 0.2
    both.up(PING)
    both.run(until=both.pacer.time + 0.2)
    assert (http2.PING, http2.ACK) in both.client.kinds()


@pytest.mark.parametrize("profile", [link(20, 80), link(0, float("inf"))], ids=["delayed", "transparent"])
def test_a_ping_reaches_the_upstream_where_that_has_sent_nothing_lately(profile: Profile) -> None:
    both = Both(profile)
    both.pacer.time += 1.0
    both.up(PING)
    both.run()
    assert (http2.PING, 0) in both.upstream.kinds()
    assert (http2.PING, http2.ACK) not in both.client.kinds()
    both.down(http2.frame(http2.PING, http2.ACK, 0, b"a probe."))
    both.run()
    assert both.client.kinds().count((http2.PING, http2.ACK)) == 1


def test_a_ping_of_a_server_that_goes_is_answered_by_the_client() -> None:
    """Its answer tells that all requests that there will be have been seen."""
    both = Both(link(20, 80))
    both.down(http2.goaway((1 << 31) - 1, http2.NO_ERROR))
    both.down(PING)
    both.run()
    assert (http2.PING, 0) in both.client.kinds()
    assert (http2.PING, http2.ACK) not in both.upstream.kinds()


def test_a_transparent_link_answers_a_probe_at_once() -> None:
    both = Both(link(0, float("inf")))
    both.download(100_000)
    both.up(PING)
    assert both.client.kinds()[-1] == (http2.PING, http2.ACK)
    assert (http2.PING, 0) not in both.upstream.kinds()


@pytest.mark.parametrize(
    ("allowed", "passed"), [(65_535, 65_535), (8 * MIB, 8 * MIB), (16 * MIB, 12 * MIB), (64 * MIB, 36 * MIB)]
)
def test_the_writer_hears_of_little_more_than_half_of_a_wide_window(allowed: int, passed: int) -> None:
    both = Both(link(1, 1000))
    both.up(http2.settings((http2.INITIAL_WINDOW_SIZE, allowed), (http2.MAX_FRAME_SIZE, 4 * MIB)))
    both.run()
    assert settings(both.upstream)[http2.INITIAL_WINDOW_SIZE] == passed > allowed // 2
    assert settings(both.upstream)[http2.MAX_FRAME_SIZE] == 128 << 10


@pytest.mark.parametrize(("mbit", "ahead"), [(1, 65_535), (80, 1_010_000), (float("inf"), 5 * MIB)])
def test_a_writer_may_send_no_more_ahead_than_its_link_has_use_for(mbit: float, ahead: int) -> None:
    """What its kernel took would delay all that it says later, its keepalives too."""
    both = Both(link(0, mbit))
    both.up(http2.window_update(4 * MIB))
    left, sent = 65_535, 0
    for _ in range(100):
        both.run(until=both.pacer.time + 1)
        sent += min(left, 16_000)
        both.down(http2.frame(http2.DATA, 0, 1, bytes(min(left, 16_000))))
        left = 65_535 + granted(both.upstream) - sent
        assert left <= ahead
        assert left > 0 or sent >= 65_535 + 4 * MIB, "and it never starves"
    assert mbit > 1 or left <= 20_000, "of the first window, which is wider, nothing is left"
    both.run()
    assert both.client.size >= sent == 1_600_000


def test_a_writer_never_starves_however_its_frames_were_cut() -> None:
    """Frames that are passed on before their end is there, and have others wait behind them, count like all others."""
    both = Both(link(0, 1))
    both.up(http2.window_update(MIB))
    both.run()
    both.turn(link(0, float("inf")))
    data, sent = http2.frame(http2.DATA, 0, 1, bytes(16_000)), 0
    for _ in range(65):
        both.down(data[:5_000])
        both.up(PING)
        both.down(data[5_000:])
        sent += 16_000
    both.turn(link(0, 1))
    both.up(http2.window_update(MIB))
    for _ in range(70):
        both.run(until=both.pacer.time + 1)
        left = 65_535 + granted(both.upstream) - sent
        assert left > 0 or sent == 65_535 + 2 * MIB
        both.down(http2.frame(http2.DATA, 0, 1, bytes(min(left, 16_000))))
        sent += min(left, 16_000)
    assert sent > 2 * MIB


def test_a_long_fat_link_may_be_filled() -> None:
    both = Both(link(300, 1000))  # 37.5 MB in a round trip
    both.up(http2.settings((http2.INITIAL_WINDOW_SIZE, 128 * MIB)))
    both.run()
    assert settings(both.upstream)[http2.INITIAL_WINDOW_SIZE] >= 64 * MIB + 37_500_000


@pytest.mark.parametrize("profile", [link(20, 1000), link(300, 100), link(1, 200), link(100, 20)])
def test_a_link_is_never_idle_while_there_is_something_to_send(profile: Profile) -> None:
    """Reading goes on early enough, though it takes the event loop 3 ms to come to it."""
    both = Both(profile)
    most = 0

    def read(now: float) -> None:
        nonlocal most
        if both.upstream.is_read:
            both.download(MIB)
        most = max(most, sum(both.paced.in_flight))
        both.pacer.at(now + 0.003, read)

    read(0.0)
    both.run(until=0.6)
    before = both.client.size
    both.run(until=1.1)
    rate = (both.client.size - before) / 0.5
    in_path = profile.down.bytes_per_second * profile.down.latency.at(0.5)
    assert rate == pytest.approx(profile.down.bytes_per_second, rel=0.01)
    assert most <= in_path + MIB + (32 << 10)
