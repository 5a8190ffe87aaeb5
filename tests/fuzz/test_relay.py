"""The proxy's HTTP/2 relay between two peers that send frames which nobody meant."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypergpu.netsim_proxy.link.profiles import find_profile
from hypergpu.netsim_proxy.relay import http2
from tests.examples import examples
from tests.fuzz.bounds import bounded
from tests.fuzz.mutations import damaged
from tests.netsim_proxy.virtual import Relayed

FEW, MANY = 20, 5_000
SOAK = settings(max_examples=MANY, derandomize=False, suppress_health_check=list(HealthCheck))
BLOCK = bytes.fromhex("838644") + b"\x02/x" + b"\x00\x09x-node-id\x01a"
FRAMES = (
    http2.settings(
        (http2.HEADER_TABLE_SIZE, 4096), (http2.INITIAL_WINDOW_SIZE, 70_000), (http2.MAX_FRAME_SIZE, 16_384)
    ),
    http2.frame(http2.SETTINGS, http2.ACK, 0, b""),
    http2.header_frames(1, BLOCK, False, 16_384),
    http2.header_frames(3, BLOCK, True, 10),
    http2.frame(http2.DATA, 0, 1, b"x" * 50),
    http2.frame(http2.DATA, http2.END_STREAM | http2.PADDED, 1, b"\3abc\0\0\0"),
    http2.frame(http2.PING, 0, 0, b"12345678"),
    http2.frame(http2.PRIORITY, 0, 1, b"\0\0\0\3\7"),
    http2.window_update(100),
    http2.rst_stream(3, http2.CANCEL),
    http2.goaway(1, 0),
)
PIECES = st.lists(st.one_of(st.sampled_from(FRAMES), damaged(FRAMES), st.binary(max_size=30)), max_size=8)
SENT = st.lists(st.tuples(st.booleans(), PIECES, st.sampled_from((0.0, 0.001, 1.0))), min_size=1, max_size=6)


def relay(how_many: settings) -> None:
    @how_many
    @given(SENT, st.sampled_from(("good", "poor", "dsl")))
    def run(sent: list[tuple[bool, list[bytes], float]], profile: str) -> None:
        with bounded():
            relayed = Relayed(find_profile(profile))
            relayed.up(FRAMES[0])
            relayed.down(FRAMES[0])
            for from_client, pieces, seconds in sent:
                (relayed.up if from_client else relayed.down)(*pieces)
                relayed.pacer.wait(seconds)
            relayed.run()

    run()


def test_the_relay_bears_any_frames() -> None:
    relay(examples(FEW))


@pytest.mark.soak
def test_the_relay_bears_many_frames() -> None:
    relay(SOAK)
