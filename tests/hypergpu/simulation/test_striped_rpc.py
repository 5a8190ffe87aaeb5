"""Transfers over several connections in virtual time: their duration, breaks, and what is sent again."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.connections import MAX_CONNECTIONS, MOST_FAILURES
from hypergpu.common.tensors import STRIPE_BYTES
from hypergpu.common.transfer_meter import Transfer
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import Deliver, Direction, LossModel
from hypergpu.netsim_proxy.link.profiles import Loss, Path, Profile, find_profile
from hypergpu.netsim_proxy.link.transfer import transfer_times
from hypergpu.simulation import message_sizes
from hypergpu.simulation.rpc import SILENCE_SECONDS, ConnectionNumbers, SimulatedConnection, SimulatedRpc
from hypergpu.simulation.striped_rpc import StripedRpc
from hypergpu.simulation.virtual_time import VirtualTime

UP, DOWN = Direction.UP, Direction.DOWN
ONE_WAY = 0.1


def line(
    time: VirtualTime, *, mbit: float = 80.0, loss: float = 0.0, model: LossModel = LossModel.RPC
) -> SimulatedConnection:
    path = Path(Uniform(ONE_WAY, ONE_WAY), mbit, Loss(loss), 100_000)
    return SimulatedConnection(time, Link("n", Profile("test", up=path, down=path), seed=1, loss_model=model))


@dataclass
class Transferred:
    """One transfer, and what came of it."""

    time: VirtualTime
    connection: SimulatedConnection
    arrived_at: list[float] = field(default_factory=list)
    failed_at: list[float] = field(default_factory=list)
    measured: list[Transfer] = field(default_factory=list)
    rpc: StripedRpc = field(init=False)

    def begin(self, direction: Direction, nbytes: int, connections: int, header_bytes: int = 700) -> "Transferred":
        self.connection.uploaded = self.measured.append
        call = self.connection.call(lambda _: self.failed_at.append(self.time.now))
        self.rpc = StripedRpc(call, direction, nbytes, header_bytes)
        self.rpc.share(connections, self._arrived)
        return self

    def _arrived(self, rpc: SimulatedRpc) -> None:
        self.arrived_at.append(self.time.now)
        rpc.close()


def travelling(nbytes: int, headers: int) -> int:
    """Return the bytes of a transfer with framing."""
    chunks, rest = divmod(nbytes, STRIPE_BYTES)
    return (
        chunks * message_sizes.chunks_bytes(STRIPE_BYTES) + (message_sizes.chunks_bytes(rest) if rest else 0) + headers
    )


def test_an_upload_takes_the_line_as_long_as_its_bytes_do() -> None:
    time = VirtualTime()
    done = Transferred(time, line(time)).begin(UP, 4_000_000, 4)
    time.run()
    assert done.arrived_at == [pytest.approx(travelling(4_000_000, 4 * 700) / 1e7 + ONE_WAY)]
    assert done.connection.link.counters(UP).bytes == travelling(4_000_000, 4 * 700)
    assert done.connection.messages == 4 + 62


def test_the_other_connections_of_a_download_join_after_a_round_trip() -> None:
    time = VirtualTime()
    done = Transferred(time, line(time, mbit=800.0)).begin(DOWN, 40_000_000, 2, 600)
    link, carried = done.connection.link, []
    time.run(until=2 * ONE_WAY - 0.001)
    carried.append(link.counters(UP).bytes)
    first, second = done.rpc._streams
    assert first.stripe.chunk_bytes and not second.stripe.chunk_bytes, "it has the order only now"
    time.run()
    assert carried == [message_sizes.REQUEST_BYTES]
    assert link.counters(DOWN).bytes == travelling(40_000_000, 600)


def test_a_measured_rate_is_that_of_all_connections_together() -> None:
    time = VirtualTime()
    done = Transferred(time, line(time)).begin(UP, 8_000_000, 8)
    time.run()
    (measured,) = done.measured
    assert measured.nbytes / measured.seconds == pytest.approx(1e7, rel=0.05)


def test_small_calls_never_wait_behind_a_shared_transfer() -> None:
    time = VirtualTime()
    path = Path(Uniform(ONE_WAY, ONE_WAY), 50.0, Loss(0.01), 1_000_000)
    profile = Profile("lossy", up=path, down=path)
    tested = SimulatedConnection(time, Link("n", profile, seed=1, loss_model=LossModel.TRANSPORT))
    done, waits = Transferred(time, tested).begin(UP, 4_000_000, 4), []

    def beat() -> None:
        verdict = tested.link.offer(time.now, UP, 900, tested.link.begin(time.now, tested.numbers.control), end=True)
        assert isinstance(verdict, Deliver)
        waits.append(verdict.at - time.now)

    for second in range(1, 4):
        time.at(float(second), beat)
    time.run()
    assert done.arrived_at[0] > 3.9
    assert max(waits) < 2 * ONE_WAY


def test_chunks_of_a_broken_connection_are_sent_again_and_no_others() -> None:
    time = VirtualTime()
    done = Transferred(time, line(time)).begin(UP, 4_000_000, 4)
    time.at(0.15, done.connection._drop, (done.rpc._streams[2].number,))
    time.run()
    assert len(done.arrived_at) == 1 and not done.failed_at
    again = done.connection.link.counters(UP).bytes - travelling(4_000_000, 5 * 700) - message_sizes.REQUEST_BYTES
    assert 0 < again <= 4 * message_sizes.chunks_bytes(STRIPE_BYTES)


def test_lost_chunks_of_a_download_are_fetched_at_the_end() -> None:
    time = VirtualTime()
    done = Transferred(time, line(time)).begin(DOWN, 4_000_000, 4, 600)
    time.at(0.35, done.connection._drop, (done.rpc._streams[0].number,))
    time.run()
    assert len(done.arrived_at) == 1 and not done.failed_at
    requests = done.connection.link.counters(UP).bytes / message_sizes.REQUEST_BYTES
    assert requests > 3, "three joined, and some chunks were asked for again"
    assert done.arrived_at[0] > travelling(4_000_000, 0) / 1e7 + 3 * ONE_WAY


def test_a_transfer_fails_when_all_connections_have_broken_too_often() -> None:
    time = VirtualTime()
    tested = line(time)
    done = Transferred(time, tested).begin(UP, 40_000_000, 3)
    event = NetworkEvent("disconnect", "n", mode="reset", duration_seconds=60.0)

    def cut() -> None:
        tested.link.apply(event, time.now)
        tested.happened(event)

    time.at(1.0, cut)
    time.run(until=30.0)
    assert done.arrived_at == [] and done.failed_at == [pytest.approx(1.0 + 0.2 + 0.4)]
    assert 0 < done.rpc.arrived_payload_bytes(0) <= 1e7
    assert done.rpc.arrived_payload_bytes(0) % STRIPE_BYTES == 0
    assert all(stream.failures == MOST_FAILURES for stream in done.rpc._streams)


def test_a_transfer_goes_on_after_a_silence_and_after_forgotten_connections() -> None:
    time = VirtualTime()
    tested = line(time)
    done = Transferred(time, tested).begin(UP, 20_000_000, 4)
    silent, forgotten = (
        NetworkEvent("disconnect", "n", mode="black_hole", duration_seconds=5.0),
        NetworkEvent("disconnect", "n", mode="half_open"),
    )
    for at, event in ((0.5, silent), (6.0, forgotten)):
        time.at(at, tested.link.apply, event, at)
        time.at(at, tested.happened, event)
    time.run()
    assert not done.failed_at
    assert 6.0 + SILENCE_SECONDS < done.arrived_at[0] < 6.0 + SILENCE_SECONDS + 3.0


def test_a_process_that_ends_closes_all_connections() -> None:
    time = VirtualTime()
    tested = line(time)
    done = Transferred(time, tested).begin(UP, 4_000_000, 4)
    time.run(until=0.2)
    done.rpc.close()
    tested.numbers.close()
    time.run()
    assert done.arrived_at == done.failed_at == []
    assert len(tested.numbers.all) == 2


@given(
    connections=st.integers(2, MAX_CONNECTIONS),
    nbytes=st.integers(STRIPE_BYTES + 1, 24 * STRIPE_BYTES),
    breaks=st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(0, 20)), max_size=12),
    direction=st.sampled_from([UP, DOWN]),
    loss=st.sampled_from([0.0, 0.2]),
)
def test_every_byte_arrives_once_or_the_transfer_fails(
    connections: int, nbytes: int, breaks: list[tuple[float, int]], direction: Direction, loss: float
) -> None:
    time = VirtualTime()
    tested = line(time, loss=loss)
    done = Transferred(time, tested).begin(direction, nbytes, connections)

    def drop(which: int) -> None:
        tested._drop((tested.numbers.all[which % len(tested.numbers.all)],))

    call: Callable[[int], None] = drop
    for at, which in breaks:
        time.at(at, call, which)
    time.run()
    assert len(done.arrived_at) + len(done.failed_at) == 1
    rpc = done.rpc
    assert (rpc.arrived_payload_bytes(0) == nbytes) == bool(done.arrived_at)
    if done.arrived_at:
        assert rpc._message.waiting_bytes == 0
        assert tested.link.counters(direction).bytes >= travelling(nbytes, 0)
    elif direction is UP:
        assert rpc.arrived_payload_bytes(0) + rpc._message.waiting_bytes <= nbytes


def test_an_upload_takes_as_long_as_the_prediction_for_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    # The numbers of connections are keys of the draws, and a prediction counts neither headers nor framing.
    monkeypatch.setattr(ConnectionNumbers, "share", lambda _, count: [*range(count)])
    monkeypatch.setattr(message_sizes, "chunks_bytes", int)
    profile, nbytes, connections = find_profile("average"), 8_000_000, 8
    predicted = transfer_times(profile, nbytes, samples=1, connections=connections)
    time = VirtualTime()
    tested = SimulatedConnection(time, Link("transfer 0", profile, 0, loss_model=LossModel.TRANSPORT))
    done = Transferred(time, tested).begin(UP, nbytes, connections, header_bytes=0)
    time.run()
    assert done.arrived_at == [pytest.approx(predicted["cold"].mean_seconds, rel=1e-9)]
