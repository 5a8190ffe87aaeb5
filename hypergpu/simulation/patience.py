"""When a simulated run that gets nowhere is given up: heartbeats alone would keep it going for ever."""

from dataclasses import dataclass

from hypergpu.common.text import counted
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.simulation.scenario import Scenario

LEAST_SECONDS = 2 * 3600.0
"""The coordinator ends its first round within a third of that, whoever answers."""
TIMES = 10
"""Number of times that the slowest recurring thing may fail."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a run may go without a round.

    Attributes:
        settled_at: when all nodes have come, and no event by time is to come or runs any more.
        recurring_seconds: the longest of what comes round again: nodes that come and go, and how silence is noticed.
        event_seconds: the longest event, since one by round may have begun with the last round.
    """

    settled_at: float
    recurring_seconds: float
    event_seconds: float

    @classmethod
    def of(cls, scenario: Scenario) -> "Patience":
        """Return what the scenario still has to come."""
        churns = [group.churn.up_seconds + group.churn.down_seconds for group in scenario.nodes if group.churn]
        prepares = [group.prepares_seconds for group in scenario.nodes]
        arrivals = [group.joins_seconds + group.prepares_seconds for group in scenario.nodes]
        ends = [(event.at_seconds or 0.0) + event.duration_seconds for event in scenario.events]
        return cls(
            settled_at=max(*arrivals, *ends, 0.0),
            recurring_seconds=max(*churns, *prepares, scenario.config.server.lost_after_seconds),
            event_seconds=max((event.duration_seconds for event in scenario.events), default=0.0),
        )

    def until(self, now: float, longest_round_seconds: float) -> float:
        """When a run is given up that has not closed a round since `now`."""
        recurring = max(self.recurring_seconds, longest_round_seconds)
        return max(now, self.settled_at) + self.event_seconds + max(LEAST_SECONDS, TIMES * recurring)


def missing(machine: RoundMachine) -> str:
    """Return what a run waits for, in words."""
    return machine.waiting_for or f"the answers of {counted(len(machine.selected), 'node')} in round {machine.round}"
