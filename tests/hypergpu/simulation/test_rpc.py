"""One RPC over one link in virtual time."""

import gc

import pytest

from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.events import NetworkEvent
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import Deliver, Direction, LossModel
from hypergpu.netsim_proxy.link.profiles import Loss, Path, Profile
from hypergpu.simulation.rpc import PIECE_BYTES, SILENCE_SECONDS, SimulatedConnection, SimulatedRpc
from hypergpu.simulation.virtual_time import VirtualTime


def line(time: VirtualTime, *, mbit: float = 8.0, loss: float = 0.0, one_way: float = 0.1) -> SimulatedConnection:
    path = Path(Uniform(one_way, one_way), mbit, Loss(loss))
    return SimulatedConnection(time, Link("n", Profile("test", up=path, down=path), seed=1))


def never(_: SimulatedRpc) -> None:
    pytest.fail("the RPC failed")


def test_a_message_arrives_after_its_transmission_and_the_latency() -> None:
    time, arrived = VirtualTime(), []
    call = line(time).call(never)
    call.send(Direction.UP, 100_000, 1, lambda _: arrived.append(time.now))  # 1 MB/s
    time.run()
    assert arrived == [pytest.approx(0.2)]


def test_a_long_message_takes_as_long_in_pieces_as_at_once() -> None:
    time, arrived = VirtualTime(), []
    nbytes = 4 * PIECE_BYTES
    line(time).call(never).send(Direction.DOWN, nbytes, 1, lambda _: arrived.append(time.now))
    time.run()
    assert arrived == [pytest.approx(nbytes / 1e6 + 0.1)]


def test_where_tcp_is_slow_heartbeats_do_not_wait_for_a_long_message() -> None:
    time, waits = VirtualTime(), []
    path = Path(Uniform(0.1, 0.1), 10.0, Loss(0.05))  # some 30 kB/s are left of 10 Mbit/s
    tested = SimulatedConnection(
        time, Link("n", Profile("lossy", up=path, down=path), seed=1, loss_model=LossModel.TRANSPORT)
    )

    def beat() -> None:
        link_rpc = tested.link.begin(time.now, tested.numbers.control)
        verdict = tested.link.offer(time.now, Direction.UP, 900, link_rpc, end=True)
        assert isinstance(verdict, Deliver)
        waits.append(verdict.at - time.now)

    tested.call(never).send(Direction.UP, 2 * PIECE_BYTES, 1, lambda _: time.stop())
    for second in range(1, 20):
        time.at(float(second), beat)
    time.run()
    assert time.now > 30
    assert max(waits) < 1, "one way of 0.1 s, and a timeout or two"


def test_an_event_in_mid_transfer_acts_on_the_rest() -> None:
    time, arrived = VirtualTime(), []
    tested = line(time)
    nbytes = 8 * PIECE_BYTES
    tested.call(never).send(Direction.UP, nbytes, 1, lambda _: arrived.append(time.now))
    event = NetworkEvent("bandwidth_collapse", "n", factor=0.5)
    time.at(1.0, tested.link.apply, event, 1.0)
    time.run()
    undisturbed = nbytes / 1e6 + 0.1
    assert undisturbed * 1.3 < arrived[0] < undisturbed * 2


def test_a_lost_rpc_fails_once_and_nothing_of_it_arrives() -> None:
    time, failed = VirtualTime(), []
    call = line(time, loss=1.0).call(lambda _: failed.append(time.now))

    def answer(_: object) -> None:
        call.send(Direction.DOWN, 100, 1, lambda _: pytest.fail())

    call.send(Direction.UP, 100, 1, answer)
    time.run()
    assert len(failed) == 1
    assert failed[0] >= 0.2


def test_what_a_black_hole_holds_arrives_when_it_is_over() -> None:
    time, arrived = VirtualTime(), []
    tested = line(time)
    event = NetworkEvent("disconnect", "n", mode="black_hole", duration_seconds=5.0)
    tested.link.apply(event, 0.0)
    tested.happened(event)
    tested.call(never).send(Direction.UP, 100, 1, lambda _: arrived.append(time.now))
    time.run()
    assert arrived == [pytest.approx(5.1, abs=0.01)]


def test_a_connection_on_which_nothing_passes_is_given_up() -> None:
    time, failed = VirtualTime(), []
    tested = line(time)
    tested.call(lambda _: failed.append(time.now)).send(Direction.UP, 100, 1, lambda _: None)
    time.run(until=1.0)
    event = NetworkEvent("partition", nodes=("n",))
    tested.link.apply(event, 1.0)
    tested.happened(event)
    time.run()
    assert failed == [1.0 + SILENCE_SECONDS]
    assert tested.numbers.first > 1


def test_a_reset_fails_the_rpc_at_once() -> None:
    time, failed = VirtualTime(), []
    tested = line(time)
    tested.call(lambda _: failed.append(time.now)).send(Direction.UP, 100, 1, lambda _: None)
    event = NetworkEvent("disconnect", "n", mode="reset")
    tested.link.apply(event, 0.0)
    tested.happened(event)
    assert failed == [0.0]


@pytest.mark.parametrize("nbytes", [100, 3 * PIECE_BYTES])
def test_an_rpc_leaves_no_cycles_behind(nbytes: int) -> None:
    time = VirtualTime()
    tested = line(time, loss=0.5)

    def send() -> None:
        call = tested.call(lambda _: None)
        call.send(Direction.UP, nbytes, 1, lambda _: None)

    gc.collect()
    gc.disable()
    try:
        for at in range(20):
            time.at(20.0 * at, send)
        time.run()
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_one_way_of_silence_ends_a_connection_as_silence_both_ways_does(direction: str) -> None:
    time, failed = VirtualTime(), []
    tested = line(time)
    call = tested.call(lambda _: failed.append(time.now))
    event = NetworkEvent("partition", "n", direction=direction)
    tested.link.apply(event, 0.0)
    tested.happened(event)
    call.send(Direction.UP, 1000, 1, lambda _: None)
    time.run()
    assert failed == [SILENCE_SECONDS] and tested.numbers.first > 1


@pytest.mark.parametrize("kind", ["limit_time", "timeout"])
def test_a_connection_ends_when_its_time_is_over_and_the_next_one_too(kind: str) -> None:
    time, failed = VirtualTime(), []
    tested = line(time)
    tested.call(lambda _: failed.append(time.now))
    event = NetworkEvent(kind, "n", close_after_seconds=3)
    tested.link.apply(event, 0.0)
    tested.happened(event)
    time.run()
    began = time.now
    tested.call(lambda _: failed.append(time.now))
    time.run()
    assert failed == [3.0, began + 3.0]


def test_a_connection_ends_when_its_bytes_are_spent() -> None:
    time, failed = VirtualTime(), []
    tested = line(time)
    tested.link.apply(NetworkEvent("limit_data", "n", limit_bytes=1000), 0.0)
    tested.call(lambda _: failed.append(time.now)).send(Direction.UP, 1001, 1, lambda _: pytest.fail())
    time.run()
    assert failed == [0.0] and tested.numbers.first > 1
