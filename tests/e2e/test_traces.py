"""Traces of real processes: one trace has the spans of the coordinator, the proxy and the nodes."""

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import grpc
import pytest

from tests.e2e.local import Cluster
from tests.patience import until

pytestmark = pytest.mark.e2e
pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="pip install 'hypergpu[otel]'")


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    id: bytes
    parent: bytes
    trace: bytes
    began: int
    ended: int
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)


class Receiver:
    """OTLP over gRPC, as a collector has it."""

    def __init__(self) -> None:
        messages: Any = import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        self.spans: list[Span] = []
        self._server = grpc.server(ThreadPoolExecutor(4))
        method = grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._take(request, messages.ExportTraceServiceResponse()),
            messages.ExportTraceServiceRequest.FromString,
            messages.ExportTraceServiceResponse.SerializeToString,
        )
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": method}),))
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _take(self, request: Any, reply: Any) -> Any:
        for resource in request.resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            for each in (span for scope in resource.scope_spans for span in scope.spans):
                times = each.start_time_unix_nano, each.end_time_unix_nano
                ids = each.span_id, each.parent_span_id, each.trace_id
                self.spans.append(Span(service, each.name, *ids, *times, _values(each.attributes)))
        return reply

    def traces(self) -> dict[bytes, list[Span]]:
        found = defaultdict(list)
        for span in list(self.spans):
            found[span.trace].append(span)
        return found

    def close(self) -> None:
        self._server.stop(0).wait()


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    receiver = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    yield receiver
    receiver.close()


NODE, PROXY, COORDINATOR = "hypergpu-node", "hypergpu-proxy", "hypergpu-coordinator"
PARENTS: dict[tuple[str, str], set[str | None]] = {
    (COORDINATOR, "round"): {None},
    (COORDINATOR, "work"): {"round"},
    (COORDINATOR, "close"): {"round"},
    (COORDINATOR, "step"): {"close"},
    (COORDINATOR, "evaluate"): {"close"},
    (NODE, "download"): {"work"},
    (NODE, "train"): {"work"},
    (NODE, "upload"): {"work"},
    (COORDINATOR, "receive"): {"upload"},
    (PROXY, "link down"): {"work", "upload"},
    (PROXY, "link up"): {"upload"},
}


def test_one_trace_has_each_work_unit_in_all_processes(cluster: Cluster, receiver: Receiver) -> None:
    coordinator = cluster.coordinator("--rounds=3", "--min-nodes=2", "--policy=none")
    proxy = cluster.proxy(coordinator.address(), "average").address()
    nodes = [cluster.node(f"node_{number}", proxy) for number in range(2)]
    assert coordinator.wait() == 0, coordinator.text
    assert [node.wait() for node in nodes] == [0, 0]

    def whole() -> list[Span] | None:
        """Return a trace with everything of two nodes; processes deliver their spans by and by."""
        found = (trace for trace in receiver.traces().values() if len(trace) == 4 + 2 * 8)
        return next((trace for trace in found if {(each.service, each.name) for each in trace} == set(PARENTS)), None)

    def seen() -> str:
        return str([sorted((each.service, each.name) for each in trace) for trace in receiver.traces().values()])

    trace = until(whole, "a whole trace", more=seen)
    assert trace is not None
    names = {each.id: each.name for each in trace}
    for span in trace:
        assert names.get(span.parent) in PARENTS[span.service, span.name], span
        assert span.ended >= span.began
    units = [each for each in trace if each.name == "work"]
    assert {each.attributes["hypergpu.node"] for each in units} == {"node_0", "node_1"}
    assert {each.attributes["hypergpu.outcome"] for each in units} == {"accepted"}
    for span in (each for each in trace if each.service == PROXY):
        assert span.attributes["hypergpu.link"] in {"node_0", "node_1"}
        is_answer = span.name == "link down" and names[span.parent] == "upload"
        assert (span.attributes["hypergpu.bytes"] > 50_000) is not is_answer
        assert 0.001 < span.attributes["hypergpu.delay_seconds"] <= 1e-9 * (span.ended - span.began) + 1e-6
    assert all("spans are lost" not in each.text for each in cluster.processes)


def test_a_receiver_that_is_gone_is_told_of_once_and_changes_nothing(
    cluster: Cluster, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    receiver.close()
    coordinator = cluster.coordinator("--rounds=5")
    cluster.node("node_1", coordinator.address())
    assert coordinator.wait() == 0, coordinator.text
    assert cluster.rounds_told() == [1, 2, 3, 4, 5]
    assert coordinator.text.count("spans are lost") <= 1
    assert "Traceback" not in coordinator.text
