"""Detection of simulated runs that make no progress: heartbeats alone would keep them running for ever."""

from dataclasses import dataclass

from hypergpu.common.text import counted
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.simulation.scenario import Scenario

LEAST_SECONDS = 2 * 3600.0
"""Least limit: twice the longest round that a scenario is expected to have."""
TIMES = 10
"""Number of times that the slowest recurring thing may fail."""


@dataclass(frozen=True, slots=True)
class StallDetector:
    """Limit on the time that a run may go without closing a round.

    Attributes:
        settled_at: time from which all nodes have started and all events by time are over.
        recurring_seconds: longest period of what recurs: churn, setup, and the detection of lost nodes.
        event_seconds: longest event; one by round may have begun with the last round.
    """

    settled_at: float
    recurring_seconds: float
    event_seconds: float

    @classmethod
    def of(cls, scenario: Scenario) -> "StallDetector":
        """Return the limit for a scenario."""
        churns = [group.churn.up_seconds + group.churn.down_seconds for group in scenario.nodes if group.churn]
        setups = [group.setup_seconds for group in scenario.nodes]
        arrivals = [group.join_delay_seconds + group.setup_seconds for group in scenario.nodes]
        ends = [(event.at_seconds or 0.0) + event.duration_seconds for event in scenario.events]
        return cls(
            settled_at=max(*arrivals, *ends, 0.0),
            recurring_seconds=max(*churns, *setups, scenario.config.server.lost_after_seconds),
            event_seconds=max((event.duration_seconds for event in scenario.events), default=0.0),
        )

    def gives_up_at(self, now: float, longest_round_seconds: float) -> float:
        """Return the time at which a run that closes no round from `now` on is given up."""
        recurring = max(self.recurring_seconds, longest_round_seconds)
        return max(now, self.settled_at) + self.event_seconds + max(LEAST_SECONDS, TIMES * recurring)


def missing(machine: RoundMachine) -> str:
    """Return what a run waits for, in words."""
    return machine.waiting_for or f"the answers of {counted(len(machine.selected), 'node')} in round {machine.round}"
