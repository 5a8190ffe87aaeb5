"""What is known about the links: measured, scored, classed, forecast."""

from coordinator.core.network.alerts import Alert, AlertKind, Severity
from coordinator.core.network.monitor import NetworkQualityMonitor
from coordinator.core.network.quality import ConnectionQuality, Trend

__all__ = ["Alert", "AlertKind", "ConnectionQuality", "NetworkQualityMonitor", "Severity", "Trend"]
