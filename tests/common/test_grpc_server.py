"""Servers as all services set them up: who is admitted, how errors end a call, and what probes are told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from hypergpu.common.errors import InvalidInput, NotAuthenticated, StaleWork
from hypergpu.common.grpc_server import Context, make_server
from hypergpu.common.rpc import bind, open_channel

SERVICE = "hypergpu.netsim.v1.Netsim"  # one whose descriptor is known, so that reflection can name it


async def echo(request: bytes, context: Any) -> bytes:
    if request == b"invalid":
        raise InvalidInput("batch_size is 0")
    if request == b"bug":
        raise KeyError("/home/user/secret")
    return request


async def echo_twice(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    if request == b"stale":
        raise StaleWork("round 3 is over")
    yield request


async def concatenate(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b"".join([request async for request in requests])


def token_check(token: str | None) -> Any:
    def admit(method: str, context: Context) -> None:
        assert method.startswith(f"/{SERVICE}/")
        shown = dict(context.invocation_metadata() or ()).get("authorization")
        if token and shown != f"Bearer {token}":
            raise NotAuthenticated("give --token")

    return admit


async def check(request: health_pb2.HealthCheckRequest, context: Context) -> bytes:
    return request.service.encode()


async def check_all(requests: AsyncIterator[health_pb2.HealthCheckRequest], context: Context) -> bytes:
    return b"".join([request.service.encode() async for request in requests])


@asynccontextmanager
async def serving(token: str | None = None) -> AsyncIterator[Any]:
    server = await make_server([SERVICE], admit=token_check(token), max_concurrent_rpcs=8)
    handlers: dict[str, Any] = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "EchoTwice": grpc.unary_stream_rpc_method_handler(echo_twice),
        "Concatenate": grpc.stream_unary_rpc_method_handler(concatenate),
        "Check": grpc.unary_unary_rpc_method_handler(check, health_pb2.HealthCheckRequest.FromString),
        "CheckAll": grpc.stream_unary_rpc_method_handler(check_all, health_pb2.HealthCheckRequest.FromString),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    address = bind(server, "127.0.0.1:0", None)
    await server.start()
    async with open_channel(address, None) as channel:
        yield channel
    await server.stop(None)


async def call(channel: Any, request: bytes, token: str = "") -> bytes | tuple[grpc.StatusCode, str]:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    try:
        reply: bytes = await channel.unary_unary(f"/{SERVICE}/Echo")(request, metadata=metadata, timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return reply


async def test_without_a_token_everybody_is_admitted() -> None:
    async with serving() as channel:
        assert await call(channel, b"hello") == b"hello"
        parts = channel.stream_unary(f"/{SERVICE}/Concatenate")(iter([b"a", b"b"]), timeout=20)
        assert await parts == b"ab"


async def test_a_call_without_the_token_is_rejected_with_advice_each_time() -> None:
    async with serving("secret") as channel:
        for token in ("", "secre", "secret1"):
            assert await call(channel, b"hello", token) == (grpc.StatusCode.UNAUTHENTICATED, "give --token")
        assert await call(channel, b"hello", "secret") == b"hello"


async def test_an_error_of_ours_ends_a_call_with_its_status_and_message() -> None:
    async with serving() as channel:
        with capture_logs() as logged:
            assert await call(channel, b"invalid") == (grpc.StatusCode.INVALID_ARGUMENT, "batch_size is 0")
        assert logged == []


async def test_a_bug_is_logged_and_its_message_stays_here() -> None:
    async with serving() as channel:
        with capture_logs() as logged:
            assert await call(channel, b"bug") == (grpc.StatusCode.INTERNAL, "internal error (KeyError)")
    assert [(entry["event"], entry["method"]) for entry in logged] == [("a call failed", f"/{SERVICE}/Echo")]
    assert isinstance(logged[0]["exc_info"], KeyError)


async def test_an_error_ends_a_stream_after_what_was_sent_before() -> None:
    async with serving() as channel:
        stream = channel.unary_stream(f"/{SERVICE}/EchoTwice")
        assert [part async for part in stream(b"fine", timeout=20)] == [b"fine", b"fine"]
        received = []
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for part in stream(b"stale", timeout=20):
                received.append(part)  # noqa: PERF401  (what came before the error counts)
        assert received == [b"stale"]
        assert (raised.value.code(), raised.value.details()) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "round 3 is over",
        )


async def test_an_unknown_method_is_unimplemented() -> None:
    async with serving("secret") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=20)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_is_told_without_a_token(service: str) -> None:
    async with serving("secret") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services_without_a_token() -> None:
    async with serving("secret") as channel:
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        replies = [reply async for reply in reflection.ServerReflectionInfo(iter([request]), timeout=20)]
        names = {service.name for service in replies[0].list_services_response.service}
        assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


MALFORMED = (grpc.StatusCode.ABORTED, "the message is malformed or of another call")


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_malformed_message_is_an_error_of_ours_and_no_traceback(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    method, arity, sent = {
        "unary": ("Check", "unary_unary", b"\xff"),
        "stream": ("CheckAll", "stream_unary", iter([b"", b"\xff"])),
    }[kind]
    async with serving() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await getattr(channel, arity)(f"/{SERVICE}/{method}")(sent, timeout=20)
    assert (raised.value.code(), raised.value.details()) == MALFORMED
    assert not caplog.records


async def test_a_message_is_not_decoded_before_its_caller_is_admitted() -> None:
    async with serving("secret") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(f"/{SERVICE}/Check")(b"\xff", timeout=20)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_malformed_probe_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with serving("secret") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff", timeout=20)
    assert (raised.value.code(), raised.value.details()) == MALFORMED
    assert not caplog.records


async def silence() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def test_a_stranger_who_sends_nothing_takes_no_place() -> None:
    async with serving("secret") as channel:
        for _ in range(9):  # one more than there are places
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.stream_unary(f"/{SERVICE}/Echo")(silence(), timeout=20)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_message_that_does_not_come_ends_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypergpu.common.grpc_server.MESSAGE_SECONDS", 0.01)
    async with serving() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.stream_unary(f"/{SERVICE}/Echo")(silence(), timeout=20)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.stream_unary(f"/{SERVICE}/Echo")(iter([]), timeout=20)
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.ABORTED, "the call has no message")
