"""Count of the calls that were refused because of who made them."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter

from hypergpu.common.errors import (
    HyperGPUError,
    NameInUse,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)

_KINDS: Final = (PermissionDenied, NotAuthenticated, NameInUse, NotFound, ResourceExhausted)


class Refusals:
    """Series of the refused calls, by error."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Calls that were refused because of who made them, by error."
        self._refused = Counter("hypergpu_calls_refused", text, ("error",), registry=registry)
        for kind in _KINDS:
            self._refused.labels(kind.__name__)

    def count(self, error: HyperGPUError) -> None:
        """Count an error that ended a call, if it is a refusal."""
        for kind in _KINDS:
            if isinstance(error, kind):
                self._refused.labels(kind.__name__).inc()
                return
