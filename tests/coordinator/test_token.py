"""The join token, before every method that a coordinator has."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from hypergpu.common.grpc_server import CallGuard, token_check
from hypergpu.common.rpc import SERVER_OPTIONS, bind, open_channel
from hypergpu.protos import coordinator_pb2

TOKEN = "secret-token"
WRONG = (None, "", TOKEN, "Bearer ", "Bearer secre", "Bearer secret-toke", "Bearer secret-token1", f"bearer {TOKEN}")
SERVICES: list[Any] = [*coordinator_pb2.DESCRIPTOR.services_by_name.values()]
OPEN: list[Any] = [
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    *reflection_pb2.DESCRIPTOR.services_by_name.values(),
]
METHODS = [method for service in SERVICES for method in service.methods]


async def _one(request: Any, context: Any) -> bytes:
    return b"reached"


async def _many(request: Any, context: Any) -> AsyncIterator[bytes]:
    yield b"reached"


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """A server with every method, guarded as the coordinator's."""
    server = grpc.aio.server(
        options=SERVER_OPTIONS, interceptors=[CallGuard(token_check(TOKEN, "the join token is missing or wrong"))]
    )
    for service in [*SERVICES, *OPEN]:
        handlers: dict[str, Any] = {}
        for method in service.methods:
            into = "stream" if method.client_streaming else "unary"
            out = "stream" if method.server_streaming else "unary"
            make = getattr(grpc, f"{into}_{out}_rpc_method_handler")
            handlers[method.name] = make(_many if method.server_streaming else _one)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    bound = bind(server, "127.0.0.1:0", None)
    await server.start()
    yield bound
    await server.stop(None)


async def answer(channel: grpc.aio.Channel, method: Any, shown: str | None) -> Any:
    """What a call with this authorization brings: the reply, or the status."""
    into = "stream" if method.client_streaming else "unary"
    out = "stream" if method.server_streaming else "unary"
    call: Any = getattr(channel, f"{into}_{out}")(f"/{method.containing_service.full_name}/{method.name}")
    metadata = () if shown is None else (("authorization", shown),)
    request: Any = iter([b""]) if method.client_streaming else b""
    try:
        made = call(request, metadata=metadata, timeout=20)
        return await (made.read() if method.server_streaming else made)
    except grpc.aio.AioRpcError as error:
        return error.code()


def test_there_are_methods_of_every_kind() -> None:
    kinds = {(method.client_streaming, method.server_streaming) for method in METHODS}
    assert kinds >= {(False, False), (False, True), (True, False)}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
async def test_every_method_needs_the_whole_token(address: str, method: Any) -> None:
    async with open_channel(address, None) as channel:
        for shown in WRONG:
            assert await answer(channel, method, shown) is grpc.StatusCode.UNAUTHENTICATED, shown
        assert await answer(channel, method, f"Bearer {TOKEN}") == b"reached"


async def test_health_and_reflection_are_open_by_design(address: str) -> None:
    async with open_channel(address, None) as channel:
        for service in OPEN:
            for method in service.methods:
                assert await answer(channel, method, None) == b"reached"
