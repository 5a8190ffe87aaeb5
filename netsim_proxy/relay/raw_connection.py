"""TCP connection that is passed through unchanged, and its connection to the upstream, on one link.

Bytes are offered to the link in pieces and written when they are due. No I/O; the driver is that of `ConnectionPair`.
"""

from hypergpu.netsim_proxy.link.outcomes import DOWN, UP, Deliver, Direction, Fail, LinkRpc
from hypergpu.netsim_proxy.relay.agenda import Agenda
from hypergpu.netsim_proxy.relay.effects import Close, Closed, EndWriting
from hypergpu.netsim_proxy.relay.frame_writer import FrameWriter
from hypergpu.netsim_proxy.relay.held_reader import HeldReader
from hypergpu.netsim_proxy.relay.paced_link import PacedLink


class RawConnectionPair:
    """Client connection and its connection to the upstream, on one link."""

    def __init__(self, now: float, paced: PacedLink, agenda: Agenda, number: int) -> None:
        self.number, self.paced, self.agenda = number, paced, agenda
        self.closed = False
        self.link_rpc: LinkRpc = paced.link.connect(now, number)
        self.readers = RawReader(self, UP), RawReader(self, DOWN)
        self._silent = False

    def begin(self, now: float, early: bytes, at_end: bool) -> None:
        """Start with the data that the client sent before the upstream was connected; `at_end`: it sends no more."""
        self.paced.join(now, self)
        if early:
            self.handle(now, UP, early)
        if at_end:
            self.end(now, UP)

    def handle(self, now: float, direction: Direction, data: bytes) -> None:
        """Handle bytes from the client (UP) or the upstream (DOWN)."""
        if not self.closed and not self._silent:
            self.readers[direction.ordinal].feed(now, data)

    def end(self, now: float, direction: Direction, reset: bool = False) -> None:
        """Pass on that an end sends no more or, with `reset`, is gone, behind the data that it sent before."""
        if not self.closed and not self._silent:
            self.readers[direction.ordinal].end(now, reset)

    def close(self, _now: float, reset: bool = False) -> None:
        """End both connections; with `reset` at once, by TCP resets."""
        if self.closed:
            return
        self.closed = True
        effects = self.agenda.effects
        for reader in self.readers:
            reader.writer.closed = True
            effects.append(Close(self.number, reader.direction, reset))
        self.paced.forget(self)
        effects.append(Closed(self.number))

    def close_after_delivery(self, now: float) -> None:
        """End both connections when the data on its way has arrived; read nothing more."""
        if not self._silent:
            self._silent = True
            latest = max(reader.writer.latest_at for reader in self.readers)
            self.agenda.at(max(now, latest), self.close)

    def black_hole(self, _now: float) -> None:
        """Reset the connection to the upstream without telling the client."""
        self._silent = True
        for reader in self.readers:
            reader.writer.closed = True
        self.agenda.effects.append(Close(self.number, DOWN, reset=True))


class RawReader(HeldReader):
    """Reader of the bytes of one end: UP from the client, DOWN from the upstream."""

    def __init__(self, pair: RawConnectionPair, direction: Direction) -> None:
        super().__init__(pair.agenda, pair.number, direction)
        self.pair = pair
        self.writer = FrameWriter(pair.agenda, pair.number, direction)
        self.has_ended = False

    def feed(self, now: float, data: bytes) -> None:
        """Offer data to the link in pieces."""
        paced, at = self.pair.paced, 0
        while at < len(data) and not self.pair.closed:
            left = paced.link.allowance(self.pair.number, self.direction)
            if left <= 0:
                break
            piece = data[at : at + int(min(paced.piece_bytes[self.index], left))]
            at += len(piece)
            paced.offer(now, self, len(piece), self.pair.link_rpc, False, self._on_verdict, piece)
        if paced.link.allowance(self.pair.number, self.direction) <= 0:
            self.pair.close_after_delivery(now)

    def end(self, now: float, reset: bool) -> None:
        """Offer the end of the data."""
        if reset or not self.has_ended:
            self.has_ended = True
            self.pair.paced.offer(now, self, 0, self.pair.link_rpc, True, self._on_end_verdict, reset)

    def _on_verdict(self, now: float, verdict: Deliver | Fail, piece: bytes) -> None:
        if isinstance(verdict, Fail):
            self.pair.close(now, reset=True)
        elif verdict.at <= now and not self.writer.queued:
            self.writer.write(piece)
        else:
            self.pair.paced.begin_transit(now, self, len(piece))
            self.writer.later(verdict.at, self._on_delivery, piece)

    def _on_delivery(self, now: float, piece: bytes) -> None:
        self.pair.paced.end_transit(now, self, len(piece))
        self.writer.write(piece)

    def _on_end_verdict(self, now: float, verdict: Deliver | Fail, reset: bool) -> None:
        if isinstance(verdict, Fail):
            self.pair.close(now, reset=True)
            return
        delay_seconds = self.pair.paced.link.close_delay_seconds(self.direction)
        self.writer.later(max(verdict.at, self.writer.latest_at) + delay_seconds, self._end_other, reset)

    def _end_other(self, now: float, reset: bool) -> None:
        back = self.pair.readers[1 - self.index]
        if reset:
            self.pair.close(now, reset=True)
        elif back.has_ended and not back.writer.queued:
            self.pair.close(now)
        elif not self.writer.closed:
            self._agenda.effects.append(EndWriting(self.pair.number, self.direction))
