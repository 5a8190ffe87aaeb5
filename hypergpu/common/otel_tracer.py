"""Tracer on OpenTelemetry's SDK: spans wait in a bounded queue, and a thread sends them by OTLP."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import structlog
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags, set_span_in_context

from hypergpu.common.clock import monotonic
from hypergpu.common.tracing import OpenSpan, Value, parts_of
from hypergpu.common.version import package_version

CLOSE_SECONDS: Final = 3.0
"""Time that the receiver has at the end of a process."""
_PREFIX: Final = "hypergpu."

log = structlog.get_logger()


class OtelTracer:
    """Maker of spans of one process.

    Args:
        exporter: Sender of spans.
        service: Name of the service.
        attributes: Attributes of every span.
    """

    is_on: Final = True

    def __init__(self, exporter: SpanExporter, service: str, attributes: Mapping[str, str]) -> None:
        own = {_PREFIX + name: value for name, value in attributes.items()}
        resource = Resource.create({"service.name": service, "service.version": package_version(), **own})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_Quiet(exporter)))
        self._tracer = self._provider.get_tracer("hypergpu", package_version())
        self._epoch_ns = time.time_ns() - round(monotonic() * 1e9)
        """Beginning of the monotonic clock."""

    def begin(self, name: str, parent: str = "", **attributes: Value) -> OpenSpan:
        """Begin a span below the context `parent`, or else a trace."""
        return self._begin(name, parent, monotonic(), attributes)

    def span(self, name: str, parent: str = "", **attributes: Value) -> AbstractContextManager[str]:
        """Return a context manager whose time is a span, and whose value is its context; an error is its outcome."""
        return self._span(name, parent, attributes)

    def record(self, name: str, parent: str, began: float, ended: float, **attributes: Value) -> None:
        """Add a span between two times of the monotonic clock."""
        self._begin(name, parent, began, attributes).end_at(ended)

    def close(self) -> None:
        """Deliver what is left, as far as the receiver takes it within seconds."""
        closing = threading.Thread(target=self._provider.shutdown, name="closing traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    @contextmanager
    def _span(self, name: str, parent: str, attributes: Mapping[str, Value]) -> Iterator[str]:
        span = self._begin(name, parent, monotonic(), attributes)
        try:
            yield span.context
        except BaseException as error:
            span.end(outcome=type(error).__name__)
            raise
        span.end()

    def _begin(self, name: str, parent: str, at: float, attributes: Mapping[str, Value]) -> "_Span":
        found = parts_of(parent)
        above = None
        if found is not None:
            trace, span, flags = found
            above = set_span_in_context(NonRecordingSpan(SpanContext(trace, span, True, TraceFlags(flags))))
        own: dict[str, Any] = {_PREFIX + key: value for key, value in attributes.items()}
        started = self._tracer.start_span(name, context=above, attributes=own, start_time=self._nanoseconds(at))
        return _Span(started, self._nanoseconds)

    def _nanoseconds(self, at: float) -> int:
        return self._epoch_ns + round(at * 1e9)


class _Span:
    """Span that has begun."""

    __slots__ = ("_nanoseconds", "_span")

    def __init__(self, span: Any, nanoseconds: Any) -> None:
        self._span, self._nanoseconds = span, nanoseconds

    @property
    def context(self) -> str:
        """Context for spans below this one."""
        found = self._span.get_span_context()
        return f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags) & 1:02x}"

    def end(self, **attributes: Value) -> None:
        """End the span. One with another outcome than success is an error."""
        if not self._span.is_recording():
            return
        for key, value in attributes.items():
            self._span.set_attribute(_PREFIX + key, value)
        if attributes.get("outcome", "accepted") != "accepted":
            self._span.set_status(Status(StatusCode.ERROR, str(attributes["outcome"])))
        self.end_at(monotonic())

    def end_at(self, at: float) -> None:
        """End the span at a time of the monotonic clock."""
        self._span.end(end_time=self._nanoseconds(at))


class _Quiet(SpanExporter):
    """Exporter that says once that its receiver takes no spans, and once that it does again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; those that are not taken are lost."""
        result = self._exporter.export(spans)
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self._fails:
            log.warning("spans are lost: the receiver of OTEL_EXPORTER_OTLP_ENDPOINT does not take them")
        elif self._fails and not fails:
            log.info("spans are delivered again")
        self._fails = fails
        return result

    def shutdown(self) -> None:
        """End the connection."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Return when everything is sent."""
        return self._exporter.force_flush(timeout_millis)


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Return an exporter by OTLP over gRPC, which reads the other variables itself."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it would tell of each try
    return OTLPSpanExporter(endpoint=endpoint)
