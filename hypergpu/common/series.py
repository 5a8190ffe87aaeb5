"""Prometheus gauge that is absent while its value is unknown: 0 would be a wrong value."""

import math
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector


class OptionalGauge(Collector):
    """Gauge with one value or none; `labels` are fixed."""

    def __init__(
        self, name: str, text: str, registry: CollectorRegistry, labels: Mapping[str, str] | None = None
    ) -> None:
        self._name, self._text, self._labels = name, text, dict(labels or {})
        self._value: float | None = None
        registry.register(self)

    def set(self, value: float | None) -> None:
        """Set the value; None or a number that is not finite removes the series."""
        self._value = value if value is not None and math.isfinite(value) else None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the family with one sample at most."""
        family = GaugeMetricFamily(self._name, self._text, labels=list(self._labels))
        if self._value is not None:
            family.add_metric(list(self._labels.values()), self._value)
        yield family
