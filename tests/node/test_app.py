"""The address under which others reach a node's /metrics."""

import socket

import pytest

from hypergpu.node.app import reachable


@pytest.mark.parametrize(
    ("address", "coordinator", "expected"),
    [
        ("0.0.0.0:9100", "127.0.0.1:50051", "127.0.0.1:9100"),
        ("[::]:9100", "127.0.0.1:50051", "127.0.0.1:9100"),
        ("127.0.0.2:9100", "127.0.0.1:50051", "127.0.0.2:9100"),
        ("0.0.0.0:9100", "no port", f"{socket.gethostname()}:9100"),
    ],
)
def test_a_wildcard_stands_for_the_address_that_dials_the_coordinator(
    address: str, coordinator: str, expected: str
) -> None:
    assert reachable(address, coordinator) == expected
