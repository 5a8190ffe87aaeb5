"""What is kept of a simulated run: in memory what a comparison needs; on disk what a coordinator would leave."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coordinator.core import events as ev
from coordinator.core.decisions import DecisionKind
from coordinator.core.rounds import RoundMachine
from coordinator.run_dir import RunDir
from hypergpu.simulation.node import SimulatedNode
from hypergpu.simulation.scenario import Scenario
from netsim_proxy.link.outcomes import Direction


class Recording:
    """Takes in what happens (see `coordinator.Recorder`).

    Attributes:
        reached_at: seconds until the target accuracy was reached first; None where it was not.
    """

    def __init__(
        self, scenario: Scenario, machine: RoundMachine, nodes: Mapping[str, SimulatedNode], out: Path | None
    ) -> None:
        self.machine = machine
        self.best_accuracy = 0.0
        self.reached_at: float | None = None
        self.quarantined: dict[str, list[str]] = {}
        self.round_seconds: list[float] = []
        self.finish_reason = ""
        self._scenario, self._nodes = scenario, nodes
        self._dir: RunDir | None = None
        if out is not None:
            self._dir = RunDir(out)
            self._dir.begin(scenario.config)

    def event(self, record: ev.Record, now: float) -> None:
        """As `Recorder.event`."""
        decision = record.decision
        if decision is not None and decision.kind is DecisionKind.QUARANTINE:
            self.quarantined.setdefault(decision.subject, []).append(str(decision.reason))
        if self._dir is not None:
            own = {"seconds": round(now, 3), "round": record.round, "kind": record.kind, "text": record.text}
            self._dir.event({**own, **{name: value for name, value in record.fields.items() if name not in own}})

    def network(self, what: str, now: float) -> None:
        """Something happened to the links, because the scenario says so."""
        self.event(ev.Record("network", self.machine.round, what), now)

    def round_closed(self, closed: ev.CloseRound, loss: float | None, accuracy: float | None, now: float) -> None:
        """As `Recorder.round_closed`."""
        self.round_seconds.append(closed.seconds)
        if accuracy is not None:
            self.best_accuracy = max(self.best_accuracy, accuracy)
            target = self._scenario.target
            if target is not None and accuracy >= target and self.reached_at is None:
                self.reached_at = now
        if self._dir is not None:
            self._dir.round(_round_row(closed, loss, accuracy, now))

    def finished(self, finish: ev.Finish, now: float) -> None:
        """As `Recorder.finished`."""
        del now
        self.finish_reason = str(finish.reason)

    def close(self, now: float) -> None:
        """The run is over: complete its files."""
        if self._dir is not None:
            self._dir.nodes(self._node_rows())
            self._dir.summary(self._summary(now))
            self._dir.close()

    def _node_rows(self) -> list[dict[str, Any]]:
        members = self.machine.members
        return [
            {
                "node_id": m.node_id,
                "state": str(m.presence) if m.node_id not in members.connected else "idle",
                "reason": m.reason,
                "rounds_contributed": m.rounds_contributed,
                "rounds_selected": m.rounds_selected,
                "retries": m.retries,
                "late": m.late,
                "batch_size": m.batch_size,
                "compute_seconds": m.compute_seconds,
                "rule": str(m.rule),
                **m.info,
            }
            for m in members
        ]

    def _bytes(self, direction: Direction) -> int:
        return sum(node.line.link.counters(direction).bytes for node in self._nodes.values())

    def _summary(self, now: float) -> dict[str, Any]:
        machine, scenario = self.machine, self._scenario
        return {
            "run_id": f"simulated-{scenario.name}-{scenario.seed}",
            "task": machine.config.task,
            "seed": scenario.seed,
            "state": str(machine.state),
            "reason": self.finish_reason,
            "rounds": machine.round - 1,
            "rounds_planned": machine.config.rounds,
            "final_loss": machine.loss,
            "final_accuracy": machine.accuracy,
            "duration_seconds": round(now, 3),
            "policy": scenario.config.orchestrator.policy,
            "simulated": True,
            "scenario": scenario.name,
            "target_accuracy": scenario.target,
            "time_to_target_seconds": self.reached_at,
            "bytes_sent": self._bytes(Direction.DOWN),
            "bytes_received": self._bytes(Direction.UP),
            "nodes": {row["node_id"]: row for row in self._node_rows()},
        }


def _round_row(closed: ev.CloseRound, loss: float | None, accuracy: float | None, now: float) -> dict[str, Any]:
    return {
        "round": closed.round,
        "ended_seconds": round(now, 3),
        "seconds": round(closed.seconds, 6),
        "reason": str(closed.reason),
        "loss": loss,
        "accuracy": accuracy,
        "train_loss": closed.loss,
        "samples": closed.samples,
        "contributors": [c.node for c in closed.contributions if c.success],
        "missing": [c.node for c in closed.contributions if not c.success],
        "batch_sizes": {c.node: c.batch_size for c in closed.contributions},
        "compute_seconds": {c.node: round(c.compute_seconds, 6) for c in closed.contributions if c.success},
        "waiting_seconds": {c.node: round(c.waiting_seconds, 6) for c in closed.contributions},
    }
