"""Traces in the relay: which of its delays it reports, and of which calls."""

from typing import Any

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.tracing import NoTracer
from hypergpu.netsim_proxy.io.transports import Transports
from hypergpu.netsim_proxy.link.distributions import Uniform
from hypergpu.netsim_proxy.link.profiles import Path, Profile
from hypergpu.netsim_proxy.relay import http2
from hypergpu.netsim_proxy.relay.header_blocks import NO_TABLE, context_in, literal
from tests.netsim_proxy.virtual import Relayed, attach

REQUEST, ANSWER = f"00-{'ab' * 16}-{'12' * 8}-01", f"00-{'cd' * 16}-{'34' * 8}-01"
FIXED = Path(Uniform(0.05, 0.05), 8.0)  # a megabyte a second


class Records(NoTracer):
    """A tracer that keeps what it was told."""

    is_on = True  # type: ignore[misc]

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, float, float, dict[str, Any]]] = []

    def record(self, name: str, parent: str, began: float, ended: float, **attributes: Any) -> None:
        self.spans.append((name, parent, round(began, 3), round(ended, 3), attributes))


class Traced(Relayed):
    """A relay with traces, and a request on it."""

    def __init__(self, request: str, *, traces: bool = True) -> None:
        super().__init__(Profile("fixed", FIXED, FIXED))
        self.tracer = Records()
        self.pacer.transports = Transports(self.tracer)
        self.pacer.agenda.traces = traces
        attach(self.pacer, self.pair, self.client, self.upstream)
        self.up(http2.settings())
        self.up(headers(1, request))
        self.run()
        self.down(http2.settings())
        self.run()

    @property
    def now(self) -> float:
        return round(self.pacer.time, 3)


def headers(stream: int, context: str, *, end: bool = False) -> bytes:
    fields = [(b":method", b"POST"), (b":path", b"/a/b"), (b"x-node-id", b"node_1")]
    fields += [(b"traceparent", context.encode())] if context else []
    block = NO_TABLE + b"".join(literal(*each) for each in fields)
    return http2.frame(http2.HEADERS, http2.END_HEADERS | (http2.END_STREAM if end else 0), stream, block)


def test_a_request_is_reported_from_its_first_to_its_last_bytes() -> None:
    relayed = Traced(REQUEST)
    began = 0.0
    relayed.up(http2.frame(http2.DATA, 0, 1, bytes(10_000)))
    sent = relayed.now
    assert relayed.tracer.spans == []
    relayed.up(http2.frame(http2.DATA, http2.END_STREAM, 1, bytes(10_000)))
    relayed.run()
    ((name, parent, first, last, figures),) = relayed.tracer.spans
    assert (name, parent, first) == ("link up", REQUEST, began)
    assert last == pytest.approx(sent + 0.05 + 0.02, abs=0.002)
    assert figures["link"] == "node_1"
    assert 20_000 < figures["bytes"] < 20_400
    assert figures["delay_seconds"] == pytest.approx(last - sent, abs=0.002)


def test_an_answer_names_the_trace_of_what_it_brings() -> None:
    relayed = Traced("")
    relayed.up(http2.frame(http2.DATA, http2.END_STREAM, 1, b"x"))
    relayed.run()
    sent = relayed.now
    relayed.down(http2.frame(http2.WINDOW_UPDATE, 0, 1, (1000).to_bytes(4, "big")))  # no part of the answer
    relayed.pacer.wait(0.2)
    began = relayed.now
    relayed.down(headers(1, ANSWER))
    relayed.down(http2.frame(http2.DATA, 0, 1, bytes(5_000)))
    relayed.up(http2.frame(http2.WINDOW_UPDATE, 0, 1, (5000).to_bytes(4, "big")))  # nor a second request
    relayed.run()
    relayed.down(http2.frame(http2.DATA, http2.END_STREAM, 1, b"x"))
    relayed.run()
    assert began > sent
    assert [span[:3] for span in relayed.tracer.spans] == [("link down", ANSWER, began)]


@pytest.mark.parametrize(("request_of", "traces"), [("", True), (REQUEST, False), ("00-nonsense", True)])
def test_nothing_is_reported_without_a_trace(request_of: str, traces: bool) -> None:
    relayed = Traced(request_of, traces=traces)
    relayed.up(http2.frame(http2.DATA, http2.END_STREAM, 1, bytes(10_000)))
    relayed.down(headers(1, "", end=True))
    relayed.run()
    assert relayed.tracer.spans == []


@pytest.mark.parametrize("huffman", [True, False])
def test_the_context_is_found_in_both_codings(huffman: bool) -> None:
    encoder = Encoder()
    encoder.header_table_size = 0
    assert context_in(encoder.encode([("a", "b"), ("traceparent", REQUEST)], huffman=huffman)) == REQUEST


@given(st.text(st.characters(codec="ascii"), max_size=80))
def test_another_value_is_no_context(value: str) -> None:
    assert context_in(literal(b"traceparent", value.encode())) in ("", value)
    assert context_in(literal(b"traceparent", b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01")) == ""
