"""Detection of simulated runs that make no progress: heartbeats alone would keep them running for ever."""

from dataclasses import dataclass

from hypergpu.common.text import counted
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.simulation.scenario import Scenario

LEAST_SECONDS = 2 * 3600.0
"""Least limit: twice the longest round that a scenario is expected to have."""
TIMES = 10
"""Number of times that the slowest recurring thing may fail."""
MOST_SECONDS = 10 * 86_400.0
"""Longest time without a closed round in which transfers may move on."""
_HEARTBEAT_BYTES = 2_400
"""More than a heartbeat and its answer take."""
_MOVES_SHARE = 0.01
"""Share of the model that transfers move at least between two checks."""


@dataclass(frozen=True, slots=True)
class StallDetector:
    """Limit on the time that a run may go without closing a round.

    Attributes:
        settled_at: time from which all nodes have started and all events by time are over.
        recurring_seconds: longest period of what recurs: churn, setup, and the detection of lost nodes.
        event_seconds: longest event; one by round may have begun with the last round.
        heartbeat_bytes_per_second: most bytes per second of all heartbeats.
        model_bytes: size of the model.
    """

    settled_at: float
    recurring_seconds: float
    event_seconds: float
    heartbeat_bytes_per_second: float
    model_bytes: int

    @classmethod
    def of(cls, scenario: Scenario, model_bytes: int) -> "StallDetector":
        """Return the limit for a scenario with a model of so many bytes."""
        churns = [group.churn.up_seconds + group.churn.down_seconds for group in scenario.nodes if group.churn]
        setups = [group.setup_seconds for group in scenario.nodes]
        arrivals = [group.join_delay_seconds + group.setup_seconds for group in scenario.nodes]
        ends = [(event.at_seconds or 0.0) + event.duration_seconds for event in scenario.events]
        return cls(
            settled_at=max(*arrivals, *ends, 0.0),
            recurring_seconds=max(*churns, *setups, scenario.config.server.lost_after_seconds),
            event_seconds=max((event.duration_seconds for event in scenario.events), default=0.0),
            heartbeat_bytes_per_second=len(scenario.cards())
            * _HEARTBEAT_BYTES
            / scenario.config.server.heartbeat_seconds,
            model_bytes=model_bytes,
        )

    def gives_up_at(self, now: float, longest_round_seconds: float) -> float:
        """Return the time at which a run that closes no round from `now` on is given up."""
        recurring = max(self.recurring_seconds, longest_round_seconds)
        return max(now, self.settled_at) + self.event_seconds + max(LEAST_SECONDS, TIMES * recurring)

    def is_moving(self, nbytes: int, seconds: float) -> bool:
        """Return whether so many bytes in so many seconds are more than those of heartbeats."""
        return nbytes > self.heartbeat_bytes_per_second * seconds + _MOVES_SHARE * self.model_bytes


def missing(machine: RoundMachine) -> str:
    """Return what a run waits for, in words."""
    return machine.waiting_for or f"the answers of {counted(len(machine.selected), 'node')} in round {machine.round}"
