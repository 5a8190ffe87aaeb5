"""Spans, their contexts, and when there are none."""

from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from hypergpu.common import extras
from hypergpu.common.clock import monotonic
from hypergpu.common.trace_settings import make_tracer
from hypergpu.common.tracing import NO_TRACER, context_of, parts_of

CONTEXT = f"00-{'ab' * 16}-{'12' * 8}-01"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_there_are_no_traces_unless_a_variable_asks_for_them(environment: dict[str, str]) -> None:
    tracer = make_tracer("service", environment)
    assert tracer is NO_TRACER
    with tracer.span("train", CONTEXT, node="n") as context:
        assert context == ""
    tracer.begin("work").end(outcome="accepted")


def test_without_the_extra_a_warning_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    with capture_logs() as logs:
        assert make_tracer("service", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}) is NO_TRACER
    assert "pip install 'hypergpu[otel]'" in logs[0]["event"]


@pytest.mark.parametrize(
    "text",
    ["", CONTEXT[:-1], CONTEXT + "0", CONTEXT.upper(), f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'1' * 32}-{'0' * 16}-01"],
)
def test_an_invalid_context_is_none(text: str) -> None:
    assert parts_of(text) is None
    assert context_of((("traceparent", text),)) == ""


def test_a_context_is_read_from_metadata() -> None:
    assert context_of((("x-node-id", "n"), ("traceparent", CONTEXT))) == CONTEXT
    assert context_of(None) == ""


class Memory:
    """An exporter that keeps what it is sent, and may refuse it."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.spans: list[Any] = []
        self.refuses = refuses

    def export(self, spans: Sequence[Any]) -> Any:
        results = pytest.importorskip("opentelemetry.sdk.trace.export").SpanExportResult
        self.spans += spans
        return results.FAILURE if self.refuses else results.SUCCESS

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


def otel_tracer(exporter: Memory, **attributes: str) -> Any:
    pytest.importorskip("opentelemetry.sdk", reason="pip install 'hypergpu[otel]'")
    from hypergpu.common.otel_tracer import OtelTracer

    return OtelTracer(exporter, "service", attributes)  # type: ignore[arg-type]  # it need not be a subclass


def test_spans_of_several_processes_are_one_trace() -> None:
    memory = Memory()
    tracer, other = otel_tracer(memory, node="n1"), otel_tracer(memory)
    work = tracer.begin("work", round=3)
    with pytest.raises(ValueError, match="bad"), other.span("train", work.context):
        raise ValueError("bad")
    now = monotonic()
    other.record("link up", work.context, now - 2.0, now - 0.5, bytes=7)
    work.end(outcome="accepted")
    work.end(outcome="late")
    for each in (tracer, other):
        each.close()
    spans = {span.name: span for span in memory.spans}
    assert len({span.context.trace_id for span in memory.spans}) == 1
    assert [spans[name].parent.span_id for name in ("train", "link up")] == [spans["work"].context.span_id] * 2
    assert spans["work"].parent is None
    assert dict(spans["work"].attributes) == {"hypergpu.round": 3, "hypergpu.outcome": "accepted"}
    assert spans["work"].resource.attributes["hypergpu.node"] == "n1"
    assert spans["train"].attributes["hypergpu.outcome"] == "ValueError"
    assert not spans["train"].status.is_ok
    assert spans["link up"].end_time - spans["link up"].start_time == pytest.approx(1.5e9, rel=1e-6)
    assert spans["work"].start_time - 3e9 < spans["link up"].start_time < spans["work"].end_time


def test_a_receiver_that_takes_nothing_is_told_of_once() -> None:
    memory = Memory(refuses=True)
    tracer = otel_tracer(memory)
    with capture_logs() as logs:
        for _ in range(2000):  # several batches
            tracer.begin("work").end()
        tracer.close()
    assert len(memory.spans) > 1000
    assert [entry["event"].partition(":")[0] for entry in logs] == ["spans are lost"]
