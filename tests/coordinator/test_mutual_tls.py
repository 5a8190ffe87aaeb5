"""A coordinator that admits certificates: the name in a node's certificate is its identity, and files are renewed."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from hypergpu.certificates import AUTHORITY, Authority
from hypergpu.common.errors import ConfigError, PermissionDenied, Unavailable
from hypergpu.common.rpc import LEASE, NODE_ID, explain_failure, open_channel
from hypergpu.common.tls import Tls
from hypergpu.node.client import CoordinatorClient
from hypergpu.node.credentials import Credentials
from hypergpu.protos import coordinator_pb2 as pb
from tests.coordinator.test_identity import METHODS, ends, requests_for
from tests.coordinator.test_services import FakeNode, Running, code_of, running

DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority, with a server's certificate and those of two nodes."""
    made = Authority(tmp_path / "certs")
    made.sign_server(["localhost", "127.0.0.1"], 10)
    for node in ("node_1", "node_2"):
        made.sign_node(node, 10)
    return made


def tls_of(directory: Path, name: str = "") -> Tls:
    """Settings of a node with this certificate."""
    certificate, key = (directory / f"node-{name}{end}.pem" if name else None for end in ("", "-key"))
    return Tls(certificate, key, directory / AUTHORITY)


@asynccontextmanager
async def secured(tmp_path: Path, authority: Authority) -> AsyncIterator[Running]:
    certs = tmp_path / "certs"
    server = Tls(certs / "server.pem", certs / "server-key.pem", client_authority=certs / AUTHORITY)
    async with running(tmp_path / "run", tls=server, client_tls=tls_of(certs, "node_1")) as run:
        yield run


async def test_the_name_in_a_certificate_is_the_identity(tmp_path: Path, authority: Authority) -> None:
    async with secured(tmp_path, authority) as run:
        first = run.node("node_1")
        await first.register()
        assert await first.heartbeat() == pb.HeartbeatReply.CONTINUE
        async with open_channel(run.address, tls_of(tmp_path / "certs", "node_2")) as channel:
            thief = FakeNode(channel, "node_1")
            code, text = await code_of(thief.register(incarnation="2"))
            assert (code, "the certificate is for node_2" in text) == (DENIED, True)
            stolen = Running(run.address, run.coordinator, channel, None, "", run.done, run.interrupted, {})
            for method in METHODS:  # with the secret of the other's lease
                request = requests_for("node_1", first.run_id)[method.name]
                for metadata in (first.metadata, [(NODE_ID, "node_2"), (LEASE, run.kept["node_1"])], []):
                    code, _ = await ends(stolen, method, request, metadata)
                    is_own = method.name != "Register" and metadata and metadata[0][1] == "node_2"
                    assert code is (grpc.StatusCode.NOT_FOUND if is_own else DENIED), method.name
            await FakeNode(channel, "node_2").register()


async def test_a_caller_without_a_certificate_of_the_authority_gets_a_hint(
    tmp_path: Path, authority: Authority
) -> None:
    other = Authority(tmp_path / "other")
    other.sign_node("node_1", 10)
    (tmp_path / "other" / AUTHORITY).write_bytes((tmp_path / "certs" / AUTHORITY).read_bytes())
    async with secured(tmp_path, authority) as run:
        for tls, told in (
            (tls_of(tmp_path / "certs"), "wants a certificate of its clients, give --tls-cert and --tls-key"),
            (tls_of(tmp_path / "other", "node_1"), "does it accept"),
        ):
            async with open_channel(run.address, tls) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await FakeNode(channel, "node_1").register()
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                found = await explain_failure(caught.value, run.address, tls)
                assert isinstance(found, Unavailable), found
                assert told in str(found)


def serial(address: str, directory: Path) -> int:
    """Number of the certificate that a server presents to a new connection."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=directory / AUTHORITY)
    context.load_cert_chain(directory / "node-node_1.pem", directory / "node-node_1-key.pem")
    with context.wrap_socket(__import__("socket").create_connection((host, int(port))), server_hostname=host) as socket:
        shown = socket.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


async def test_certificates_are_renewed_without_a_restart(tmp_path: Path, authority: Authority) -> None:
    certs = tmp_path / "certs"
    async with secured(tmp_path, authority) as run:
        before = await asyncio.to_thread(serial, run.address, certs)
        assert await asyncio.to_thread(serial, run.address, certs) == before
        (certs / "server-key.pem").write_text("broken")
        assert await asyncio.to_thread(serial, run.address, certs) == before, "the former pair stays in use"
        renewed = authority.sign_server(["localhost", "127.0.0.1"], 10)
        after = await asyncio.to_thread(serial, run.address, certs)
        assert after == x509.load_pem_x509_certificate(renewed.read_bytes()).serial_number != before
        await run.node("node_1").register()


async def test_a_node_shows_a_renewed_certificate_without_a_restart(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypergpu.common.files._LOOK_SECONDS", 0.0)
    certs = tmp_path / "certs"
    async with (
        secured(tmp_path, authority) as run,
        CoordinatorClient(run.address, Credentials("node_1"), tls=tls_of(certs, "node_1")) as client,
    ):
        reply = await client.register(pb.RegisterRequest(node_id="node_1", incarnation="1"))
        beat = pb.HeartbeatRequest(node_id="node_1", run_id=reply.run_id, state="idle")
        (certs / "node-node_1-key.pem").write_text("broken")
        await client.heartbeat(beat)  # the former pair stays in use
        for end in (".pem", "-key.pem"):
            (certs / f"node-node_1{end}").write_bytes((certs / f"node-node_2{end}").read_bytes())
        with pytest.raises(PermissionDenied, match="the certificate is for node_2"):
            await client.heartbeat(beat)
        authority.sign_node("node_1", 10)
        await client.heartbeat(beat)


def test_an_authority_stays_and_its_key_is_for_its_user_alone(tmp_path: Path) -> None:
    first, again = Authority(tmp_path / "a"), Authority(tmp_path / "a")
    assert first._certificate == again._certificate
    assert (tmp_path / "a" / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    Authority(tmp_path / "b")
    (tmp_path / "b" / "ca-key.pem").write_bytes((tmp_path / "a" / "ca-key.pem").read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        Authority(tmp_path / "b")
    (tmp_path / "b" / "ca-key.pem").write_text("text")
    with pytest.raises(ConfigError, match="cannot use the authority"):
        Authority(tmp_path / "b")
