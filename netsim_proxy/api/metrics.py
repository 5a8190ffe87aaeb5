"""Counters of the links as Prometheus series. They are read at a scrape, so they cost nothing per message."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from hypergpu.common.clock import Clock, monotonic
from hypergpu.netsim_proxy.io.lateness import BUCKETS_SECONDS, DeliveryLateness
from hypergpu.netsim_proxy.io.link_registry import LinkRegistry
from hypergpu.netsim_proxy.link.outcomes import DIRECTIONS
from hypergpu.netsim_proxy.link.profiles import MBIT_BYTES


def register(
    registry: CollectorRegistry, links: LinkRegistry, lateness: DeliveryLateness, clock: Clock = monotonic
) -> None:
    """Add the proxy's series to `registry`."""
    registry.register(_LinkCollector(links, clock))
    registry.register(_AccessCollector(links, clock))
    registry.register(_LatenessCollector(lateness))


class _LinkCollector(Collector):
    def __init__(self, links: LinkRegistry, clock: Clock) -> None:
        self._links, self._clock = links, clock

    def collect(self) -> Iterator[Metric]:
        by_way = ["link", "direction"]
        moved = CounterMetricFamily("netsim_bytes", "Bytes offered to the link", labels=by_way)
        messages = CounterMetricFamily("netsim_messages", "Messages offered to the link", labels=by_way)
        delay = CounterMetricFamily(
            "netsim_injected_delay_seconds",
            "Sum of the delays of messages; divided by netsim_messages_total, the mean delay",
            labels=by_way,
        )
        queue = GaugeMetricFamily("netsim_queue_bytes", "Bytes that wait for bandwidth", labels=by_way)
        flight = GaugeMetricFamily(
            "netsim_in_flight_bytes", "Bytes that the proxy holds until they are due", labels=by_way
        )
        rpcs = CounterMetricFamily("netsim_rpcs", "RPCs begun", labels=["link"])
        losses = CounterMetricFamily("netsim_losses", "RPCs that the link failed, by cause", labels=["link", "cause"])
        connections = GaugeMetricFamily(
            "netsim_connections", "Connections with RPCs of the link, or passed through on it", labels=["link"]
        )
        profile = GaugeMetricFamily(
            "netsim_profile", "1 for the current profile of the link", labels=["link", "profile"]
        )
        now = self._clock()
        for paced in list(self._links):
            link, name = paced.link, paced.name
            for direction in DIRECTIONS:
                counters, labels = link.counters(direction), [name, direction.value]
                moved.add_metric(labels, counters.bytes)
                messages.add_metric(labels, counters.messages)
                delay.add_metric(labels, counters.delay_seconds)
                queue.add_metric(labels, link.queued_bytes(now, direction))
                flight.add_metric(labels, paced.in_flight[direction.ordinal])
            rpcs.add_metric([name], link.rpcs)
            for cause, count in link.losses.items():
                losses.add_metric([name, cause.value], count)
            connections.add_metric([name], len(paced.pairs))
            profile.add_metric([name, link.profile.name], 1)
        yield from (moved, messages, delay, queue, flight, rpcs, losses, connections, profile)


class _AccessCollector(Collector):
    def __init__(self, links: LinkRegistry, clock: Clock) -> None:
        self._links, self._clock = links, clock

    def collect(self) -> Iterator[Metric]:
        bandwidth = GaugeMetricFamily(
            "netsim_upstream_bandwidth_bytes_per_second",
            "Bandwidth of the upstream's access link; infinite if there is no limit",
            labels=["direction"],
        )
        queue = GaugeMetricFamily(
            "netsim_upstream_queue_bytes",
            "Bytes that wait for the bandwidth of the upstream's access link, at their senders too",
            labels=["direction"],
        )
        access, now = self._links.access, self._clock()
        for direction in DIRECTIONS:
            lane = access.lane(direction)
            lane.advance(now)
            bandwidth.add_metric([direction.value], access.bandwidth.mbit(direction) * MBIT_BYTES)
            queue.add_metric([direction.value], lane.waiting_bytes)
        yield from (bandwidth, queue)


class _LatenessCollector(Collector):
    def __init__(self, lateness: DeliveryLateness) -> None:
        self._lateness = lateness

    def collect(self) -> Iterator[Metric]:
        lateness, total, buckets = self._lateness, 0, []
        for bound, count in zip([*map(str, BUCKETS_SECONDS), "+Inf"], lateness.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        yield HistogramMetricFamily(
            "netsim_pacer_lateness_seconds",
            "Lateness of deliveries, relative to the link model",
            buckets=buckets,
            sum_value=lateness.sum_seconds,
        )
        yield CounterMetricFamily(
            "netsim_deliveries_beyond_bound",
            "Deliveries later than the bound: while this grows, the network is slower than configured",
            value=lateness.beyond_bound,
        )
