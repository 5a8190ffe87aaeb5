"""What the services export, and the files of the deployment."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from hypergpu.common.config import SystemConfig
from hypergpu.coordinator.core.adaptation import build_orchestrator
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.health import Health
from hypergpu.coordinator.metrics import Metrics
from hypergpu.coordinator.node_metrics import NodeMetricsCollector
from hypergpu.coordinator.refusals import Refusals
from hypergpu.netsim_proxy.api import metrics as proxy_metrics
from hypergpu.netsim_proxy.io.lateness import DeliveryLateness
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.link.access_lane import AccessLink
from hypergpu.node.core.gpu import specs_from
from hypergpu.node.metrics import NodeMetrics

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Exported:
    """One metric as a service exports it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def families(registry: CollectorRegistry) -> Iterator[Exported]:
    """Every family with its labels, also those that have no series yet: only private attributes tell these."""
    for collector in registry._collector_to_names:
        made: Any = [collector] if isinstance(collector, MetricWrapperBase) else list(collector.collect())
        for family in made:
            described = next(iter(family.collect())) if family is collector else family
            name = f"{described.name}_total" if described.type == "counter" else described.name
            labels = tuple(getattr(family, "_labelnames", ()))
            yield Exported(name, described.type, labels, described.documentation)


class NoLinks(list[Any]):
    """A registry without links."""

    access = AccessLink()


@pytest.fixture(scope="session")
def exported() -> dict[str, dict[str, Exported]]:
    """Metrics by service and name."""
    coordinator, node, proxy = CollectorRegistry(), CollectorRegistry(), CollectorRegistry()
    config = SystemConfig()
    orchestrator = build_orchestrator(config)
    Metrics(coordinator)
    Health(coordinator)
    Refusals(coordinator)
    NodeMetricsCollector(coordinator, RoundMachine(config.training, orchestrator), orchestrator)
    NodeMetrics(node, "node_0", specs_from("t4"))
    proxy_metrics.register(proxy, cast(LinkRegistry, NoLinks()), DeliveryLateness())
    services = {"coordinator": coordinator, "node": node, "netsim_proxy": proxy}
    return {service: {each.name: each for each in families(registry)} for service, registry in services.items()}


@pytest.fixture(scope="session")
def root() -> Path:
    """Of the repository."""
    return ROOT
