"""Prometheus series of a node; names and units follow Prometheus's guide."""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hypergpu.common.series import OptionalGauge
from hypergpu.node.core.gpu import GPUSpecs
from hypergpu.node.core.metrics_collector import NetworkEvent, Record, ResourceUsage, TrainingStep, WorkDone
from hypergpu.node.core.states import State

_STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROUND_TRIP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0)
_WORK_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class NodeMetrics:
    """Series of one node in `registry`; `record` is a sink for a `MetricsCollector`."""

    def __init__(self, registry: CollectorRegistry, node_id: str, specs: GPUSpecs) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"hypergpu_node_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"hypergpu_node_{name}", text, labels, registry=registry)

        def optional(name: str, text: str) -> OptionalGauge:
            return OptionalGauge(f"hypergpu_node_{name}", text, registry)

        def seconds(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"hypergpu_node_{name}_seconds", text, buckets=buckets, registry=registry)

        info = gauge("info", "Node and its card; always 1.", "node_id", "gpu", "simulated")
        info.labels(node_id, specs.name, str(specs.simulated).lower()).set(1)
        gauge("memory_limit_bytes", "Memory of the card.").set(specs.memory_bytes)
        self._steps = counter("steps_total", "Training steps.")
        self._samples = counter("samples_total", "Samples trained on.")
        self._loss = optional("loss", "Loss of the last step.")
        self._metric = optional("metric", "Main metric of the last step, on its own batch.")
        self._norm = optional("gradient_norm", "Norm of the last step's gradient.")
        self._step = seconds("step", "Duration of a training step, including simulated delay.", _STEP_BUCKETS)
        self._forward = seconds("forward", "Duration of the forward pass of a step.", _STEP_BUCKETS)
        self._backward = seconds("backward", "Duration of the backward pass of a step.", _STEP_BUCKETS)
        self._compute = counter("compute_seconds_total", "Time spent in training steps.")
        self._round_trip = seconds("rpc_round_trip", "Round trip of a successful small call.", _ROUND_TRIP_BUCKETS)
        self._calls = counter("rpcs_total", "Calls to the coordinator.", "outcome")
        self._retries = counter("rpc_retries_total", "Retried calls.")
        self._gpu = optional("gpu_utilization_ratio", "Utilisation of the card, or of one CPU core without a card.")
        self._memory = optional("memory_bytes", "Memory in use on the card, or by the process without a card.")
        self._work_compute = seconds("work_compute", "Compute time of a work unit.", _WORK_BUCKETS)
        self._work_waiting = seconds("work_waiting", "Network and waiting time of a work unit.", _WORK_BUCKETS)
        self._work = counter("work_total", "Work units, by outcome.", "outcome")
        self._state = gauge("state", "1 for the current state of the life cycle.", "state")
        self._sent = counter("sent_bytes_total", "Bytes of updates sent.")
        self._received = counter("received_bytes_total", "Bytes of parameters received.")
        for outcome in ("success", "failure"):
            self._calls.labels(outcome)
        self.state(State.JOINING)

    def record(self, record: Record) -> None:
        """Update the series with a record."""
        match record:
            case TrainingStep():
                self._steps.inc()
                self._samples.inc(record.samples)
                self._loss.set(record.loss)
                self._metric.set(record.accuracy)
                self._norm.set(record.grad_norm)
                _observe(self._step, record.step_time)
                _observe(self._forward, record.forward_time)
                _observe(self._backward, record.backward_time)
                self._compute.inc(0.0 if math.isnan(record.step_time) else record.step_time)
            case NetworkEvent():
                self._calls.labels("success" if record.success else "failure").inc()
                self._retries.inc(record.retries)
                if record.success:
                    _observe(self._round_trip, record.latency_ms / 1000)
            case ResourceUsage():
                self._gpu.set(record.gpu_util / 100)
                self._memory.set(record.memory_mb * (1 << 20))
            case WorkDone():
                _observe(self._work_compute, record.compute_time)
                _observe(self._work_waiting, record.waiting_time)

    def work(self, outcome: str) -> None:
        """Count a work unit by how it ended."""
        self._work.labels(outcome).inc()

    def state(self, state: State) -> None:
        """Set the state of the life cycle."""
        for known in State:
            self._state.labels(str(known)).set(known is state)

    def traffic(self, sent: int, received: int) -> None:
        """Add the bytes sent and received since the last call."""
        self._sent.inc(sent)
        self._received.inc(received)


def _observe(histogram: Histogram, value: float) -> None:
    """Add a value unless it is NaN, which stands for unknown and would spoil the sum of the histogram."""
    if not math.isnan(value):
        histogram.observe(value)
