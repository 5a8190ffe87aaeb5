import contextlib

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.netsim_proxy.relay.header_blocks import NO_TABLE, HeaderBlocks, failure, literal, node_id_in
from hypergpu.netsim_proxy.relay.http2 import Http2Error

REQUEST = [(":method", "POST"), (":path", "/a/B"), ("te", "trailers"), ("x-node-id", "node_1"), ("secret", "s")]


def decode(block: bytes) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in Decoder().decode(block)]


@pytest.mark.parametrize("huffman", [True, False])
def test_blocks_with_a_dynamic_table_become_free_of_state(huffman: bool) -> None:
    encoder, blocks = Encoder(), HeaderBlocks()
    for _ in range(3):
        block, node_id = blocks.take(encoder.encode(REQUEST, huffman=huffman))
        assert node_id == "node_1"
        assert decode(block) == REQUEST  # by a decoder that has seen nothing before
    assert not blocks.stateless


@pytest.mark.parametrize("huffman", [True, False])
def test_blocks_pass_as_they_are_once_the_encoder_has_no_table(huffman: bool) -> None:
    encoder, blocks = Encoder(), HeaderBlocks()
    blocks.take(encoder.encode(REQUEST, huffman=huffman))
    encoder.header_table_size = 0
    first, second = (encoder.encode(REQUEST, huffman=huffman) for _ in range(2))
    assert first.startswith(NO_TABLE)
    assert blocks.take(first) == (first, "node_1")
    assert blocks.stateless
    assert blocks.take(second) == (second, "node_1")
    assert decode(second) == REQUEST


def test_an_encoder_that_empties_its_table_and_goes_on_has_one() -> None:
    encoder, blocks = Encoder(), HeaderBlocks()
    blocks.take(encoder.encode(REQUEST))
    encoder.header_table_size = 0
    encoder.header_table_size = 4096
    for _ in range(2):
        block, node_id = blocks.take(encoder.encode(REQUEST))
        assert node_id == "node_1" and decode(block) == REQUEST
    assert not blocks.stateless


@given(st.dictionaries(st.text("abcdefghij-", min_size=1), st.text(st.characters(codec="ascii"), max_size=300)))
def test_node_id_is_found_among_any_fields(fields: dict[str, str]) -> None:
    encoder = Encoder()
    encoder.header_table_size = 0
    pairs = [*fields.items()]
    assert node_id_in(encoder.encode(pairs)) is None
    pairs.insert(len(pairs) // 2, ("x-node-id", "n"))
    assert node_id_in(encoder.encode(pairs, huffman=False)) == "n"


@given(st.binary(max_size=200))
def test_garbage_is_an_error_and_nothing_worse(block: bytes) -> None:
    for read in (node_id_in, HeaderBlocks().take):
        with contextlib.suppress(Http2Error):
            read(block)


def test_secrets_keep_their_mark() -> None:
    assert literal(b"a", b"b", indexable=False)[0] == 0x10


def test_failure_is_a_trailers_only_answer() -> None:
    fields = dict(decode(failure("lost: ü %", 14, trailers=False)))
    assert fields[":status"] == "200" and fields["content-type"] == "application/grpc"
    assert fields["grpc-status"] == "14" and fields["grpc-message"] == "lost: %C3%BC %25"
    assert ":status" not in dict(decode(failure("x", 14, trailers=True)))
