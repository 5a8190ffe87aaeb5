"""Roles: every method of every service, before every token, over real gRPC."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from hypergpu.common.grpc_server import CallGuard
from hypergpu.common.roles import ROLES, Role, role_check
from hypergpu.common.rpc import SERVER_OPTIONS, bind, open_channel
from hypergpu.common.token import TokenSource, token_file
from hypergpu.protos import coordinator_pb2, netsim_pb2

SERVICES: list[Any] = [
    *coordinator_pb2.DESCRIPTOR.services_by_name.values(),
    *netsim_pb2.DESCRIPTOR.services_by_name.values(),
]
OPEN: list[Any] = [
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    *reflection_pb2.DESCRIPTOR.services_by_name.values(),
]
METHODS = [method for service in SERVICES for method in service.methods]
TOKENS = {role: f"{role}-token" for role in Role}
READING = {"ListNodes", "WatchEvents", "ListLinks", "ListScheduled", "Watch"}
"""What a viewer may do, beside GetStatus, which everybody with a token may."""
DENIED, UNKNOWN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
WRONG = (
    None,
    "",
    TOKENS[Role.OPERATOR],
    "Bearer ",
    "Bearer operator-toke",
    "Bearer operator-token1",
    "bearer node-token",
)


def may(role: Role, method: Any) -> bool:
    """Whether a role may call a method: written a second time, and otherwise, than in the table."""
    if method.containing_service.name == "Training":
        return role is Role.NODE
    return method.name == "GetStatus" or role is Role.OPERATOR or (role is Role.VIEWER and method.name in READING)


async def _one(request: Any, context: Any) -> bytes:
    return b"reached"


async def _many(request: Any, context: Any) -> AsyncIterator[bytes]:
    yield b"reached"


async def serve(tokens: Mapping[Role, TokenSource]) -> tuple[grpc.aio.Server, str]:
    """Start a server with every method there is, guarded as those of the services."""
    server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[CallGuard(role_check(tokens))])
    for service in [*SERVICES, *OPEN]:
        handlers: dict[str, Any] = {}
        for method in service.methods:
            make = getattr(grpc, f"{kind(method)}_rpc_method_handler")
            handlers[method.name] = make(_many if method.server_streaming else _one)
        handlers["NewMethod"] = grpc.unary_unary_rpc_method_handler(_one)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    address = bind(server, "127.0.0.1:0", None)
    await server.start()
    return server, address


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """A server on which every role has a token."""
    server, bound = await serve({role: TokenSource([token]) for role, token in TOKENS.items()})
    yield bound
    await server.stop(None)


def kind(method: Any) -> str:
    into = "stream" if method.client_streaming else "unary"
    return f"{into}_{'stream' if method.server_streaming else 'unary'}"


async def answer(channel: grpc.aio.Channel, method: Any, shown: str | None) -> Any:
    """Reply to a call with this authorization, or its status."""
    call: Any = getattr(channel, kind(method))(f"/{method.containing_service.full_name}/{method.name}")
    metadata = () if shown is None else (("authorization", shown),)
    request: Any = iter([b""]) if method.client_streaming else b""
    try:
        made = call(request, metadata=metadata, timeout=20)
        return await (made.read() if method.server_streaming else made)
    except grpc.aio.AioRpcError as error:
        return error.code()


def test_every_method_of_every_service_has_a_role_and_no_other_has() -> None:
    assert ROLES.keys() == {f"/{method.containing_service.full_name}/{method.name}" for method in METHODS}


def test_there_are_methods_of_every_kind() -> None:
    assert {kind(method) for method in METHODS} >= {"unary_unary", "unary_stream", "stream_unary"}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
async def test_every_method_takes_the_tokens_of_its_roles_and_no_other(address: str, method: Any) -> None:
    async with open_channel(address, None) as channel:
        for shown in WRONG:
            assert await answer(channel, method, shown) is UNKNOWN, shown
        for role, token in TOKENS.items():
            expected: Any = b"reached" if may(role, method) else DENIED
            assert await answer(channel, method, f"Bearer {token}") == expected, role


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.full_name)
async def test_a_method_without_a_role_is_closed_to_everybody(address: str, service: Any) -> None:
    async with open_channel(address, None) as channel:
        for token in TOKENS.values():
            call: Any = channel.unary_unary(f"/{service.full_name}/NewMethod")
            with pytest.raises(grpc.aio.AioRpcError, match="it has no role"):
                await call(b"", metadata=(("authorization", f"Bearer {token}"),), timeout=20)


async def test_health_and_reflection_are_open_by_design(address: str) -> None:
    async with open_channel(address, None) as channel:
        for service in OPEN:
            for method in service.methods:
                assert await answer(channel, method, None) == b"reached"


async def test_without_any_token_everything_is_open() -> None:
    server, bound = await serve({})
    async with open_channel(bound, None) as channel:
        for method in METHODS:
            assert await answer(channel, method, None) == b"reached"
    await server.stop(None)


async def test_with_an_operator_token_alone_only_nodes_need_none() -> None:
    server, bound = await serve({Role.OPERATOR: TokenSource(["o"]), Role.NODE: TokenSource()})
    async with open_channel(bound, None) as channel:
        for method in METHODS:
            is_of_nodes = method.containing_service.name == "Training"
            assert await answer(channel, method, None) == (b"reached" if is_of_nodes else UNKNOWN)
    await server.stop(None)


async def test_tokens_rotate_without_a_restart(tmp_path: Path) -> None:
    now = [0.0]
    file = tmp_path / "operator-token"
    file.write_text("old")
    tokens = TokenSource(token_file(file, "f").all, file, "f", lambda: now[0])
    server, bound = await serve({Role.OPERATOR: tokens})
    pause = next(method for method in METHODS if method.name == "Pause")
    async with open_channel(bound, None) as channel:
        for content, valid in (("old", {"old"}), ("new\nold\n", {"new", "old"}), ("new\n", {"new"})):
            file.write_text(content)
            now[0] += 1.0
            for token in ("old", "new"):
                expected = b"reached" if token in valid else UNKNOWN
                assert await answer(channel, pause, f"Bearer {token}") == expected, (content, token)
    await server.stop(None)
