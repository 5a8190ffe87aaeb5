"""One RPC over one link in virtual time."""

import gc

import pytest

from hypergpu.simulation.calls import PIECE_BYTES, SILENCE_SECONDS, Line
from hypergpu.simulation.virtual_time import VirtualTime
from netsim_proxy.link.distributions import Uniform
from netsim_proxy.link.events import NetworkEvent
from netsim_proxy.link.link import Link
from netsim_proxy.link.outcomes import Direction
from netsim_proxy.link.profiles import Loss, Path, Profile


def line(time: VirtualTime, *, mbit: float = 8.0, loss: float = 0.0, one_way: float = 0.1) -> Line:
    path = Path(Uniform(one_way, one_way), mbit, Loss(loss))
    return Line(time, Link("n", Profile("test", up=path, down=path), seed=1))


def test_a_message_arrives_after_its_transmission_and_the_latency() -> None:
    time, arrived = VirtualTime(), []
    call = line(time).call(pytest.fail)
    call.send(Direction.UP, 100_000, 1, True, lambda _: arrived.append(time.now))  # 1 MB/s
    time.run()
    assert arrived == [pytest.approx(0.2)]


def test_a_long_message_takes_as_long_in_pieces_as_at_once() -> None:
    time, arrived = VirtualTime(), []
    nbytes = 4 * PIECE_BYTES
    line(time).call(pytest.fail).send(Direction.DOWN, nbytes, 1, True, lambda _: arrived.append(time.now))
    time.run()
    assert arrived == [pytest.approx(nbytes / 1e6 + 0.1)]


def test_an_event_in_mid_transfer_acts_on_the_rest() -> None:
    time, arrived = VirtualTime(), []
    tested = line(time)
    nbytes = 8 * PIECE_BYTES
    tested.call(pytest.fail).send(Direction.UP, nbytes, 1, True, lambda _: arrived.append(time.now))
    event = NetworkEvent("bandwidth_collapse", "n", factor=0.5)
    time.at(1.0, tested.link.apply, event, 1.0)
    time.run()
    undisturbed = nbytes / 1e6 + 0.1
    assert undisturbed * 1.3 < arrived[0] < undisturbed * 2


def test_a_lost_rpc_fails_once_and_nothing_of_it_arrives() -> None:
    time, failed = VirtualTime(), []
    call = line(time, loss=1.0).call(lambda: failed.append(time.now))

    def answer(_: object) -> None:
        call.send(Direction.DOWN, 100, 1, True, lambda _: pytest.fail())

    call.send(Direction.UP, 100, 1, True, answer)
    time.run()
    assert len(failed) == 1
    assert failed[0] >= 0.2


def test_what_a_black_hole_holds_arrives_when_it_is_over() -> None:
    time, arrived = VirtualTime(), []
    tested = line(time)
    event = NetworkEvent("disconnect", "n", mode="black_hole", duration_seconds=5.0)
    tested.link.apply(event, 0.0)
    tested.happened(event)
    tested.call(pytest.fail).send(Direction.UP, 100, 1, True, lambda _: arrived.append(time.now))
    time.run()
    assert arrived == [pytest.approx(5.1, abs=0.01)]


def test_a_connection_on_which_nothing_passes_is_given_up() -> None:
    time, failed = VirtualTime(), []
    tested = line(time)
    tested.call(lambda: failed.append(time.now)).send(Direction.UP, 100, 1, False, lambda _: None)
    time.run(until=1.0)
    event = NetworkEvent("partition", nodes=("n",))
    tested.link.apply(event, 1.0)
    tested.happened(event)
    time.run()
    assert failed == [1.0 + SILENCE_SECONDS]
    assert tested.connection == 1


def test_a_reset_fails_the_rpc_at_once() -> None:
    time, failed = VirtualTime(), []
    tested = line(time)
    tested.call(lambda: failed.append(time.now)).send(Direction.UP, 100, 1, False, lambda _: None)
    event = NetworkEvent("disconnect", "n", mode="reset")
    tested.link.apply(event, 0.0)
    tested.happened(event)
    assert failed == [0.0]


@pytest.mark.parametrize("nbytes", [100, 3 * PIECE_BYTES])
def test_an_rpc_leaves_no_cycles_behind(nbytes: int) -> None:
    time = VirtualTime()
    tested = line(time, loss=0.5)

    def send() -> None:
        call = tested.call(lambda: None)
        call.send(Direction.UP, nbytes, 1, True, lambda _: None)

    gc.collect()
    gc.disable()
    try:
        for at in range(20):
            time.at(20.0 * at, send)
        time.run()
        assert gc.collect() == 0
    finally:
        gc.enable()
