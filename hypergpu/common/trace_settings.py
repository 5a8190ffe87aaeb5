"""Tracer that the standard variables of OpenTelemetry ask for."""

from collections.abc import Mapping
from typing import Final

import structlog

from hypergpu.common.extras import is_installed
from hypergpu.common.tracing import NO_TRACER, Tracer

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables that name the receiver of spans."""
_LIBRARIES: Final = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter")

log = structlog.get_logger()


def make_tracer(service: str, environment: Mapping[str, str], **attributes: str) -> Tracer:
    """Return the tracer that the variables ask for; `attributes` are of every span of this process."""
    endpoint = next((environment[name] for name in ENDPOINTS if environment.get(name)), "")
    is_disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or is_disabled or environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return NO_TRACER
    if not all(map(is_installed, _LIBRARIES)):
        log.warning("no traces: pip install 'hypergpu[otel]', or set OTEL_SDK_DISABLED=true", endpoint=endpoint)
        return NO_TRACER
    from hypergpu.common.otel_tracer import OtelTracer, otlp_exporter  # noqa: PLC0415  (it is an extra)

    return OtelTracer(otlp_exporter(endpoint), service, attributes)
