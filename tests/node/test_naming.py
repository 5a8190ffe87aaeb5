import struct

import pytest

from hypergpu.node.naming import decode_answer, encode_question, own_name, replica_of

# Asked of the DNS of a Docker engine for 198.18.16.5: "hypergpu-node-3.hypergpu_default", the name by a pointer.
QUESTION = b"\x015\x0216\x0218\x03198\x07in-addr\x04arpa\x00\x00\x0c\x00\x01"
NAME = b"\x0fhypergpu-node-3\x10hypergpu_default\x00"


def answer(number: int = 7, flags: int = 0x8180, answers: int = 1, name: bytes = NAME, kind: int = 12) -> bytes:
    head = struct.pack("!6H", number, flags, 1, answers, 0, 0)
    return head + QUESTION + b"\xc0\x0c" + struct.pack("!2HIH", kind, 1, 600, len(name)) + name


def test_the_question_is_of_the_reversed_address() -> None:
    assert encode_question(7, "198.18.16.5") == struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + QUESTION


def test_the_name_in_an_answer() -> None:
    assert decode_answer(7, answer()) == "hypergpu-node-3.hypergpu_default"
    assert decode_answer(7, answer(name=b"\x01n\xc0\x14")) == "n.198.in-addr.arpa", "a pointer into the question"
    assert decode_answer(7, answer(answers=0)) is None
    assert decode_answer(7, answer(kind=1)) is None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        answer()[:40],
        answer()[:-20],
        answer(number=8),
        answer(flags=0x0100),
        answer(name=b"\xc0\x36"),
        answer(name=b"\x01\xff\x00"),
    ],
    ids=["empty", "cut in the answer", "cut in the name", "of another question", "a question", "a loop", "not ASCII"],
)
def test_what_is_no_answer_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_answer(7, message)


@pytest.mark.parametrize(
    ("name", "replica"),
    [
        ("hypergpu-node-3.hypergpu_default", "node-3"),
        ("my-own-project-node-12.net", "node-12"),
        ("0f3a9c_hypergpu-node-1.hypergpu_default", "node-1"),
        ("hypergpu_node_2", "node-2"),
        ("0f3a9c12ab34.hypergpu_default", None),
        ("node-3", None),
        ("hypergpu-node-x.net", None),
        ("", None),
    ],
)
def test_a_replica_is_its_service_and_number(name: str, replica: str | None) -> None:
    assert replica_of(name) == replica


def test_nodes_on_one_host_have_names_of_their_own() -> None:
    assert len({own_name() for _ in range(20)}) == 20
