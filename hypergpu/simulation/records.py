"""Records of a simulated run: in memory for a comparison, on disk as a coordinator writes them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hypergpu.common.errors import InvalidInput
from hypergpu.common.metric import LOSS
from hypergpu.coordinator.core.decisions import DecisionKind
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.traffic import Traffic
from hypergpu.coordinator.run_dir import RunDir
from hypergpu.coordinator.run_records import RunEvent, line_of, node_row, outcome, round_row
from hypergpu.netsim_proxy.link.outcomes import Direction
from hypergpu.simulation.node import SimulatedNode
from hypergpu.simulation.scenario import Scenario


class Recording:
    """Keeps the events and rounds of a run (see `coordinator.Recorder`).

    Attributes:
        trained_seconds: from the beginning of the first round to the end of the last.
        failure: why the run could not go on; empty where it could.
        metric_fault: what the metric raised first.
        trouble: what a node last said when it gave work of the running round up.
        reached_after: seconds from the beginning of the first round until the target was reached first; None
            where it was not. How long nodes take to come says nothing about training.
        course: those seconds and the metric at each evaluation that gave one; `losses`: and the loss.
    """

    def __init__(
        self, scenario: Scenario, machine: RoundMachine, nodes: Mapping[str, SimulatedNode], out: Path | None
    ) -> None:
        self.machine = machine
        self.course: list[tuple[float, float]] = []
        self.losses: list[tuple[float, float]] = []
        self.reached_after: float | None = None
        self.quarantined: dict[str, list[str]] = {}
        self.round_seconds: list[float] = []
        self.trained_seconds = 0.0
        self.trouble = ""
        self.metric_fault = ""
        self.finish_reason = self.failure = ""
        self._scenario, self._nodes = scenario, nodes
        self._began_at: float | None = None
        self._dir: RunDir | None = None
        if out is not None:
            self._dir = RunDir(out)
            self._dir.begin(scenario.config)

    def event(self, record: ev.RunEvent, now: float) -> None:
        """Record a run event."""
        if self._began_at is None and record.kind == "round_started":
            self._began_at = now
        if record.kind == "metric_failed":
            self.metric_fault = self.metric_fault or record.text
        if record.kind == "work_returned":
            self.trouble = record.text
        decision = record.decision
        if decision is not None and decision.kind is DecisionKind.QUARANTINE:
            self.quarantined.setdefault(decision.subject, []).append(str(decision.reason))
        if self._dir is not None:
            self._dir.event(RunEvent(now, record.round, record.kind, record.text, record.fields).row())
            self._dir.flush()

    def network(self, what: str, now: float) -> None:
        """Record an event of the scenario, which changed links."""
        self.event(ev.RunEvent("network", self.machine.round, what), now)

    def round_closed(
        self,
        closed: ev.CloseRound,
        loss: float | None,
        metric: float | None,
        now: float,
        *,
        traffic: Mapping[str, Traffic],
        others: Mapping[str, float | None],
    ) -> None:
        """Record a closed round."""
        self.round_seconds.append(closed.seconds)
        self.trouble = ""
        self.trained_seconds = now - (self._began_at or 0.0)
        spec, target = self.machine.metric, self._scenario.target
        value = loss if spec == LOSS else metric
        if loss is not None:
            self.losses.append((self.trained_seconds, loss))
        if value is not None:
            self.course.append((self.trained_seconds, value))
            if target is not None and self.reached_after is None and spec.reached(value, target):
                self.reached_after = self.trained_seconds
        if self._dir is not None:
            row = round_row(closed, loss, spec, metric, now, traffic=traffic, others=others)
            self._dir.round(line_of(row))
            self._dir.flush()

    def finished(self, finish: ev.Finish, now: float) -> None:
        """Record the end of the run."""
        del now
        self.finish_reason = str(finish.reason)
        self.failure = finish.detail if finish.reason is ev.FinishReason.FAILED else ""

    def snapshot(self, link_figures: Callable[[], Mapping[str, Mapping[str, float | str]]]) -> Path:
        """Bring the files of the run up to date for a fork; return their directory.

        Raises:
            InvalidInput: the run keeps no files.
        """
        if self._dir is None:
            raise InvalidInput("a run without files cannot be forked")
        self._dir.nodes(self._node_rows(link_figures()))
        return self._dir.path

    def close(self, now: float, link_figures: Callable[[], Mapping[str, Mapping[str, float | str]]]) -> None:
        """Complete the files of the run. `link_figures` returns the figures of the links by node."""
        if self._dir is not None:
            rows = self._node_rows(link_figures())
            self._dir.nodes(rows)
            self._dir.summary(self._summary(now, rows))
            self._dir.close()

    def _node_rows(self, links: Mapping[str, Mapping[str, float | str]]) -> list[dict[str, Any]]:
        members, override = self.machine.members, self.machine.adaptation.overrides.of
        states = {m.node_id: "done" if m.node_id in members.connected else str(m.connection) for m in members}
        used, useful = self.machine.shards.samples_used, members.usefulness()
        return [
            node_row(
                m,
                states[node],
                override(node),
                links.get(node),
                samples_used=used(node),
                usefulness=useful.get(node),
            )
            for m in members
            for node in (m.node_id,)
        ]

    @property
    def bytes(self) -> int:
        """Bytes on all links so far, in both directions."""
        return self._bytes(Direction.DOWN) + self._bytes(Direction.UP)

    def _bytes(self, direction: Direction) -> int:
        return sum(node.connection.link.counters(direction).bytes for node in self._nodes.values())

    def _summary(self, now: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
        scenario = self._scenario
        return {
            "run_id": f"simulated-{scenario.name}-{scenario.seed}",
            "seed": scenario.seed,
            **outcome(self.machine, self.finish_reason, now),
            "policy": scenario.config.orchestrator.policy,
            "simulated": True,
            "scenario": scenario.name,
            "target_accuracy": scenario.target,
            "time_to_target_seconds": self.reached_after,
            "bytes_sent": self._bytes(Direction.DOWN),
            "bytes_received": self._bytes(Direction.UP),
            "nodes": {row["node_id"]: row for row in rows},
        }
