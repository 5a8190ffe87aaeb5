"""Default name of a node, chosen before it first dials so that its link is known from the start."""

import re
import secrets
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_REPLICA = re.compile(r".*[-_](?P<service>[A-Za-z0-9]+)[-_](?P<number>\d{1,6})")
"""PROJECT-SERVICE-NUMBER, as Compose names containers."""
_PTR, _INTERNET = 12, 1
_MOST_POINTERS = 16
_TRIES, _TRY_SECONDS = 3, 1.0


def own_name() -> str:
    """Return the host name with a random suffix, because several nodes may run on one host."""
    host = "".join(c for c in socket.gethostname().partition(".")[0] if c.isascii() and (c.isalnum() or c in "-_"))
    return f"{host[:40].lstrip('-_') or 'node'}-{secrets.token_hex(3)}"


def replica_name() -> str | None:
    """Return the name of this container as a replica of a Compose service, such as node-1; None if it is none.

    A container does not know its number; the engine's DNS has it under the container's address.
    """
    try:
        address = socket.gethostbyname(socket.gethostname())
        servers = _name_servers(Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    for server in servers:
        name = _ask(server, address)
        if name is not None:
            return replica_of(name)
    return None


def replica_of(name: str) -> str | None:
    """Return SERVICE-NUMBER of a container's DNS name, PROJECT-SERVICE-NUMBER.NETWORK; None for any other name."""
    found = _REPLICA.fullmatch(name.partition(".")[0])
    return f"{found['service']}-{int(found['number'])}" if found else None


def encode_question(number: int, address: str) -> bytes:
    """Return a DNS query for the name of an IPv4 address (RFC 1035, sections 3.5 and 4)."""
    labels = [*reversed(address.split(".")), "in-addr", "arpa"]
    question = b"".join(bytes([len(label)]) + label.encode("ascii") for label in labels) + b"\0"
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + question + struct.pack("!2H", _PTR, _INTERNET)


def decode_answer(number: int, message: bytes) -> str | None:
    """Return the first name in the answer to query `number`; None if there is none.

    Raises:
        ValueError: not an answer to the query, or malformed.
    """
    try:
        answered, flags, questions, answers = struct.unpack_from("!4H", message)
        if answered != number or not flags & 0x8000:
            raise ValueError("not an answer to this query")
        at = 12
        for _ in range(questions):
            at = _skip_name(message, at) + 4
        for _ in range(answers):
            at = _skip_name(message, at)
            kind, _, _, size = struct.unpack_from("!2HIH", message, at)
            at += 10
            if kind == _PTR:
                return ".".join(_labels(message, at))
            at += size
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError("malformed answer") from error
    return None


def _name_servers(configuration: str) -> list[str]:
    lines = (line.split() for line in configuration.splitlines())
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver" and ":" not in words[1]]


def _ask(server: str, address: str) -> str | None:
    """Return the name of an address from a DNS server; None if it has none or does not answer."""
    for _ in range(_TRIES):
        number = secrets.randbelow(1 << 16)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            asked.settimeout(_TRY_SECONDS)
            try:
                asked.connect((server, 53))
                asked.send(encode_question(number, address))
                return decode_answer(number, asked.recv(4096))
            except (OSError, ValueError):
                continue
    return None


def _skip_name(message: bytes, at: int) -> int:
    while (length := message[at]) != 0:
        if length >= 0xC0:  # a pointer ends a name
            return at + 2
        at += 1 + length
    return at + 1


def _labels(message: bytes, at: int) -> Iterator[str]:
    pointers = 0
    while (length := message[at]) != 0:
        if length >= 0xC0:
            pointers += 1
            if pointers > _MOST_POINTERS:
                raise ValueError("a name with too many pointers")
            at = (length & 0x3F) << 8 | message[at + 1]
            continue
        label = message[at + 1 : at + 1 + length]
        if len(label) < length:
            raise IndexError
        yield label.decode("ascii")
        at += 1 + length
