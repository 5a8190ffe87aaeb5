"""HOST:PORT, and what is told of anything else."""

import pytest

from hypergpu.common.address import is_loopback, split_address
from hypergpu.common.errors import ConfigError


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("dns:///coordinator:50051", "without a scheme, as in coordinator:50051"),
        ("ipv4:10.0.0.1:50051", "without a scheme, as in 10.0.0.1:50051"),
        ("http://coordinator:50051/x", "without a scheme, as in coordinator:50051"),
        ("unix:/tmp/socket", "without a scheme"),
        ("host", "HOST:PORT"),
        ("host:", "HOST:PORT"),
        (":80", "HOST:PORT"),
        ("host:65536", "HOST:PORT"),
        ("host:" + "9" * 5000, "HOST:PORT"),
        ("host:٣", "HOST:PORT"),
        ("host:-1", "HOST:PORT"),
        ("::1:80", "in brackets"),
        ("[::1:80", "no name or address"),
        ("[localhost]:80", "no name or address"),
        ("a b:80", "no name or address"),
        ("a\x00b:80", "no name or address"),
        ("user@host:80", "no name or address"),
        ("a..b:80", "no name or address"),
        (".a:80", "no name or address"),
        ("x" * 64 + ".example:80", "no name or address"),
        ("ü" * 64 + ":80", "no name or address"),
        ("\u202ehost:80", "no name or address"),
    ],
)
def test_what_is_no_address_is_told_in_one_short_line(address: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_address(address)
    assert told in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 260


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("coordinator:50051", ("coordinator", 50051)),
        ("http:80", ("http", 80)),
        ("node_1.example.org.:0", ("node_1.example.org.", 0)),
        ("[::1]:65535", ("[::1]", 65535)),
        ("[fe80::1%eth0]:80", ("[fe80::1%eth0]", 80)),
        ("bücher.example:80", ("bücher.example", 80)),
        ("x" * 63 + ":80", ("x" * 63, 80)),
    ],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.1.2.3:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("127.example.org:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_loopback(address: str, local: bool) -> None:
    assert is_loopback(address) is local
