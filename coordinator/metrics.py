"""Prometheus metrics of the run, derived from effects and outcomes without decisions of their own."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hypergpu.common import errors
from hypergpu.common.metric import ACCURACY, MetricSpec
from hypergpu.common.series import OptionalGauge
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.node_time import NodeTime, time_of_round

_REASONS = frozenset(name for name in vars(errors) if name[0].isupper()) | {"shutting_down", "abandoned"}
_ROUND_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def _seconds(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"hypergpu_{name}_seconds", text, registry=registry, buckets=_ROUND_BUCKETS)


class _ClosedRounds:
    """Series of closed rounds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Duration of a round, from its start to its close."
        self._seconds = _seconds("round_duration", text, registry)
        text = "Closed rounds, by reason."
        self._rounds = Counter("hypergpu_rounds", text, ("reason",), registry=registry)
        text = "Mean training loss of the last round."
        self._train_loss = OptionalGauge("hypergpu_train_loss", text, registry, {})
        text = "Time of the nodes of closed rounds, by part of the round."
        self._node_seconds = Counter("hypergpu_round_node_seconds", text, ("part",), registry=registry)
        text = "Share of the time of its nodes in which they computed, in the last round."
        self._utilisation = OptionalGauge("hypergpu_compute_utilisation", text, registry, {})
        text = "Updates that counted in a later round than their own, by the number of rounds that they were late."
        buckets = (1, 2, 3, 4, 6, 8, 12, 16)
        self._staleness = Histogram("hypergpu_update_staleness_rounds", text, registry=registry, buckets=buckets)
        for reason in ev.CloseReason:
            self._rounds.labels(reason)
        for part in asdict(NodeTime()):
            self._node_seconds.labels(part)

    def observe(self, closed: ev.CloseRound) -> None:
        """Count a closed round."""
        self._rounds.labels(closed.reason).inc()
        self._seconds.observe(closed.seconds)
        self._train_loss.set(closed.loss)
        for each in closed.late:
            self._staleness.observe(each.staleness)
        time = time_of_round(closed)
        for part, seconds in asdict(time).items():
            self._node_seconds.labels(part).inc(seconds)
        self._utilisation.set(time.utilisation)


class _HeldOut:
    """Series of the model on held-out data."""

    def __init__(self, registry: CollectorRegistry, metric: MetricSpec) -> None:
        text = "Loss on held-out data of the latest evaluated model that was not given up."
        self._loss = OptionalGauge("hypergpu_loss", text, registry, {})
        text = "Main metric of the same model; the label is its name."
        self._metric = OptionalGauge("hypergpu_metric", text, registry, {"metric": metric.name})
        text = "Further metrics on held-out data of the latest evaluated model, by name."
        self._others = Gauge("hypergpu_further_metric", text, ("metric",), registry=registry)

    def set(self, loss: float | None, metric: float | None, others: Mapping[str, float | None]) -> None:
        """Set all figures; those that are None have no series."""
        self._loss.set(loss)
        self._metric.set(metric)
        for name, value in others.items():
            if value is not None:
                self._others.labels(name).set(value)
            else:
                with suppress(KeyError):
                    self._others.remove(name)


class Metrics:
    """Prometheus series of the coordinator in `registry`; `metric` is the task's main metric."""

    def __init__(self, registry: CollectorRegistry, metric: MetricSpec = ACCURACY) -> None:
        self.registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"hypergpu_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"hypergpu_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return _seconds(name, text, registry)

        self._closed = _ClosedRounds(registry)
        self.abandoned = counter("rounds_abandoned", "Rounds that were abandoned and restarted.")
        self.round = gauge("round", "Number of the running or next round.")
        self.rounds_planned = gauge("rounds_planned", "Planned rounds of the run; 0 = unlimited.")
        self._held_out = _HeldOut(registry, metric)
        self.samples = counter("samples", "Training samples in accepted updates.")
        self.updates = counter("updates", "Received updates, by outcome.", "outcome")
        self.rejected = counter("updates_rejected", "Rejected updates, by error.", "error")
        self._returned = counter("work_returned", "Work units that nodes returned, by error.", "error")
        self.received = counter("update_received_bytes", "Bytes of received updates.")
        self.sent = counter("parameters_sent_bytes", "Bytes of sent parameters.")
        self.connected = gauge("nodes_connected", "Connected nodes.")
        self.selected = gauge("nodes_selected", "Nodes selected for the running round.")
        self.lost = counter("nodes_lost", "Nodes lost after missed heartbeats.")
        self.decisions = counter("decisions", "Decisions, by kind and reason.", "kind", "reason")
        self.step_seconds = seconds("server_step_duration", "Duration of the server's step at the end of a round.")
        self.evaluation_seconds = seconds("evaluation_duration", "Duration of an evaluation on held-out data.")
        self._begin_at_zero()

    def evaluated(self, loss: float | None, metric: float | None, others: Mapping[str, float | None]) -> None:
        """Set the figures of the model that training continues with; an undefined one has no series.

        `others` are the further metrics of the model that was evaluated.
        """
        self._held_out.set(loss, metric, others)

    def returned(self, reason: str) -> None:
        """Count an abandoned work unit; an unknown reason counts as `other`, so that nodes cannot invent labels."""
        self._returned.labels(reason if reason in _REASONS else "other").inc()

    def traffic(self) -> dict[str, int]:
        """Return the bytes of parameters and of updates since the start."""
        return {"bytes_sent": _total(self.sent), "bytes_received": _total(self.received)}

    def observe(self, effect: ev.Effect, machine: RoundMachine) -> None:
        """Count one effect."""
        match effect:
            case ev.UpdateReply(status=status, weight=weight):
                self.updates.labels(status).inc()
                self.samples.inc(weight)
            case ev.CloseRound():
                self._closed.observe(effect)
                self.selected.set(0)
            case ev.AbandonRound():
                self.abandoned.inc()
                self.selected.set(0)
            case ev.StartRound():
                self.selected.set(len(effect.nodes))
            case ev.RunEvent(decision=decision, kind=kind):
                if decision is not None:
                    self.decisions.labels(decision.kind, decision.reason).inc()
                elif kind == "node_lost":
                    self.lost.inc()
                self.connected.set(len(machine.members.connected))
                self.round.set(machine.config.shown_round(machine.round))
            case _:
                pass

    def _begin_at_zero(self) -> None:
        """Create the series that alerts watch: otherwise their first count would not be an increase."""
        for status in ev.UpdateStatus:
            self.updates.labels(status)
        for refused in (self.rejected, self._returned):
            refused.labels(errors.NonFiniteUpdate.__name__)


def _total(counter: Counter) -> int:
    return int(next(s.value for family in counter.collect() for s in family.samples if s.name.endswith("_total")))
