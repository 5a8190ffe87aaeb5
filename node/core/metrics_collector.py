"""History of a node's training, network, resources and work."""

import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypergpu.common.errors import InvalidInput
from hypergpu.common.statistics import finite, summary, theil_sen, trend
from hypergpu.node.core.anomalies import Anomaly, drift, spike

REPORT_LIMIT_BYTES = 1024
"""Largest report in a heartbeat."""


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One step; times in seconds, NaN for unknown figures."""

    step: int
    loss: float
    grad_norm: float
    step_time: float
    accuracy: float = math.nan
    forward_time: float = math.nan
    backward_time: float = math.nan
    samples: int = 0


@dataclass(frozen=True, slots=True)
class NetworkEvent:
    """One call; `latency_ms` is its round trip, or NaN if its duration depends on more than the link."""

    latency_ms: float
    success: bool
    retries: int = 0


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """Utilisation in percent and memory in MiB."""

    gpu_util: float
    memory_mb: float


@dataclass(frozen=True, slots=True)
class WorkDone:
    """One work unit: its compute and waiting times, and whether its update was accepted."""

    compute_time: float
    waiting_time: float
    success: bool


Record = TrainingStep | NetworkEvent | ResourceUsage | WorkDone


class MetricsCollector:
    """Rolling history of one node, with summaries and reports.

    Args:
        node_id: name of the node in reports.
        history_size: records of each kind that are kept; totals count all.
        sink: called with every record, for example to update Prometheus series.

    Raises:
        InvalidInput: `history_size` < 1.
    """

    def __init__(self, node_id: str, history_size: int = 100, *, sink: Callable[[Record], None] | None = None) -> None:
        if history_size < 1:
            raise InvalidInput(f"history_size must be at least 1, not {history_size}")
        self.node_id, self.history_size = node_id, history_size
        self._sink = sink
        self._steps: deque[TrainingStep] = deque(maxlen=history_size)
        self._calls: deque[NetworkEvent] = deque(maxlen=history_size)
        self._usage: deque[ResourceUsage] = deque(maxlen=history_size)
        self._work: deque[WorkDone] = deque(maxlen=history_size)
        self._total = {"steps": 0, "samples": 0, "calls": 0, "calls_failed": 0, "retries": 0, "work": 0, "work_done": 0}
        self._compute_time = 0.0

    def record_training_step(  # noqa: PLR0917  (a public signature)
        self,
        step: int,
        loss: float,
        grad_norm: float,
        step_time: float,
        accuracy: float | None = None,
        forward_time: float | None = None,
        backward_time: float | None = None,
        samples: int = 0,
    ) -> None:
        """Record a step; times in seconds, None if unknown. A loss or norm may be NaN.

        Raises:
            InvalidInput: a value that is not a number, or a negative time or number of samples.
        """
        record = TrainingStep(
            _count("step", step),
            _number("loss", loss),
            _number("grad_norm", grad_norm),
            _measured("step_time", step_time),
            _number("accuracy", math.nan if accuracy is None else accuracy),
            _measured("forward_time", forward_time),
            _measured("backward_time", backward_time),
            _count("samples", samples),
        )
        self._total["steps"] += 1
        self._total["samples"] += record.samples
        if math.isfinite(record.step_time):
            self._compute_time += record.step_time
        self._keep(self._steps, record)

    def record_network_event(self, latency_ms: float | None, success: bool, retries: int = 0) -> None:
        """Record a call; `latency_ms=None` counts it without a round trip.

        Raises:
            InvalidInput: a value that is not a number, or negative.
        """
        record = NetworkEvent(_measured("latency_ms", latency_ms), bool(success), _count("retries", retries))
        self._total["calls"] += 1
        self._total["calls_failed"] += not record.success
        self._total["retries"] += record.retries
        self._keep(self._calls, record)

    def record_resource_usage(self, gpu_util: float | None, memory_mb: float | None) -> None:
        """Record a utilisation in percent and a memory in MiB; None if unknown.

        Raises:
            InvalidInput: a value that is not a number, or negative.
        """
        self._keep(self._usage, ResourceUsage(_measured("gpu_util", gpu_util), _measured("memory_mb", memory_mb)))

    def record_work(self, compute_time: float, waiting_time: float, success: bool) -> None:
        """Record a work unit: its compute and waiting times in seconds, and whether its update was accepted.

        Raises:
            InvalidInput: a value that is not a number, or negative.
        """
        record = WorkDone(
            _measured("compute_time", compute_time), _measured("waiting_time", waiting_time), bool(success)
        )
        self._total["work"] += 1
        self._total["work_done"] += record.success
        self._keep(self._work, record)

    def get_training_summary(self) -> dict[str, Any]:
        """Return summaries of loss, accuracy, gradient norm and step times, trends, and totals of steps and samples."""
        losses = [s.loss for s in self._steps]
        step_times = [s.step_time for s in self._steps]
        busy = sum(finite(step_times))
        return {
            "total_steps": self._total["steps"],
            "total_samples": self._total["samples"],
            "loss": summary(losses),
            "accuracy": summary([s.accuracy for s in self._steps]),
            "grad_norm": summary([s.grad_norm for s in self._steps]),
            "step_time": summary(step_times),
            "forward_time": summary([s.forward_time for s in self._steps]),
            "backward_time": summary([s.backward_time for s in self._steps]),
            "samples_per_second": sum(s.samples for s in self._steps) / busy if busy else 0.0,
            "loss_slope": theil_sen(losses),
            "trend": trend(losses, less_is_better=True),
        }

    def get_network_summary(self) -> dict[str, Any]:
        """Return the latency of successful calls (ms), the shares of successes and failures, totals and a trend."""
        latencies = [c.latency_ms for c in self._calls if c.success]
        reliability = sum(c.success for c in self._calls) / len(self._calls) if self._calls else 1.0
        return {
            "total_events": self._total["calls"],
            "total_failures": self._total["calls_failed"],
            "total_retries": self._total["retries"],
            "latency_ms": summary(latencies),
            "reliability": reliability,
            "loss_rate": 1 - reliability,
            "latency_slope_ms": theil_sen(latencies),
            "trend": trend(latencies, less_is_better=True),
        }

    def get_resource_summary(self) -> dict[str, Any]:
        """Return summaries of GPU utilisation (percent) and memory (MiB)."""
        return {
            "gpu_util": summary([u.gpu_util for u in self._usage]),
            "memory_mb": summary([u.memory_mb for u in self._usage]),
        }

    def get_contribution_metrics(self) -> dict[str, Any]:
        """Return compute time, success rate and efficiency = compute / (compute + waiting).

        Without work units, as in library use, steps count as compute and calls as attempts.
        """
        compute = float(finite([w.compute_time for w in self._work]).sum())
        waiting = float(finite([w.waiting_time for w in self._work]).sum())
        attempts, done = self._total["work"], self._total["work_done"]
        if not attempts:
            attempts, done = self._total["calls"], self._total["calls"] - self._total["calls_failed"]
        return {
            "compute_time": self._compute_time,
            "waiting_time": waiting,
            "efficiency": compute / (compute + waiting) if compute + waiting > 0 else 1.0,
            "success_rate": done / attempts if attempts else 1.0,
            "attempts": attempts,
            "successes": done,
            "total_steps": self._total["steps"],
            "total_samples": self._total["samples"],
        }

    def detect_anomalies(self) -> list[Anomaly]:
        """Return anomalies in the latest tenth of the history.

        They are losses and norms that are not finite, spikes (median and MAD) and drifts (EWMA) of losses, norms, times
        and latencies, and packet loss.
        """
        steps = list(self._steps)
        found: list[Anomaly | None] = []
        for step in steps[-max(1, len(steps) // 10) :]:
            odd = [figure for figure in (step.loss, step.grad_norm) if not math.isfinite(figure)]
            if odd:
                found.append(Anomaly("non_finite", odd[0], math.inf, f"at step {step.step}"))
                break
        series = {
            "loss": [s.loss for s in steps],
            "grad_norm": [s.grad_norm for s in steps],
            "step_time": [s.step_time for s in steps],
            "latency": [c.latency_ms for c in self._calls if c.success],
        }
        for name, values in series.items():
            found += [spike(f"{name}_spike", values), drift(f"{name}_drift", values)]
        failed = sum(not c.success for c in self._calls)
        if len(self._calls) >= 10 and failed / len(self._calls) > 0.2:
            found.append(
                Anomaly("packet_loss", failed / len(self._calls), 0.2, f"{failed} of {len(self._calls)} calls")
            )
        return [anomaly for anomaly in found if anomaly is not None]

    def get_full_report(self) -> dict[str, Any]:
        """Return the report for the coordinator, whose JSON stays under 1 KiB."""
        training, network, resources = (
            self.get_training_summary(),
            self.get_network_summary(),
            self.get_resource_summary(),
        )
        contribution = self.get_contribution_metrics()
        last = {k: training[k].get("last") for k in ("loss", "accuracy", "grad_norm")}
        return {
            "node_id": _name(self.node_id),
            "steps": training["total_steps"],
            "samples": training["total_samples"],
            "training": {**_short(last), "trend": training["trend"]},
            "performance": _short(
                {
                    **{k: training[k].get("median") for k in ("step_time", "forward_time", "backward_time")},
                    "samples_per_second": training["samples_per_second"],
                }
            ),
            "network": {
                **_short(
                    {
                        "latency_ms": network["latency_ms"].get("mean"),
                        "latency_p95_ms": network["latency_ms"].get("p95"),
                        "success_rate": network["reliability"],
                        "loss_rate": network["loss_rate"],
                    }
                ),
                "events": network["total_events"],
                "failures": network["total_failures"],
                "retries": network["total_retries"],
                "trend": network["trend"],
            },
            "resources": _short({k: resources[k].get("last") for k in ("gpu_util", "memory_mb")}),
            "contribution": _short({k: contribution[k] for k in ("compute_time", "efficiency", "success_rate")}),
            "anomalies": sorted({anomaly.kind for anomaly in self.detect_anomalies()})[:8],
        }

    def encode_report(self) -> bytes:
        """Return `get_full_report()` as compact JSON of at most `REPORT_LIMIT_BYTES`."""
        encoded = json.dumps(self.get_full_report(), separators=(",", ":"), allow_nan=False).encode()
        if len(encoded) > REPORT_LIMIT_BYTES:
            raise ValueError(f"a report of {len(encoded)} bytes; at most {REPORT_LIMIT_BYTES} are allowed")
        return encoded

    def _keep(self, history: deque[Any], record: Record) -> None:
        history.append(record)
        if self._sink is not None:
            self._sink(record)


def _number(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{name} must be a number, not {value!r}") from error


def _measured(name: str, value: float | None) -> float:
    """Return a non-negative quantity as a float; NaN stands for unknown."""
    number = math.nan if value is None else _number(name, value)
    if number < 0:
        raise InvalidInput(f"{name} must not be negative: {value!r}")
    return number if number < math.inf else math.nan


def _count(name: str, value: int) -> int:
    number = _measured(name, value)
    if not number.is_integer():
        raise InvalidInput(f"{name} must be a whole number, not {value!r}")
    return int(number)


def _name(node_id: str) -> str:
    """Return the name shortened to 64 characters of JSON, in which escapes are long."""
    shortened = node_id[:64]
    while len(json.dumps(shortened)) > 66:
        shortened = shortened[:-1]
    return shortened


def _short(figures: dict[str, Any]) -> dict[str, float]:
    """Return figures with four significant digits, without those that are unknown or not finite."""
    return {k: float(f"{v:.4g}") for k, v in figures.items() if v is not None and math.isfinite(v)}
