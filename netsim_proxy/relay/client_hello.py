"""The name of the server in the first message of TLS (RFC 8446, section 4.1.2; RFC 6066, section 3)."""

from typing import Final

HANDSHAKE: Final = 0x16
"""The type of a TLS record with handshake messages: the first byte of every TLS connection."""
MAX_HELLO_BYTES: Final = 32 << 10
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
_RECORD_HEADER_BYTES: Final = 5
_MESSAGE_HEADER_BYTES: Final = 4


class Incomplete(Exception):
    """The message goes on beyond what has been read."""


def server_name(data: bytes) -> str | None:
    """Return the name that a client asks for, or None where it names none or does not speak TLS.

    Raises:
        Incomplete: more of it has to be read.
    """
    try:
        hello = _Reader(_first_message(data))
        hello.take(2 + 32)  # version, random
        for length_bytes in (1, 2, 1):  # session, ciphers, compressions
            hello.take_vector(length_bytes)
        extensions = _Reader(hello.take_vector(2))
        while extensions.left:
            kind, body = extensions.number(2), extensions.take_vector(2)
            if kind == _SERVER_NAME:
                names = _Reader(_Reader(body).take_vector(2))
                is_host = names.number(1) == _HOST_NAME
                return _text(names.take_vector(2)) if is_host else None
    except _Malformed:
        pass
    return None


def _first_message(data: bytes) -> bytes:
    """Return the ClientHello without its header, put together from as many records as it takes."""
    message, at = b"", 0
    while len(message) < _MESSAGE_HEADER_BYTES or len(message) < _MESSAGE_HEADER_BYTES + _length(message):
        if at < len(data) and data[at] != HANDSHAKE:
            raise _Malformed
        if message and message[0] != _CLIENT_HELLO:
            raise _Malformed
        header = data[at : at + _RECORD_HEADER_BYTES]
        size = int.from_bytes(header[3:], "big")
        record = data[at + _RECORD_HEADER_BYTES : at + _RECORD_HEADER_BYTES + size]
        if len(header) < _RECORD_HEADER_BYTES or len(record) < size:
            if len(data) >= MAX_HELLO_BYTES:
                raise _Malformed
            raise Incomplete
        if not size:
            raise _Malformed
        message += record
        at += _RECORD_HEADER_BYTES + size
    if message[0] != _CLIENT_HELLO:
        raise _Malformed
    return message[_MESSAGE_HEADER_BYTES : _MESSAGE_HEADER_BYTES + _length(message)]


def _length(message: bytes) -> int:
    return int.from_bytes(message[1:_MESSAGE_HEADER_BYTES], "big")


def _text(name: bytes) -> str | None:
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        return None


class _Malformed(Exception):
    pass


class _Reader:
    """Takes fields from the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise _Malformed
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def take_vector(self, length_bytes: int) -> bytes:
        return self.take(self.number(length_bytes))
