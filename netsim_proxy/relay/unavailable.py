"""HTTP/2 server that answers every call with UNAVAILABLE while the upstream cannot be reached.

It answers the calls of one read, and then sends the client away: the next call connects anew, and finds the upstream
if it is back.
"""

from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.header_blocks import failure
from hypergpu.netsim_proxy.relay.http2 import FRAME_HEADER_BYTES

_UNAVAILABLE = 14


class UnavailableResponder:
    """Turns what a client sends, after the preface, into answers."""

    def __init__(self, message: str) -> None:
        self._block = failure(message, _UNAVAILABLE, trailers=False)
        self._buffer = b""
        self._greeted = False

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return the frames to answer with, and whether the connection is then over.

        Raises:
            Http2Error: a frame of a size that was not allowed.
        """
        self._buffer += data
        out = [] if self._greeted else [http2.settings((http2.HEADER_TABLE_SIZE, 0))]
        self._greeted = True
        end, last_id = 0, 0
        for at, length, kind, flags, stream_id in http2.frames(self._buffer):
            if length > http2.DEFAULT_MAX_FRAME_BYTES:
                raise http2.Http2Error(f"a frame of {length} bytes", http2.FRAME_SIZE_ERROR)
            if at + FRAME_HEADER_BYTES + length > len(self._buffer):
                break
            end = at + FRAME_HEADER_BYTES + length
            if kind == http2.SETTINGS and not flags & http2.ACK:
                out.append(http2.frame(http2.SETTINGS, http2.ACK, 0))
            elif kind == http2.PING and not flags & http2.ACK:
                out.append(http2.frame(http2.PING, http2.ACK, 0, self._buffer[at + FRAME_HEADER_BYTES : end]))
            elif kind == http2.HEADERS:
                last_id = max(last_id, stream_id)
                out.append(http2.header_frames(stream_id, self._block, True, http2.DEFAULT_MAX_FRAME_BYTES))
        self._buffer = self._buffer[end:]
        if last_id:
            out.append(http2.goaway(last_id, http2.NO_ERROR))
        return b"".join(out), bool(last_id)
