"""Replay of a real run in virtual time: with its own decisions, so that the times of its rounds can be compared."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from hypergpu.common.connections import ConnectionPlan, Connections
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.rounds.adaptation import FixedAdaptation, RoundPlan
from hypergpu.simulation.calibration import Calibration
from hypergpu.simulation.compute import read_rounds
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario

Rows = Sequence[Mapping[str, Any]]
"""Rounds of a run."""


class ReplayedDecisions(FixedAdaptation):
    """An adaptation that plans each round as a run did.

    Args:
        rows: the rounds of that run.
        policy: that it ran by; `none` waits for everybody.
    """

    def __init__(self, rows: Rows, policy: str) -> None:
        super().__init__(batch_size=1)
        self._rows = {row["round"]: row for row in rows}
        self._wait_for_all = policy == "none"

    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        """Return the plan of that round."""
        row = self._rows[round_number]
        selected = [node for node in available if node in row["batch_sizes"]]
        return RoundPlan(
            selected,
            dict(row["batch_sizes"]),
            row["local_steps"],
            node_steps=row.get("node_steps", {}),
            wait_for_all=self._wait_for_all,
            codecs={node: TransferCodecs(row["codec"][node], row["parameters_codec"][node]) for node in selected},
            connections=ConnectionPlan(
                by_node={
                    node: Connections(row["connections_down"][node], row["connections_up"][node]) for node in selected
                }
            ),
        )


def replay(
    scenario: Scenario,
    calibration: Calibration,
    real: Rows,
    out: Path,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[float, Rows]:
    """Run the decisions of a real run on its calibrated machine, twice.

    In the first run, handling a work unit takes no time. The median, over nodes and rounds, of how much less the nodes
    then wait than in reality is the handling time of the second run. It is the one figure that is fitted and not
    measured: the time that processes on shared cores take to pack, send, check and wake up.

    Args:
        scenario: that of the real run.
        calibration: speed of the machine of the real run.
        real: its rounds, at least one.
        out: a directory for the run in virtual time.
        progress: called with the number of each round that begins.

    Returns:
        The seconds of handling, and the rounds in virtual time with them.
    """
    handling_seconds, rows = 0.0, real
    for _ in range(2):
        handling_seconds = _excess(real, rows)
        again = calibration.of(scenario, handling_seconds).changed(rounds=real[-1]["round"])
        decisions = ReplayedDecisions(real, scenario.config.orchestrator.policy)
        simulate(
            again,
            out,
            compute=calibration.compute,
            starts=calibration.starts,
            adaptation=decisions,
            progress=progress,
        )
        rows = read_rounds(out)
    return handling_seconds, rows


def _excess(real: Rows, simulated: Rows) -> float:
    """Seconds that nodes waited longer in the real rounds; the median, or 0."""
    waited = _waited(simulated)
    excess = [seconds - waited[key] for key, seconds in _waited(real).items() if key in waited]
    return max(0.0, median(excess)) if excess else 0.0


def _waited(rows: Rows) -> dict[tuple[int, str], float]:
    return {(row["round"], node): row["waiting_seconds"][node] for row in rows for node in row["contributors"]}
