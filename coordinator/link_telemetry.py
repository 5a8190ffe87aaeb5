"""Link telemetry: passes measurements of each node's link to the adaptation, and reads its judgement."""

import math
from collections.abc import Mapping
from typing import Any, Final

from hypergpu.common.errors import HyperGPUError
from hypergpu.common.metric import finite
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.adaptation import AdaptiveOrchestrator
from hypergpu.coordinator.core.links import ConnectionQuality
from hypergpu.coordinator.core.links.downloads import DownloadLedger
from hypergpu.coordinator.core.links.profile import RATE_FIGURES
from hypergpu.coordinator.core.rounds.traffic import RoundTraffic
from hypergpu.coordinator.core.selection import NodeState
from hypergpu.coordinator.core.session import Register

_MOST_CALLS: Final = 1 << 53
"""Largest plausible total of calls."""


class LinkTelemetry:
    """Adapter between the engine and an orchestrator's monitor.

    Three sources report the same calls: the calls themselves, a node's /metrics, and the report in its heartbeat. Each
    call must count once. A node's own totals include calls that never arrived, so they take precedence over calls seen
    here. They come from /metrics if that can be scraped, else from the report.
    """

    def __init__(self, orchestrator: AdaptiveOrchestrator) -> None:
        self._orchestrator = orchestrator
        self._monitor = orchestrator.monitor
        self._downloads = DownloadLedger()
        self.traffic = RoundTraffic()
        """Bytes on each link since the record of the last round. The driver counts those of updates."""
        self._counting: set[str] = set()
        self._scraped: set[str] = set()
        self._final: dict[str, dict[str, Any]] = {}

    def register(self, node: Register) -> None:
        """Register a node that joined, with what it says of itself."""
        self._final.pop(node.node, None)
        self._orchestrator.register_node(
            node.node,
            node.largest_batch or None,
            samples=node.data.samples if node.data else 0,
            terms=node.terms,
            step_times=node.step_times,
        )

    def communication(self, node: str, latency_ms: float, success: bool) -> None:
        """Record one finished RPC, as measured by the coordinator."""
        if node not in self._counting and 0 <= latency_ms < math.inf:
            self._monitor.record_communication(node, latency_ms, success)

    def begin_download(self, node: str, now: float, nbytes: int = 0) -> None:
        """Record that the coordinator begins to send parameters to a node, and those bytes that it sends at once."""
        self._downloads.begin(node, now, nbytes)
        if nbytes:
            self.traffic.sent(node, nbytes)

    def sent(self, node: str, nbytes: int) -> None:
        """Record bytes of these parameters that were sent."""
        self._downloads.sent(node, nbytes)
        self.traffic.sent(node, nbytes)

    def downloaded(self, node: str, transfer: Transfer, now: float) -> None:
        """Record what a node reports of their transfer; a report that cannot be true is ignored."""
        if self._downloads.is_plausible(node, transfer, now):
            self._monitor.record_download(node, transfer)
            self._orchestrator.connections.record_download(node, transfer)

    def uploaded(self, node: str, transfer: Transfer) -> None:
        """Record a transfer from a node, as the coordinator received it."""
        self._monitor.record_upload(node, transfer)
        self._orchestrator.connections.record_upload(node, transfer)

    def observe_heartbeat(self, node: str, report: Mapping[str, Any], rtt_ms: float, loaded: bool) -> None:
        """Record a heartbeat: the round trip of the one before it, and the counters in its report.

        Each round trip counts once, and not as one of the link if our own transfer was in its way.
        """
        if 0 < rtt_ms < math.inf:
            if node in self._counting:
                self._monitor.record_round_trip(node, rtt_ms, loaded=loaded)
            else:
                self._monitor.record_communication(node, rtt_ms, success=True, loaded=loaded)
        network = report.get("network")
        if isinstance(network, dict) and node not in self._scraped:
            self._counted(node, network.get("events"), network.get("failures"))

    def seen(self, node: str) -> None:
        """Record that a part of an upload arrived: the link is not silent, though heartbeats wait behind it."""
        self._monitor.record_contact(node)

    def scraped(self, node: str, calls: int, failures: int) -> None:
        """Record the counters of a successful scrape."""
        self._scraped.add(node)
        self._counted(node, calls, failures)

    def unreachable(self, node: str) -> None:
        """Record a failed scrape: the counters in the node's heartbeats are used again."""
        self._scraped.discard(node)

    def _counted(self, node: str, calls: object, failures: object) -> None:
        """Record the totals of a node's own RPCs; implausible totals are ignored."""
        if isinstance(calls, int) and isinstance(failures, int) and 0 <= failures <= calls <= _MOST_CALLS:
            self._counting.add(node)
            self._monitor.observe_counters(node, attempts=calls, failures=failures)

    def summary(self) -> dict[str, Any]:
        """Return the present policy and the share of the round time that deciding took."""
        overhead = self._orchestrator.get_orchestrator_status()["overhead"]
        return {"policy": str(self._orchestrator.policy), "adaptation_share": overhead["share_of_round_time"]}

    def rates(self) -> dict[str, dict[str, float]]:
        """Return the known figures about each link's rates and round trips, by node.

        Rates of a node that left are its last.
        """
        rates = self._monitor.rates()
        for node, quantiles in self._monitor.round_trips().items():
            rates[node] |= quantiles
        for node, last in self._final.items():
            rates[node] = rates.get(node, {}) | {name: last[name] for name in RATE_FIGURES if name in last}
        return {
            node: {name: round(value, 3) for name, value in figures.items() if finite(value) is not None}
            for node, figures in rates.items()
        }

    def figures(self) -> dict[str, dict[str, float | str]]:
        """Return the rates and round trips of each link, and its quality class where it is known, by node."""
        found: dict[str, dict[str, float | str]] = {node: dict(rates) for node, rates in self.rates().items()}
        classes = {node: str(quality) for node, quality in self._monitor.qualities().items()}
        classes |= {node: last["quality"] for node, last in self._final.items() if "quality" in last}
        for node, quality in classes.items():
            if quality != ConnectionQuality.UNKNOWN:
                found.setdefault(node, {})["quality"] = quality
        return found

    def freeze(self, node: str) -> None:
        """Keep the last profile of a node that has left: its silence is no sign of a bad link."""
        self._downloads.forget(node)
        self._final.setdefault(node, self.describe(node))

    def describe(self, node: str) -> dict[str, Any]:
        """Return the figures and quality of a link, the reason of its selection, and the state of a node held back.

        Before the first measurement, figures are None and the quality is `unknown`.
        """
        if node in self._final:
            return dict(self._final[node])
        try:
            profile = self._monitor.get_node_profile(node)
            state = self._orchestrator.selector.get_node_state(node)
            details = self._orchestrator.selector.get_node_details(node)
        except HyperGPUError:
            return {}
        known: dict[str, Any] = {
            "latency_ms": finite(profile.latency_ms),
            "loaded_latency_ms": finite(profile.loaded_latency_ms),
            "loss_rate": finite(profile.loss_rate) if profile.measured else None,
            "score": finite(profile.score),
            **{name: finite(value) for name, value in profile.rates().items()},
            "quality": str(profile.quality),
            "reason": details["reason"],
        }
        if state is not NodeState.ACTIVE:
            known["state"] = str(state)
        return known
