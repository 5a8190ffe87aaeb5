"""The upstream's access link in both drivers: nodes that upload at once through the relay, and in the simulator."""

from collections import deque
from typing import Any, cast

import pytest
from hpack import Encoder

from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.link import Link, LossModel, NetworkEvent
from hypergpu.netsim_proxy.link.access_lane import AccessLink, UpstreamBandwidth
from hypergpu.netsim_proxy.link.outcomes import UP
from hypergpu.netsim_proxy.link.tcp import PACKET_BYTES, SEGMENT_BYTES
from hypergpu.netsim_proxy.link.transfer import plain_profile
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.connection import ConnectionPair
from hypergpu.simulation.rpc import SimulatedConnection
from hypergpu.simulation.virtual_time import VirtualTime
from tests.netsim_proxy.virtual import VirtualPacer, Wire, attach

FRAME_BYTES = 16_384
MODELS = list(LossModel)
PROFILE = plain_profile(20, 20)


class Uploads:
    """Calls of several nodes through the relay, whose clients send as fast as it reads."""

    def __init__(self, bandwidth: UpstreamBandwidth, nodes: int, model: LossModel) -> None:
        self.pacer = VirtualPacer()
        self.links = LinkRegistry(
            cast("Any", self.pacer), PROFILE, seed=1, loss_model=model, upstream_bandwidth=bandwidth
        )
        self.pairs = [ConnectionPair(self.links, self.pacer.agenda, number) for number in range(nodes)]
        self.clients = [Wire(self.pacer.now) for _ in self.pairs]
        self.upstreams = [Wire(self.pacer.now) for _ in self.pairs]
        for number, pair in enumerate(self.pairs):
            attach(self.pacer, pair, self.clients[number], self.upstreams[number])
            block = Encoder().encode([(":method", "POST"), (":path", "/a/b"), ("x-node-id", f"node_{number}")])
            self._feed(number, http2.settings() + http2.frame(http2.HEADERS, http2.END_HEADERS, 1, block))
        self.pacer.wait(1.0)
        self.began = self.pacer.time

    def _feed(self, number: int, data: bytes) -> None:
        self.pacer.handle(self.pairs[number], UP, data)

    def run(self, nbytes: int, *, cut: tuple[int, float] = (-1, 0.0)) -> list[float]:
        """Let every node send `nbytes`; return the seconds after which all of each had arrived.

        `cut` names a node whose link is reset after some seconds.
        """
        frames = [http2.frame(http2.DATA, 0, 1, bytes(FRAME_BYTES))] * (nbytes // FRAME_BYTES)
        left = {number: deque(frames) for number in range(len(self.pairs))}
        target = {number: self.upstreams[number].size + sum(map(len, frames)) for number in left}
        done: dict[int, float] = {}
        while len(done) < len(left):
            for number, queue in left.items():
                while queue and self.clients[number].is_read:
                    self._feed(number, queue.popleft())
            self.pacer.advance(to=self.pacer.agenda.next_at)
            if cut[0] in left and self.pacer.time >= self.began + cut[1]:
                self.links.apply(NetworkEvent("disconnect", target_node=f"node_{cut[0]}"))
                self.pacer.settle()
                assert self.clients[cut[0]].closed
                del left[cut[0]]
            for number in left:
                if number not in done and self.upstreams[number].size >= target[number]:
                    done[number] = self.pacer.time - self.began
        return [done[number] for number in sorted(done)]


def simulated(bandwidth: UpstreamBandwidth, nodes: int, nbytes: int, model: LossModel) -> list[float]:
    """Return the same for RPCs of the simulator."""
    time, access, done = VirtualTime(), AccessLink(bandwidth), []
    for number in range(nodes):
        link = Link(f"node_{number}", PROFILE, seed=1, loss_model=model, access=access)
        rpc = SimulatedConnection(time, link).call(lambda _: pytest.fail("it cannot fail"))
        rpc.send(UP, nbytes, 2, lambda _: done.append(time.now))
    time.run()
    return done


@pytest.mark.parametrize("model", MODELS)
def test_both_drivers_take_the_same_time(model: LossModel) -> None:
    bandwidth = UpstreamBandwidth(up_mbit=24)
    relayed = Uploads(bandwidth, 6, model).run(50 * FRAME_BYTES)
    in_virtual_time = simulated(bandwidth, 6, 50 * FRAME_BYTES, model)
    assert max(relayed) == pytest.approx(max(in_virtual_time), rel=0.05)
    assert sum(relayed) == pytest.approx(sum(in_virtual_time), rel=0.05)
    assert max(in_virtual_time) > 1.5 * max(simulated(UpstreamBandwidth(), 6, 50 * FRAME_BYTES, model))


def test_a_bandwidth_that_is_set_acts_at_once_and_on_new_links() -> None:
    uploads = Uploads(UpstreamBandwidth(), 2, LossModel.RPC)
    uploads.links.set_profile("*", plain_profile(0, 1e6))
    uploads.links.set_upstream_bandwidth(UpstreamBandwidth(up_mbit=8))
    seconds = uploads.run(40 * FRAME_BYTES)
    assert max(seconds) == pytest.approx(2 * 40 * FRAME_BYTES / 1e6, rel=0.05)
    assert not uploads.links.of("node_7").transparent
    uploads.links.set_profile("*", plain_profile(0, float("inf")))
    uploads.links.set_upstream_bandwidth(UpstreamBandwidth())
    assert uploads.links.of("node_0").transparent and uploads.links.of("node_7").transparent


def test_the_others_get_the_share_of_a_node_that_is_reset_in_its_transfer() -> None:
    uploads = Uploads(UpstreamBandwidth(up_mbit=12), 3, LossModel.TRANSPORT)
    seconds = uploads.run(100 * FRAME_BYTES, cut=(2, 1.5))
    # 1.5 s at a third of the bandwidth, and the rest at half of it.
    rate, nbytes = 12 * 125_000 * SEGMENT_BYTES / PACKET_BYTES, 100 * FRAME_BYTES
    assert seconds == pytest.approx([1.5 + (nbytes - 1.5 * rate / 3) / (rate / 2)] * 2, rel=0.05)
