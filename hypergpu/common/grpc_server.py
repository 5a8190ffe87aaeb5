"""Set-up that all gRPC servers share: check of callers, errors as status codes, logging, health and reflection."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hypergpu.common.errors import DeadlineExceeded, HyperGPUError, ProtocolError
from hypergpu.common.rpc import SERVER_OPTIONS, status_of

log = structlog.get_logger()
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:  # the real classes take no parameters
    Context, Handler = grpc.aio.ServicerContext, grpc.RpcMethodHandler
Admit = Callable[[str, Context], None]
"""Check of the caller of a method, before any message is read; raises the error that ends the call."""
OnError = Callable[[HyperGPUError], None]
MESSAGE_SECONDS: Final = 60.0
"""Time for the message of a call, during which it takes one of the places of `max_concurrent_rpcs`."""
_OPEN_TO_ALL: Final = ("/grpc.health.v1.", "/grpc.reflection.")
"""Prefixes of methods that need no token: probes have none, and reflection lists no more than our public protos."""
_STREAMING: Final = {False: "unary", True: "stream"}


async def make_server(
    services: Sequence[str], *, admit: Admit, max_concurrent_rpcs: int, on_error: OnError = lambda error: None
) -> grpc.aio.Server:
    """Return a server with health and reflection. The caller adds its servicers, then binds and starts it.

    Args:
        services: full names of the services, as health and reflection report them.
        admit: check of every call.
        max_concurrent_rpcs: further calls end with RESOURCE_EXHAUSTED.
        on_error: called with each error of our tree that ends a call.
    """
    server = grpc.aio.server(
        options=SERVER_OPTIONS,
        interceptors=[CallGuard(admit, on_error)],
        maximum_concurrent_rpcs=max_concurrent_rpcs,
    )
    checks = health.aio.HealthServicer()
    for name in ("", *services):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return server


class CallGuard(grpc.aio.ServerInterceptor):
    """Admits calls, decodes their messages, and turns errors into status codes; health and reflection admit all.

    A call is admitted before its message is awaited and decoded. gRPC would do both first: any stranger could take all
    places for calls by sending nothing, and fill the disk with the tracebacks of malformed messages.
    """

    def __init__(self, admit: Admit, on_error: OnError = lambda error: None) -> None:
        self._admit, self._on_error = admit, on_error

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the guarded handler of a call; None for an unknown method."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        admit = _admit_all if method.startswith(_OPEN_TO_ALL) else self._admit
        return _guarded(handler, method, admit, self._on_error)


def _admit_all(method: str, context: Context) -> None:
    """Admit every caller."""


def peer_host(context: Context) -> str:
    """Return the caller's address without the port: `ipv4:10.0.0.7:4711` -> `10.0.0.7`."""
    kind, _, address = context.peer().partition(":")
    host = address.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""
    return host.replace("%5B", "").replace("%5D", "").strip("[]")


def _guarded(handler: Handler, method: str, admit: Admit, on_error: OnError) -> Handler:
    """Return `handler` behind the check, with the errors of both as status codes.

    Every request is taken as a stream, so that a call is refused before its message has come.
    """
    decode = handler.request_deserializer
    arity = f"{_STREAMING[handler.request_streaming]}_{_STREAMING[handler.response_streaming]}"
    behaviour: Any = getattr(handler, arity)

    async def request_of(stream: AsyncIterator[bytes]) -> Any:
        return _decoded_each(decode, stream) if handler.request_streaming else _decoded(decode, await _only(stream))

    async def one(stream: AsyncIterator[bytes], context: Context) -> Any:
        try:
            admit(method, context)
            return await behaviour(await request_of(stream), context)
        except Exception as error:
            await _abort(context, method, error, on_error)

    async def many(stream: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        try:
            admit(method, context)
            async for reply in behaviour(await request_of(stream), context):
                yield reply
        except Exception as error:
            await _abort(context, method, error, on_error)

    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(many, None, handler.response_serializer)
    return grpc.stream_unary_rpc_method_handler(one, None, handler.response_serializer)


async def _only(stream: AsyncIterator[bytes]) -> bytes:
    """Return the message of a call that has one.

    Raises:
        DeadlineExceeded: It does not come.
        ProtocolError: There is none.
    """
    try:
        async with asyncio.timeout(MESSAGE_SECONDS):
            async for data in stream:
                return data
    except TimeoutError as error:
        raise DeadlineExceeded(f"the message of the call did not come within {MESSAGE_SECONDS:g} s") from error
    raise ProtocolError("the call has no message")


def _decoded(decode: Callable[[bytes], Any] | None, data: bytes) -> Any:
    """Return the message that the bytes of a request hold.

    Raises:
        ProtocolError: they are none of this method.
    """
    try:
        return data if decode is None else decode(data)
    except DecodeError as error:
        raise ProtocolError("the message is malformed or of another call") from error


async def _decoded_each(decode: Callable[[bytes], Any] | None, stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    """Yield the messages of a stream of requests."""
    async for data in stream:
        yield _decoded(decode, data)


async def _abort(context: Context, method: str, error: Exception, on_error: OnError) -> None:
    """End a call with the status of an error; one that is not of our tree is a bug and is logged with its traceback."""
    if not isinstance(error, HyperGPUError):
        log.error("a call failed", method=method, exc_info=error)
    else:
        on_error(error)
    await context.abort(*status_of(error))
