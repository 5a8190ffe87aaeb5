"""Frames of a connection on a link with TCP's packet loss: pieces arrive as the whole message does in the simulator."""

from collections import deque
from collections.abc import Sequence

import pytest
from hpack import Encoder

from hypergpu.netsim_proxy.link import Deliver, Direction, Link, LossModel, Profile
from hypergpu.netsim_proxy.link.transfer import plain_profile
from hypergpu.netsim_proxy.relay import http2
from tests.netsim_proxy.virtual import Relayed

SMALL = http2.frame(http2.WINDOW_UPDATE, 0, 1, (1000).to_bytes(4, "big"))
PERIOD_SECONDS = 1.2


def thin() -> Profile:
    """Return a thin line: 77 KB take 0.6 s, and its queue holds 43 packets."""
    return plain_profile(120, 1, queue_bytes=64 << 10)


class Upload(Relayed):
    """A call whose client sends messages on a link with TCP."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        block = Encoder().encode([(":method", "POST"), (":path", "/a/b"), ("x-node-id", "node_1")])
        self.links.find(0.0, "node_1").link.set_loss_model(LossModel.TRANSPORT)
        self.up(http2.settings(), http2.frame(http2.HEADERS, http2.END_HEADERS, 1, block))
        self.down(http2.settings((http2.MAX_FRAME_SIZE, 1 << 17)))
        self.run()

    def send(self, frames: Sequence[bytes]) -> float:
        """Send frames as fast as the relay reads; return when the last of them has arrived."""
        left, size = deque(frames), self.upstream.size + sum(map(len, frames))
        while left or self.upstream.size < size:
            while left and self.client.is_read:
                self.up(left.popleft())
            self.pacer.advance(to=self.pacer.agenda.next_at)
        return self.pacer.time


def message(frame_bytes: int, nbytes: int = 77_000) -> list[bytes]:
    sizes = [frame_bytes] * (nbytes // frame_bytes) + [nbytes % frame_bytes]
    return [http2.frame(http2.DATA, 0, 1, bytes(size)) for size in sizes if size]


def whole_seconds(profile: Profile, messages: int) -> list[float]:
    """Return how long each message takes that is offered to the link at once, as the simulator does."""
    link = Link("n", profile, 1, loss_model=LossModel.TRANSPORT)
    seconds = []
    for number in range(messages):
        now = 10 + PERIOD_SECONDS * number
        outcome = link.offer(now, Direction.UP, 77_045, link.begin(now), end=True)
        assert isinstance(outcome, Deliver)
        seconds.append(outcome.at - now)
    return seconds


@pytest.mark.parametrize("frame_bytes", [16_384, 51_500, 4_000])
@pytest.mark.parametrize("small_frames", [0, 3])
def test_messages_take_as_long_in_frames_as_whole(frame_bytes: int, small_frames: int) -> None:
    upload, seconds = Upload(thin()), []
    for number in range(6):
        now = 10 + PERIOD_SECONDS * number
        for at in (now - 0.3, now):
            upload.pacer.wait(at - upload.pacer.time)
            for _ in range(small_frames):
                upload.up(SMALL)
        seconds.append(upload.send(message(frame_bytes)) - now)
    assert seconds == pytest.approx(whole_seconds(thin(), 6), rel=0.1)
