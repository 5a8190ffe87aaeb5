"""Certificates: each fault is told as what it is, with the path, and a handshake that fails by its cause."""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from hypergpu.certificates import AUTHORITY, Authority
from hypergpu.common.errors import ConfigError, HyperGPUError, TlsError, Unavailable
from hypergpu.common.rpc import SERVER_OPTIONS, bind, explain_failure, open_channel
from hypergpu.common.tls import Tls, read_authority, read_pair


@pytest.fixture
def files(tmp_path: Path, certificates: Any) -> dict[str, Path]:
    good, other = certificates.make("good"), certificates.make("other")
    expired = certificates.make("expired", since="20200101", until="20210101")
    future = certificates.make("future", since="20980101", until="20990101")
    made = {
        "good": good.certificate,
        "good key": good.key,
        "other key": other.key,
        "encrypted key": certificates.encrypted(good.key),
        "expired": expired.certificate,
        "expired key": expired.key,
        "future": future.certificate,
        "future key": future.key,
        "missing": tmp_path / "missing.pem",
        "folder": tmp_path,
    }
    for name, text in (
        ("text", "hello"),
        ("broken", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("broken key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
    ):
        made[name] = tmp_path / f"{name.replace(' ', '-')}.pem"
        made[name].write_text(text)
    Authority(tmp_path / "own")
    for name, mark, offset, byte in (
        ("no date", b"\x17\x0d", 4, ord("x")),  # a letter in a UTCTime of 13 characters
        ("no name", b"\x55\x04\x03", 3, 0x08),  # a common name of another type than text
    ):
        made[name] = tmp_path / f"{name.replace(' ', '-')}.pem"
        made[name].write_text(changed((tmp_path / "own" / AUTHORITY).read_text(), mark, offset, byte))
    return made


def changed(certificate: str, mark: bytes, offset: int, byte: int) -> str:
    """Return a certificate with another byte so far behind a mark."""
    data = bytearray(ssl.PEM_cert_to_DER_cert(certificate))
    data[data.index(mark) + offset] = byte
    return ssl.DER_cert_to_PEM_cert(bytes(data))


BAD_PAIRS = [
    ("missing", "good key", "missing", "cannot read {}: No such file or directory"),
    ("good", "missing", "missing", "cannot read {}: No such file or directory"),
    ("folder", "good key", "folder", "cannot read {}: Is a directory"),
    ("good", "folder", "folder", "cannot read {}: Is a directory"),
    ("text", "good key", "text", "{} holds no PEM certificate"),
    ("good", "text", "text", "{} holds no PEM private key"),
    ("good key", "good", "good key", "{} holds a private key: give the certificate"),
    ("good", "good", "good", "{} holds a certificate: give the private key"),
    ("good", "other key", "other key", "the private key {} is not that of the certificate"),
    ("good", "encrypted key", "encrypted key", "the private key {} is encrypted"),
    ("expired", "expired key", "expired", "the certificate {} has expired"),
    ("future", "future key", "future", "the certificate {} is not valid yet"),
    ("broken", "good key", "broken", "cannot use the certificate {} with the key"),
    ("good", "broken key", "broken key", "with the key {}: what is in it cannot be decoded"),
]


@pytest.mark.parametrize(("certificate", "key", "named", "told"), BAD_PAIRS)
async def test_a_server_tells_a_bad_certificate_as_what_it_is(
    files: dict[str, Path], certificate: str, key: str, named: str, told: str
) -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    with pytest.raises(ConfigError) as caught:
        bind(server, "127.0.0.1:0", Tls(certificate=files[certificate], key=files[key]))
    assert told.format(files[named]) in str(caught.value)
    assert "port" not in str(caught.value)


def test_a_good_pair_is_read(files: dict[str, Path]) -> None:
    assert read_pair(files["good"], files["good key"]) == (files["good"].read_bytes(), files["good key"].read_bytes())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing", "cannot read {}: No such file"),
        ("text", "{} holds no PEM certificate"),
        ("good key", "{} holds a private key: give the certificate"),
        ("broken", "{} holds no certificate that can be used"),
        ("expired", "the certificate authority {} expired on Jan  1 00:00:00 2021 GMT"),
        ("future", "the certificate authority {} is not valid before Jan  1 00:00:00 2098 GMT"),
        ("no name", "{} holds no certificate that can be used"),
        ("no date", "the certificate authority {} is damaged: it is valid from 'Bad time value'"),
    ],
)
def test_a_client_tells_a_bad_authority(files: dict[str, Path], name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_authority(files[name])
    assert told.format(files[name]) in str(caught.value)


def test_an_authority_that_is_partly_expired_is_taken(files: dict[str, Path], tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(files["expired"].read_bytes() + files["good"].read_bytes())
    assert read_authority(both) == both.read_bytes()


@asynccontextmanager
async def served(tls: Tls | None) -> AsyncIterator[str]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    address = bind(server, "127.0.0.1:0", tls)
    await server.start()
    yield f"localhost:{address.rpartition(':')[2]}"
    await server.stop(None)


async def failure(address: str, tls: Tls | None) -> HyperGPUError:
    async with open_channel(address, tls) as channel:
        call: Any = channel.unary_unary("/a.Service/Method")
        try:
            await call(b"", timeout=20)
        except grpc.RpcError as error:
            return await explain_failure(error, address, tls)
    raise AssertionError("the call went through")


async def test_a_certificate_of_another_authority_is_named(certificates: Any) -> None:
    mine, other = certificates.make("mine"), certificates.make("stranger")
    async with served(Tls(mine.certificate, mine.key)) as address:
        told = await failure(address, Tls(authority=other.certificate))
    assert type(told) is TlsError
    assert f"the certificate of {address} is not trusted: it is not signed by an authority that" in str(told)
    assert str(other.certificate) in str(told)


async def test_a_certificate_for_another_name_is_named(certificates: Any) -> None:
    elsewhere = certificates.make("elsewhere", host="elsewhere.example")
    async with served(Tls(elsewhere.certificate, elsewhere.key)) as address:
        told = await failure(address, Tls(authority=elsewhere.certificate))
    assert type(told) is TlsError
    assert "it is for another name" in str(told)
    assert "localhost" in str(told)


async def test_tls_on_one_side_only_is_named_both_ways(certificates: Any) -> None:
    pair = certificates.make("pair")
    async with served(Tls(pair.certificate, pair.key)) as address:
        told = await failure(address, None)
        assert (type(told), str(told)) == (
            TlsError,
            f"{address} speaks TLS: give --tls-ca FILE instead of --insecure",
        )
    async with served(None) as address:
        told = await failure(address, Tls(authority=pair.certificate))
        assert type(told) is TlsError
        assert f"{address} does not use TLS: give --insecure" in str(told)


async def test_a_server_that_is_not_there_yet_is_no_fault_of_certificates(certificates: Any) -> None:
    pair = certificates.make("absent")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        for tls in (None, Tls(authority=pair.certificate)):
            assert type(await failure(address, tls)) is Unavailable


async def test_a_call_that_a_server_refuses_is_told_as_it_was_refused(certificates: Any) -> None:
    pair = certificates.make("refusing")
    async with served(Tls(pair.certificate, pair.key)) as address:
        assert type(await failure(address, Tls(authority=pair.certificate))).__name__ == "ProtocolError"


def test_a_port_that_is_taken_is_told_apart(certificates: Any) -> None:
    from hypergpu.common.rpc import _check_free

    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: the port is in use"):
            _check_free("127.0.0.1", port)
    with pytest.raises(ConfigError, match="this machine has no such address"):
        _check_free("192.0.2.1", 0)
