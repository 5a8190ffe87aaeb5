"""What all servicers share: the join token, errors as statuses, and who is calling."""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import structlog

from hypergpu.common.errors import HyperGPUError, InvalidInput, NotAuthenticated
from hypergpu.common.rpc import AUTHORIZATION, NODE_ID, status_of

log = structlog.get_logger()
Request = TypeVar("Request")
Reply = TypeVar("Reply")
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:  # the real classes take no parameters
    Context, Handler = grpc.aio.ServicerContext, grpc.RpcMethodHandler
_OPEN = ("/grpc.health.v1.", "/grpc.reflection.")


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets no call through without the join token, but for health and reflection."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler of the call, or one that refuses it."""
        if handler_call_details.method.startswith(_OPEN):
            return await continuation(handler_call_details)
        given = dict(handler_call_details.invocation_metadata).get(AUTHORIZATION, "")
        if hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected):
            return await continuation(handler_call_details)
        handler = await continuation(handler_call_details)
        return _refusal(handler) if handler is not None else handler


def _refusal(handler: Handler) -> Handler:
    code, details = status_of(NotAuthenticated("the join token is missing or wrong: give the coordinator's --token"))

    async def one(_: Any, context: Context) -> None:
        await context.abort(code, details)

    async def many(_: Any, context: Context) -> AsyncIterator[Any]:
        await context.abort(code, details)
        yield  # never reached: it makes this a generator

    if handler.response_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(many)
    make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
    return make(one)


def unary(method: Callable[[Any, Request, Context], Awaitable[Reply]]) -> Callable[..., Awaitable[Reply]]:
    """A handler with one reply, whose errors become statuses."""

    @wraps(method)
    async def handler(self: Any, request: Request, context: Context) -> Reply:
        try:
            return await method(self, request, context)
        except HyperGPUError as error:
            await context.abort(*status_of(error))
        except Exception as error:
            log.exception("a call failed", method=method.__name__)
            await context.abort(*status_of(error))
        raise AssertionError("abort raises")

    return handler


def streaming(method: Callable[[Any, Request, Context], AsyncIterator[Reply]]) -> Callable[..., AsyncIterator[Reply]]:
    """A handler with a stream of replies, whose errors become statuses."""

    @wraps(method)
    async def handler(self: Any, request: Request, context: Context) -> AsyncIterator[Reply]:
        try:
            async for reply in method(self, request, context):
                yield reply
        except HyperGPUError as error:
            await context.abort(*status_of(error))
        except Exception as error:
            log.exception("a call failed", method=method.__name__)
            await context.abort(*status_of(error))

    return handler


def caller(context: Context) -> str:
    """The node that the call's metadata names; empty where it names none."""
    for key, value in context.invocation_metadata() or ():
        if key == NODE_ID:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return ""


def require_caller(context: Context, node: str) -> None:
    """Check that the message speaks for the node that calls.

    Raises:
        InvalidInput: the metadata names another node.
    """
    named = caller(context)
    if named and named != node:
        raise InvalidInput(f"the call is of node {named[:80]!r} ({NODE_ID}) and speaks for {node[:80]!r}")


def peer_host(context: Context) -> str:
    """The address that the call comes from, without its port: `ipv4:10.0.0.7:4711` -> `10.0.0.7`."""
    kind, _, address = context.peer().partition(":")
    host = address.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""
    return host.replace("%5B", "").replace("%5D", "").strip("[]")
