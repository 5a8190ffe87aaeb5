"""Set-up that all gRPC servers share: token check, errors as status codes, logging, health and reflection."""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hypergpu.common.errors import HyperGPUError, NotAuthenticated
from hypergpu.common.rpc import AUTHORIZATION, SERVER_OPTIONS, status_of

log = structlog.get_logger()
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:  # the real classes take no parameters
    Context, Handler = grpc.aio.ServicerContext, grpc.RpcMethodHandler
_OPEN_TO_ALL: Final = ("/grpc.health.v1.", "/grpc.reflection.")
"""Prefixes of methods that need no token: probes have none, and reflection lists no more than our public protos."""
_STREAMING: Final = {False: "unary", True: "stream"}


async def make_server(
    services: Sequence[str], *, token: str | None, rejection: str, max_concurrent_rpcs: int
) -> grpc.aio.Server:
    """Return a server with health and reflection. The caller adds its servicers, then binds and starts it.

    Args:
        services: full names of the services, as health and reflection report them.
        token: bearer token that every call needs; without one, every caller is admitted.
        rejection: message for a caller without the token.
        max_concurrent_rpcs: further calls end with RESOURCE_EXHAUSTED.
    """
    server = grpc.aio.server(
        options=SERVER_OPTIONS,
        interceptors=[CallGuard(token, rejection)],
        maximum_concurrent_rpcs=max_concurrent_rpcs,
    )
    checks = health.aio.HealthServicer()
    for name in ("", *services):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return server


class CallGuard(grpc.aio.ServerInterceptor):
    """Rejects calls without the token and turns errors into status codes; health and reflection are left alone."""

    def __init__(self, token: str | None, rejection: str) -> None:
        self._expected = f"Bearer {token}".encode() if token else None
        self._rejection = rejection

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the guarded handler of a call; None for an unknown method."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_OPEN_TO_ALL):
            return handler
        given = dict(handler_call_details.invocation_metadata or ()).get(AUTHORIZATION, "")
        return _guarded(handler, method, None if self._admits(given) else self._rejection)

    def _admits(self, given: str | bytes) -> bool:
        if self._expected is None:
            return True
        return hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected)


def _guarded(handler: Handler, method: str, rejection: str | None) -> Handler:
    """Return `handler` with its errors as status codes; given a rejection, every call ends with NotAuthenticated."""
    arity = f"{_STREAMING[handler.request_streaming]}_{_STREAMING[handler.response_streaming]}"
    behaviour: Any = getattr(handler, arity)

    async def one(request: Any, context: Context) -> Any:
        try:
            if rejection is not None:
                raise NotAuthenticated(rejection)
            return await behaviour(request, context)
        except Exception as error:
            await _abort(context, method, error)

    async def many(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            if rejection is not None:
                raise NotAuthenticated(rejection)
            async for reply in behaviour(request, context):
                yield reply
        except Exception as error:
            await _abort(context, method, error)

    replaceable: Any = handler  # a named tuple, which its type does not say
    guarded: Handler = replaceable._replace(**{arity: many if handler.response_streaming else one})
    return guarded


async def _abort(context: Context, method: str, error: Exception) -> None:
    """End a call with the status of an error; one that is not of our tree is a bug and is logged with its traceback."""
    if not isinstance(error, HyperGPUError):
        log.error("a call failed", method=method, exc_info=error)
    await context.abort(*status_of(error))
