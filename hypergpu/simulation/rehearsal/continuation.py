"""Continuation of a run in virtual time: a copy of its adaptation goes on over the fork's links."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Final

from hypergpu.common.clock import Clock
from hypergpu.coordinator.core.adaptation.copies import unpacked
from hypergpu.coordinator.core.adaptation.orchestrator import AdaptiveOrchestrator
from hypergpu.coordinator.core.decisions import Decision
from hypergpu.coordinator.core.rehearsal import HeldSetting, RehearsalRequest, RehearsalResult, Worth
from hypergpu.coordinator.core.rounds.adaptation import LateWork, RoundJudgement, RoundPlan, RoundReport
from hypergpu.simulation.compute import read_rounds
from hypergpu.simulation.fork.fork import Fork
from hypergpu.simulation.run import GoingOn, simulate
from hypergpu.simulation.statistics import SMALLEST

_SKIPPED: Final = 2
"""Rounds at the beginning that do not count: windows and deadlines are those of a new run."""
_FALL: Final = 0.97
"""Ratio of the losses of two rounds that the adaptation is told: the run goes on, and learns nothing of losses."""


class Copied:
    """A copy of an adaptation in virtual time. It learns nothing of losses, which are those of another task.

    Args:
        orchestrator: the copy.
        turns: receives the rounds that wait for a node's turn.
    """

    def __init__(self, orchestrator: AdaptiveOrchestrator, turns: set[int]) -> None:
        self.orchestrator, self.overrides = orchestrator, orchestrator.overrides
        self._turns = turns
        self._loss = 1.0

    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        """Plan a round."""
        plan = self.orchestrator.plan_round(available, round_number)
        if plan.wait_for:
            self._turns.add(round_number)
        return plan

    def finish_round(self, report: RoundReport) -> RoundJudgement:
        """Learn from the times of a round."""
        self._loss *= _FALL
        contributions = [replace(each, loss=0.0, loss_before=0.0, loss_after=None) for each in report.contributions]
        return self.orchestrator.finish_round(
            replace(report, loss=self._loss, evaluated=False, contributions=contributions)
        )

    def abandon_round(self, round_number: int, fault: str) -> RoundJudgement:
        """Learn from a round without any update."""
        return self.orchestrator.abandon_round(round_number, fault)

    def record_late(self, work: LateWork) -> None:
        """Learn from late work."""
        self.orchestrator.record_late(work)

    def finish_rehearsal(self, result: RehearsalResult, round_number: int) -> Sequence[Decision]:
        """Learn nothing: there are no rehearsals."""
        del result, round_number
        return ()


class Continuation:
    """Continuation of a run.

    Args:
        fork: the run in virtual time.
        adaptation: its packed adaptation.
        request: length of the runs.
    """

    def __init__(self, fork: Fork, adaptation: bytes, request: RehearsalRequest) -> None:
        self._fork, self._adaptation, self._request = fork, adaptation, request

    def run(self, change: HeldSetting, seed: int, worth: Worth) -> float:
        """Return the progress per second with a changed setting, in full steps; 0 if no round counts."""
        state, begin = self._fork.state, self._request.round
        last = begin + self._request.rounds
        scenario = self._fork.scenario_with(state.config, last, state.config.training.seed + seed)
        turns: set[int] = set()

        def adapt(clock: Clock) -> tuple[AdaptiveOrchestrator, Copied]:
            orchestrator = unpacked(self._adaptation, lambda: self._request.at + clock())
            orchestrator.fork(change)
            return orchestrator, Copied(orchestrator, turns)

        with tempfile.TemporaryDirectory(prefix="hypergpu-") as directory:
            out = Path(directory) / "run"
            simulate(scenario, out, compute=self._fork.compute, going_on=GoingOn(adapt, begin + 1))
            rows = read_rounds(out)
        seconds = total = 0.0
        for before, row in list(pairwise(rows))[_SKIPPED - 1 :]:
            if row["round"] in turns:
                continue
            nodes = row["contributors"]
            noise = fmean(row["noise"].get(node, 0.0) for node in nodes) if nodes else 0.0
            total += worth.of_round(row["local_steps"], row["samples"], len(nodes), noise)
            seconds += row["ended_seconds"] - before["ended_seconds"]
        return total / max(seconds, SMALLEST)
