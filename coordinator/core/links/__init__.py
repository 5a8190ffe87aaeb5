"""Link quality: measurements, scores, quality classes, forecasts and alerts."""

from hypergpu.coordinator.core.links.alerts import Alert, AlertKind, Severity
from hypergpu.coordinator.core.links.monitor import NetworkQualityMonitor
from hypergpu.coordinator.core.links.quality import ConnectionQuality, Trend

__all__ = ["Alert", "AlertKind", "ConnectionQuality", "NetworkQualityMonitor", "Severity", "Trend"]
