"""Who may connect and where, and on which link calls are that name none: mutual TLS, ports, addresses, Unix sockets."""

import stat
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from hypergpu.common.errors import ConfigError
from hypergpu.netsim_proxy.config.link_map import LinkMap
from hypergpu.netsim_proxy.io.addresses import Address, remove_stale
from hypergpu.netsim_proxy.io.tls import ServerTls, UpstreamTls


def credentials(authority: Any, pair: tuple[Path, Path] | None = None) -> grpc.ChannelCredentials:
    certificate, key = (pair[0].read_bytes(), pair[1].read_bytes()) if pair else (None, None)
    return grpc.ssl_channel_credentials(authority.certificate.read_bytes(), key, certificate)


def test_clients_must_show_a_certificate_of_the_authority(
    start_proxy: Any, connect: Any, authority: Any, stranger: Any
) -> None:
    pem, key = authority.sign("proxy.example")
    running = start_proxy("direct", server_tls=ServerTls(pem, key, authority.certificate))
    known = connect(running.address, "node_1", credentials=credentials(authority, authority.sign("node.example")))
    assert known.Echo(b"known") == b"known"
    for pair in (None, stranger.sign("node.example")):
        client = connect(running.address, "node_2", credentials=credentials(authority, pair))
        with pytest.raises(grpc.RpcError) as caught:
            client.Echo(b"", timeout=3)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert [port.name for port in running.ports] == ["node_1"]
    without = start_proxy("direct", server_tls=ServerTls(pem, key))  # what is not asked for need not be shown
    assert connect(without.address, "node_1", credentials=credentials(authority)).Echo(b"") == b""


def test_an_upstream_that_wants_a_certificate_gets_one(
    start_proxy: Any, connect: Any, authority: Any, service: Any
) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((service.handler(),))
    certificate, key = authority.sign("upstream.example")
    wanted = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], authority.certificate.read_bytes(), require_client_auth=True
    )
    upstream = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', wanted)}"
    server.start()
    try:
        tls = UpstreamTls(authority.certificate, "upstream.example", *authority.sign("proxy.example"))
        running = start_proxy("direct", upstream=upstream, upstream_tls=tls)
        assert connect(running.address, "node_1").Echo(b"known") == b"known"
        nameless = start_proxy(
            "direct", upstream=upstream, upstream_tls=UpstreamTls(authority.certificate, "upstream.example")
        )
        with pytest.raises(grpc.RpcError) as caught:
            connect(nameless.address, "node_1").Echo(b"", timeout=3)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    finally:
        server.stop(0).wait()


def test_files_that_do_not_fit_are_refused(authority: Any, stranger: Any, tmp_path: Path) -> None:
    certificate, key = authority.sign("proxy.example")
    _, other = stranger.sign("proxy.example")
    with pytest.raises(ConfigError, match=r"cannot use .*proxy\.example\.crt with "):
        ServerTls(certificate, other).context()
    with pytest.raises(ConfigError, match="as authority"):
        ServerTls(certificate, key, tmp_path / "none.crt").context()
    with pytest.raises(ConfigError, match="as authority"):
        UpstreamTls(key).context()
    with pytest.raises(ConfigError, match="cannot use"):
        UpstreamTls(authority.certificate, None, certificate, other).context()


def test_certificates_are_read_again_while_connections_stay(
    start_proxy: Any, connect: Any, authority: Any, stranger: Any, tmp_path: Path
) -> None:
    pem, key = tmp_path / "proxy.crt", tmp_path / "proxy.key"

    def install(pair: tuple[Path, Path]) -> None:
        pem.write_bytes(pair[0].read_bytes())
        key.write_bytes(pair[1].read_bytes())

    install(authority.sign("proxy.example"))
    running = start_proxy("direct", server_tls=ServerTls(pem, key))
    old = connect(running.address, "node_1", credentials=credentials(authority))
    assert old.Echo(b"1") == b"1"
    install(stranger.sign("proxy.example"))
    running.call(running.proxy.reload_certificates)
    assert old.Echo(b"2") == b"2"  # still the same connection
    assert connect(running.address, "node_1", credentials=credentials(stranger)).Echo(b"3") == b"3"
    key.write_text("broken")
    with pytest.raises(ConfigError, match="cannot use"):
        running.call(running.proxy.reload_certificates)
    assert connect(running.address, "node_1", credentials=credentials(stranger)).Echo(b"4") == b"4"


