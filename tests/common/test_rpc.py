"""Errors to status and back, addresses, metadata."""

import asyncio
import re
from pathlib import Path
from typing import Any

import grpc
import pytest

from hypergpu.common import errors
from hypergpu.common.address import split_address
from hypergpu.common.rpc import SERVER_OPTIONS, bind, error_from, metadata_for, open_channel, status_of


class FailedCall(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize(
    "kind",
    [
        errors.InvalidInput,
        errors.NotFound,
        errors.CorruptData,
        errors.NotAuthenticated,
        errors.PermissionDenied,
        errors.NameInUse,
        errors.StaleWork,
        errors.Unavailable,
        errors.DeadlineExceeded,
        errors.ResourceExhausted,
        errors.NonFiniteUpdate,
        errors.ProtocolError,
    ],
)
def test_an_error_keeps_its_type_across_the_wire(kind: type[errors.HyperGPUError]) -> None:
    code, text = status_of(kind("what is wrong"))
    back = error_from(FailedCall(code, text), "coordinator at h:1")
    assert type(back) is kind
    assert str(back) == "coordinator at h:1: what is wrong"


def test_a_foreign_error_leaks_nothing() -> None:
    assert status_of(KeyError("secret")) == (grpc.StatusCode.INTERNAL, "internal error (KeyError)")


@pytest.mark.parametrize("address", ["host", "host:", ":80", "host:70000", "host:port", "::1:80"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(errors.ConfigError, match=r"HOST:PORT|brackets"):
        split_address(address)


def test_addresses() -> None:
    assert split_address("coordinator:50051") == ("coordinator", 50051)
    assert split_address("[::1]:0") == ("[::1]", 0)


def test_metadata_carries_the_caller() -> None:
    assert metadata_for("node_1", "t") == (("x-node-id", "node_1"), ("authorization", "Bearer t"))
    assert metadata_for(None, None) == ()


async def test_no_channel_to_this_machine_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    server = grpc.aio.server(options=SERVER_OPTIONS)
    address = bind(server, "127.0.0.1:0", None)
    await server.start()
    for allowed in (False, True):
        async with open_channel(address, None, http_proxy=allowed) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                call: Any = channel.unary_unary("/a.Service/Method")
                await call(b"", timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, "the server itself answers"
    await server.stop(None)


async def test_another_machine_is_dialled_through_a_proxy_only_where_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.close()
        await writer.wait_closed()

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = proxy.sockets[0].getsockname()
    monkeypatch.setenv("http_proxy", f"http://{host}:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    for allowed in (False, True):
        async with open_channel("coordinator.invalid:50051", None, http_proxy=allowed) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                call: Any = channel.unary_unary("/a.Service/Method")
                await call(b"", timeout=3)
        assert asked.is_set() is allowed
    proxy.close()
    await proxy.wait_closed()


def test_every_channel_is_made_in_one_place() -> None:
    root = Path(__file__).parents[2]
    packages = ("coordinator", "examples", "hypergpu", "netsim_proxy", "node")
    made = [
        str(file.relative_to(root))
        for package in packages
        for file in (root / package).rglob("*.py")
        if re.search(r"\b(?:insecure|secure)_channel\(|\burlopen\(", file.read_text())
    ]
    foreign = ["examples/any_grpc_service.py"]  # an application that knows nothing of HyperGPU
    assert sorted(made) == [*foreign, "hypergpu/common/rpc.py"]
