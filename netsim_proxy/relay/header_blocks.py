"""Header blocks (HPACK, RFC 7541) of one direction of a connection, kept free of state.

Both peers are told to use no dynamic table. Until a peer's encoder says that it does so (it must start its next block
with a size update), its blocks are decoded and written again as literals; from then on they pass as they are, and the
relay only looks for the one field that it needs.
"""

from hashlib import blake2b
from typing import Final

from hpack import Decoder, HPACKError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman

from hypergpu.common.errors import InvalidInput
from hypergpu.common.rpc import check_node_id
from hypergpu.common.tracing import TRACEPARENT, parts_of
from hypergpu.netsim_proxy.relay.http2 import COMPRESSION_ERROR, Http2Error

MAX_BLOCK_BYTES: Final = 256 << 10
NO_TABLE: Final = b"\x20"
"""A dynamic table size update to zero, valid at the start of any block."""

_MAX_CACHED: Final = 1024
_node_ids: dict[bytes, str | None] = {}
_STATIC_ENTRIES: Final = 61
_NODE_ID: Final = b"x-node-id"
_NODE_ID_HUFFMAN: Final = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(_NODE_ID)
_CONTEXT: Final = TRACEPARENT.encode()
_CONTEXT_HUFFMAN: Final = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(_CONTEXT)
_UNESCAPED: Final = frozenset(range(0x20, 0x7F)) - {0x25}


class HeaderBlocks:
    """Blocks of one peer, in order."""

    __slots__ = ("_decoder", "stateless")

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=4 * MAX_BLOCK_BYTES)
        self.stateless = False

    def take(self, block: bytes) -> tuple[bytes, str | None]:
        """Return the block as it may be sent on, in any order, and the node id in it, if any.

        Raises:
            Http2Error: the block is no HPACK.
        """
        self.stateless = self.stateless or _table_bytes(block) == 0
        return (block, node_id_in(block)) if self.stateless else self._as_literals(block)

    def _as_literals(self, block: bytes) -> tuple[bytes, str | None]:
        try:
            fields = list(self._decoder.decode(block, raw=True))
        except HPACKError as error:
            raise Http2Error(f"a header block that cannot be decoded: {error}", COMPRESSION_ERROR) from error
        out = bytearray(NO_TABLE)
        node_id = None
        for field in fields:
            name, value = bytes(field[0]), bytes(field[1])
            out += literal(name, value, indexable=field.indexable)
            if name == _NODE_ID:
                node_id = _node_id(value)
        return bytes(out), node_id


def literal(name: bytes, value: bytes, indexable: bool = True) -> bytes:
    """Return a field that enters no table; `indexable=False` keeps the "never index" mark of secrets."""
    first = b"\x00" if indexable else b"\x10"
    return first + _integer(len(name), 7) + name + _integer(len(value), 7) + value


def failure(message: str, status: int, trailers: bool) -> bytes:
    """Return the header block that ends a gRPC call: trailers once an answer has begun, else a trailers-only answer."""
    start = NO_TABLE if trailers else NO_TABLE + b"\x88" + literal(b"content-type", b"application/grpc")
    escaped = "".join(chr(b) if b in _UNESCAPED else f"%{b:02X}" for b in message.encode())
    return start + literal(b"grpc-status", str(status).encode()) + literal(b"grpc-message", escaped.encode())


def node_id_in(block: bytes) -> str | None:
    """Return x-node-id of a block that refers to no dynamic table; None if there is no valid one.

    Calls repeat their blocks, hence the cache. It holds digests: blocks hold tokens, and may be large.

    Raises:
        Http2Error: the block is malformed, or refers to a dynamic table.
    """
    digest = blake2b(block, digest_size=16).digest()
    try:
        return _node_ids[digest]
    except KeyError:
        value = _find(block, _NODE_ID, _NODE_ID_HUFFMAN)
        found = None if value is None else _node_id(value)
    if len(_node_ids) >= _MAX_CACHED:
        _node_ids.clear()
    _node_ids[digest] = found
    return found


def _node_id(value: bytes) -> str | None:
    """Return a valid node id, by the coordinator's rule; calls with another share the link of calls without one."""
    try:
        return check_node_id(value.decode("ascii", "replace"))
    except InvalidInput:
        return None


def context_in(block: bytes) -> str:
    """Return the context of a trace in a block that refers to no dynamic table; empty if there is no valid one.

    Raises:
        Http2Error: the block is malformed, or refers to a dynamic table.
    """
    value = _find(block, _CONTEXT, _CONTEXT_HUFFMAN)
    context = "" if value is None else value.decode("ascii", "replace")
    return context if parts_of(context) is not None else ""


def _find(block: bytes, wanted_name: bytes, wanted_huffman: bytes) -> bytes | None:
    """Return the value of the last field of a name, which is given in both codings; None if there is none.

    Raises:
        Http2Error: the block is malformed, or refers to a dynamic table.
    """
    found = None
    at, end = 0, len(block)
    try:
        while at < end:
            first = block[at]
            if first & 0x80:  # an indexed field
                index, at = _read_integer(block, at, 7)
                if not 0 < index <= _STATIC_ENTRIES:
                    raise Http2Error("a header block that refers to a table that is not there", COMPRESSION_ERROR)
                continue
            if first & 0xE0 == 0x20:  # a size update
                _, at = _read_integer(block, at, 5)
                continue
            index, at = _read_integer(block, at, 6 if first & 0x40 else 4)
            if index > _STATIC_ENTRIES:
                raise Http2Error("a header block that refers to a table that is not there", COMPRESSION_ERROR)
            wanted = False
            if index == 0:
                name, huffman, at = _read_string(block, at)
                wanted = name == (wanted_huffman if huffman else wanted_name)
            value, huffman, at = _read_string(block, at)
            if wanted:
                found = decode_huffman(value) if huffman else value
    except (IndexError, HPACKError) as error:
        raise Http2Error("a header block that cannot be decoded", COMPRESSION_ERROR) from error
    return found


def _table_bytes(block: bytes) -> int | None:
    """Return the table size that a block begins with: the last of its updates, since a table may just be emptied."""
    size, at = None, 0
    try:
        while block[at] & 0xE0 == 0x20:
            size, at = _read_integer(block, at, 5)
    except IndexError:
        pass  # nothing else in it, or malformed, as whoever decodes it will say
    return size


def _integer(value: int, prefix_bits: int) -> bytes:
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((value,))
    out, value = bytearray((limit,)), value - limit
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_integer(block: bytes, at: int, prefix_bits: int) -> tuple[int, int]:
    limit = (1 << prefix_bits) - 1
    value = block[at] & limit
    at += 1
    if value < limit:
        return value, at
    for shift in range(0, 35, 7):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Http2Error("a header block with an endless integer", COMPRESSION_ERROR)


def _read_string(block: bytes, at: int) -> tuple[bytes, bool, int]:
    huffman = block[at] & 0x80 != 0
    length, at = _read_integer(block, at, 7)
    if at + length > len(block):
        raise IndexError
    return block[at : at + length], huffman, at + length