@pytest.mark.parametrize(
    ("node_id", "port_link", "map_", "link"),
    [
        ("named", "by_port", {"127.0.0.1": "by_address"}, "named"),
        (None, "by_port", {"127.0.0.1": "by_address"}, "by_port"),
        (None, "", {"127.0.0.1": "by_address"}, "by_address"),
        (None, "", {"10.0.0.0/8": "by_address"}, "default"),
    ],
)
def test_the_id_goes_before_the_port_and_the_port_before_the_address(  # noqa: PLR0917
    node_id: str | None, port_link: str, map_: dict[str, str], link: str, start_proxy: Any, connect: Any
) -> None:
    running = start_proxy("direct", link_map=LinkMap.of(map_, {}))
    address = running.wait_for(running.proxy.listen("127.0.0.1:0", port_link))
    assert connect(address, node_id).Echo(b"x") == b"x"
    assert [port.name for port in running.ports] == [link] and running.link(link).rpcs == 1


def test_several_ports_have_links_of_their_own(start_proxy: Any, connect: Any) -> None:
    running = start_proxy("direct")
    for link in ("a", "b"):
        address = running.wait_for(running.proxy.listen("127.0.0.1:0", link))
        connect(address).Echo(b"")
    connect(running.address).Echo(b"")
    assert {port.name: port.link.rpcs for port in running.ports} == {"a": 1, "b": 1, "default": 1}


def test_unix_sockets_on_both_sides(start_proxy: Any, connect: Any, service: Any, tmp_path: Path) -> None:
    inner, outer = f"unix:{tmp_path}/inner.sock", f"unix:{tmp_path}/outer.sock"
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((service.handler(),))
    server.add_insecure_port(inner)
    server.start()
    try:
        running = start_proxy("direct", upstream=inner, link_map=LinkMap.of({"0.0.0.0/0": "nobody"}, {}))
        assert running.wait_for(running.proxy.listen(outer, "by_port")) == outer
        client = connect(outer)
        assert client.Echo(bytes(1 << 20)) == bytes(1 << 20)
        assert running.link("by_port").rpcs == 1
        with pytest.raises(ConfigError, match="another process does"):
            running.wait_for(running.proxy.listen(outer))
        assert client.Echo(b"still there") == b"still there"
        running.close()
        assert not (tmp_path / "outer.sock").exists()
    finally:
        server.stop(0).wait()


def test_a_socket_that_was_left_behind_is_replaced_and_a_file_is_not(start_proxy: Any, tmp_path: Path) -> None:
    import socket

    path, file = tmp_path / "old.sock", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    file.write_text("precious")
    running = start_proxy("direct")
    running.wait_for(running.proxy.listen(f"unix:{path}"))
    assert stat.S_ISSOCK(path.stat().st_mode)
    with pytest.raises(ConfigError, match="which is no socket"):
        running.wait_for(running.proxy.listen(f"unix:{file}"))
    assert file.read_text() == "precious"
    remove_stale(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "is_local"),
    [("unix:/run/p.sock", True), ("127.0.0.1:0", True), ("[::1]:5", True), ("localhost:1", True), ("0.0.0.0:1", False)],
)
def test_addresses_of_both_kinds_are_read(text: str, is_local: bool) -> None:
    assert Address.parse(text).is_local is is_local and Address.parse(text).text == text


@pytest.mark.parametrize("text", ["unix:", "unix:" + "x" * 108, "unix:a\0b", "host", "host:99999", ""])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Address.parse(text)


def test_the_longest_path_is_taken() -> None:
    assert len(str(Address.parse("unix:" + "x" * 107).path)) == 107
