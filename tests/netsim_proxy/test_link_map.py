"""Which link a connection is on that does not say so itself."""

import ssl
from typing import Any

import pytest

from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.netsim_proxy.config.link_map import MAX_ENTRIES, LinkMap
from hypergpu.netsim_proxy.config.link_map_file import parse_link_map
from hypergpu.netsim_proxy.relay.client_hello import MAX_HELLO_BYTES, Incomplete, server_name


@pytest.mark.parametrize(
    ("address", "link"),
    [
        ("10.1.7.3", "node_7"),
        ("10.1.7.4", "rack_1"),
        ("10.2.0.0", ""),
        ("10.0.255.255", ""),
        ("::ffff:10.1.7.3", "node_7"),
        ("2001:db8::1", "six"),
        ("2001:db9::1", ""),
        ("fe80::1%eth0", "local"),
        ("127.0.0.1", ""),
    ],
)
def test_the_longest_prefix_of_an_address_counts(address: str, link: str) -> None:
    addresses = {"10.1.0.0/16": "rack_1", "10.1.7.3": "node_7", "2001:db8::/32": "six", "fe80::/10": "local"}
    assert LinkMap.of(addresses, {}).of_address(address) == link


def test_all_addresses_have_a_prefix_of_no_length() -> None:
    both = LinkMap.of({"::/0": "all", "0.0.0.0/0": "four"}, {})
    assert (both.of_address("1.2.3.4"), both.of_address("2001::1")) == ("four", "all")


def test_a_unix_socket_has_no_address() -> None:
    found = LinkMap.of({"0.0.0.0/0": "all"}, {})
    assert (found.of_peer(""), found.of_peer(None), found.of_peer(("1.2.3.4", 5))) == ("", "", "all")


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("a.example.com", "a"),
        ("A.Example.COM.", "a"),
        ("b.example.com", "others"),
        ("c.b.example.com", ""),
        ("example.com", ""),
        (None, ""),
        ("", ""),
    ],
)
def test_a_name_counts_before_a_star_for_its_first_part(name: str | None, link: str) -> None:
    found = LinkMap.of({}, {"*.example.com": "others", "a.example.com": "a"})
    assert found.of_server_name(name) == link


@pytest.mark.parametrize(
    ("addresses", "names", "told"),
    [
        ({"10.1.0.5/16": "x"}, {}, "'10.1.0.5/16' is no network or address"),
        ({"rack": "x"}, {}, "'rack' is no network"),
        ({"10.0.0.1": ""}, {}, "node id '': take 1 to 64 letters"),
        ({}, {"a": "x" * 65}, "xxx': take 1 to 64 letters"),
        ({}, {f"n{number}": "x" for number in range(MAX_ENTRIES + 1)}, "at most 10000 entries, not 10001"),
    ],
)
def test_entries_that_do_not_hold_are_refused(addresses: dict[str, str], names: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        LinkMap.of(addresses, names)


def test_a_file_is_read_and_the_command_line_goes_before_it() -> None:
    text = 'addresses: {10.0.0.0/8: a, 127.0.0.1: b}\nserver_names: {"*.x": c}\n'
    found = parse_link_map(text, "m.yaml", {"127.0.0.1": "mine"}, {"y.x": "d"})
    assert (found.of_address("10.9.9.9"), found.of_address("127.0.0.1")) == ("a", "mine")
    assert (found.of_server_name("z.x"), found.of_server_name("y.x")) == ("c", "d")
    with pytest.raises(ConfigError, match=r"m\.yaml:1: unknown key 'adresses'; did you mean 'addresses'"):
        parse_link_map("adresses: {}", "m.yaml", {}, {})
    with pytest.raises(ConfigError, match=r"m\.yaml: '10\.0\.0\.0/33' is no network"):
        parse_link_map("addresses: {10.0.0.0/33: a}", "m.yaml", {}, {})


def hello(name: str | None) -> bytes:
    """What OpenSSL says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("name", ["train.example.com", "a" * 60 + ".example", None])
def test_a_servers_name_is_read_wherever_the_reads_end(name: str | None) -> None:
    data = hello(name)
    assert server_name(data) == name and server_name(data + b"more") == name
    for end in range(len(data)):
        with pytest.raises(Incomplete):
            server_name(data[:end])


def test_a_hello_may_come_in_many_records() -> None:
    data = hello("train.example.com")
    header, body = data[:3], data[5:]
    cut = b"".join(
        header + len(body[at : at + 20]).to_bytes(2, "big") + body[at : at + 20] for at in range(0, len(body), 20)
    )
    assert server_name(cut) == "train.example.com"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # another message
        b"\x16\x03\x01\x00\x00" * 10,  # empty records
        b"\x16\x03\x01\xff\xff\x01\xff\xff\xff" + bytes(MAX_HELLO_BYTES),  # without an end
        b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",  # cut off inside
    ],
)
def test_what_is_no_hello_names_no_server(data: bytes) -> None:
    assert server_name(data) is None


def test_no_byte_that_is_changed_makes_it_fail() -> None:
    data = bytearray(hello("train.example.com"))
    for at in range(len(data)):
        for value in (0, 1, 0x80, 0xFF):
            changed = bytearray(data)
            changed[at] = value
            try:
                found: Any = server_name(bytes(changed))
            except Incomplete:
                continue
            assert found is None or isinstance(found, str)
