"""Deadlines of rounds, measured from what the nodes needed before; no timeout is configured."""

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from hypergpu.common.statistics import MAD_TO_SIGMA, median_and_mad

WINDOW = 9
"""Number of latest rounds of a node that count."""
MIN_SLACK_SECONDS = 0.05
"""Shortest time above the usual: what timers, and processes that share a machine, are late by."""
FIRST_DEADLINE_SECONDS = 600.0
"""Deadline of a round of which nothing is known: enough to start processes and to load their data."""
MAX_EMPTY_ROUND_SECONDS = 86_400.0
"""Longest deadline that follows from rounds without any update."""
NEWCOMER_FACTOR = 4.0
"""Deadline of a round with unmeasured nodes, in needs of its slowest measured node: a first round also loads data."""
TRANSFER_FACTOR = 2.0
"""Deadline of a round of unmeasured nodes, in times of what the transfers of the slowest take by its rate."""
UNMEASURED_FACTOR = 3.0
"""Deadline of a round of unmeasured nodes, in times that its quorum needed."""
OWN_DATA_FACTOR = 10.0
"""The same where each node holds its own data: a card of a tenth of the speed is still waited for."""
EXPECTED_FACTOR = 4.0
"""Time for a node that a round needs, in times of what is expected of it: an update that is late is lost."""


class DeadlineReason(StrEnum):
    """Reason for the deadline of a round."""

    NOT_MEASURED = "not_measured"
    """Fewer than half of its nodes have finished a round before: a generous fixed time."""
    MEASURED = "measured"
    """Median + k·MAD of the times that its nodes need."""
    NEWCOMERS = "newcomers"
    """Measured, but longer because some of its nodes are new."""
    TRANSFERS = "transfers"
    """Not measured, but the rate of a link shows that its transfers take longer than the generous fixed time."""
    AFTER_QUORUM = "after_quorum"
    """Not measured before, but set from the time that the quorum needed."""
    FIXED = "fixed"
    """Policy `none`: the round waits for all nodes."""
    EXTENDED = "extended"
    """Extended, as it passed without a quorum."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Deadline in seconds from the start of the round, and the figures that it was set from."""

    seconds: float
    reason: DeadlineReason
    median_seconds: float = 0.0
    mad_seconds: float = 0.0
    measured_nodes: int = 0
    shortest_seconds: float = math.inf
    """Seconds that the measured nodes are given. A deadline above them is shortened as updates arrive."""


class DeadlineEstimator:
    """Measures the time of each node from an assignment to an accepted update (pull, compute, push); sets deadlines.

    The need of a node is the median of its last rounds + k·MAD, which leaves room for a link that is sometimes slow.
    The deadline of a round is the median of its nodes' needs + k·MAD of those, bounded by the need of the slowest: the
    round does not wait for a node far outside what is usual in this cluster.

    Late updates are not measured; otherwise a node could lengthen the rounds of a small cluster with each of them.
    After a round without any update, the next one gets twice the time in all, until the first update arrives.

    Args:
        mads: k, the MADs above the median that are still waited for.
    """

    def __init__(self, *, mads: float = 4.0) -> None:
        self._mads = mads
        self._history: dict[str, deque[float]] = {}
        self._needs: dict[str, float] = {}
        """Computed when needed, not with every update."""
        self._least_seconds = 0.0
        self._latest_work: dict[str, tuple[float, int]] = {}

    def observe(self, node: str, seconds: float, compute_seconds: float = 0.0, samples: int = 0) -> None:
        """Note that an update arrived in time.

        Args:
            node: Id of the node.
            seconds: Time since the work unit was assigned.
            compute_seconds: Part of it that computing took.
            samples: Samples of all steps.
        """
        self._latest_work[node] = compute_seconds, samples
        history = self._history.get(node)
        if history is None:
            history = self._history[node] = deque(maxlen=WINDOW)
        history.append(seconds)
        self._needs.pop(node, None)
        self._least_seconds = 0.0

    @property
    def is_unmeasured(self) -> bool:
        """True until the first update of the run has arrived."""
        return not self._history

    def shift(self, node: str, seconds: float) -> None:
        """Add seconds to what a node needed: its payloads have another size from now on.

        No round becomes shorter than the computing of the latest one.
        """
        history = self._history.get(node)
        if history is not None:
            least = self._latest_work[node][0]
            shifted = [max(each + seconds, min(each, least)) for each in history]
            self._history[node] = deque(shifted, maxlen=WINDOW)
            self._needs.pop(node, None)

    def record_empty_round(self, seconds: float) -> None:
        """Note a round without any update that lasted `seconds`, extensions included; the next ones get more time.

        A deadline of half of it, extended as often, makes a round twice as long.
        """
        self._least_seconds = min(max(self._least_seconds, 0.5 * seconds), MAX_EMPTY_ROUND_SECONDS)

    def forget(self, node: str) -> None:
        """Forget a node that left."""
        self._history.pop(node, None)
        self._latest_work.pop(node, None)
        self._needs.pop(node, None)

    def need(self, node: str, samples: int = 0) -> float | None:
        """Return the seconds that a node needs for a round, with its usual spread; None before its first.

        More samples than in its latest round take more time in proportion, which is more than steps take whose cost is
        partly fixed.
        """
        usual = self._usual_need(node)
        if usual is None:
            return None
        compute_seconds, before = self._latest_work[node]
        return usual + (compute_seconds * (samples / before - 1.0) if samples > before > 0 else 0.0)

    def _usual_need(self, node: str) -> float | None:
        need = self._needs.get(node)
        if need is None and node in self._history:
            history = sorted(self._history[node])
            centre, spread = median_and_mad(history)
            slow = history[3 * len(history) // 4]  # of a node that is slow every third time, the MAD may be 0
            need = self._needs[node] = max(slow, centre + self._slack(centre, spread))
        return need

    def deadline(
        self,
        samples: Mapping[str, int],
        wait_for: Collection[str] = (),
        transfer_seconds: Mapping[str, float] = MappingProxyType({}),
        expected_seconds: Mapping[str, float] = MappingProxyType({}),
    ) -> Deadline:
        """Return the deadline of a round.

        Args:
            samples: Samples of all steps of each node.
            wait_for: Nodes for which the deadline leaves the time that they usually need.
            transfer_seconds: Time of the transfers of a round by the rate of the link, where that is known.
            expected_seconds: Time that is expected of nodes without which the round lacks what it is for.
        """
        nodes = samples.keys()
        needs = [need for node in nodes if (need := self.need(node, samples[node])) is not None]
        if 2 * len(needs) < len(nodes) or not needs:
            return self._unmeasured([transfer_seconds.get(node, 0.0) for node in nodes], len(needs))
        centre, spread = median_and_mad(needs)
        seconds = min(centre + self._slack(centre, spread), max(needs))
        seconds = max(seconds, *(self.need(node, samples.get(node, 0)) or 0.0 for node in wait_for), 0.0)
        seconds = max(seconds, EXPECTED_FACTOR * max(expected_seconds.values(), default=0.0))
        seconds = max(seconds, self._least_seconds)
        if len(needs) == len(nodes):
            return Deadline(seconds, DeadlineReason.MEASURED, centre, spread, len(needs))
        longest = max(seconds, NEWCOMER_FACTOR * max(needs))
        return Deadline(longest, DeadlineReason.NEWCOMERS, centre, spread, len(needs), shortest_seconds=seconds)

    def _unmeasured(self, transfer_seconds: Sequence[float], measured_nodes: int) -> Deadline:
        """Return the deadline of a round of which less than half of the nodes were measured."""
        transfers = min(TRANSFER_FACTOR * max(transfer_seconds, default=0.0), MAX_EMPTY_ROUND_SECONDS)
        seconds, reason = max(FIRST_DEADLINE_SECONDS, self._least_seconds), DeadlineReason.NOT_MEASURED
        if transfers > seconds:
            seconds, reason = transfers, DeadlineReason.TRANSFERS
        return Deadline(seconds, reason, measured_nodes=measured_nodes, shortest_seconds=0.0)

    def fixed(self, samples: Mapping[str, int]) -> Deadline:
        """Return the deadline of a round that waits for all nodes, except those that never answer.

        It is generous and, where a round takes long, many times what the slowest of its measured nodes needs.
        """
        needs = [need for node in samples if (need := self.need(node, samples[node])) is not None]
        seconds = max(FIRST_DEADLINE_SECONDS, self._least_seconds, NEWCOMER_FACTOR * max(needs, default=0.0))
        return Deadline(seconds, DeadlineReason.FIXED, measured_nodes=len(needs))

    def after_quorum(self, elapsed_seconds: float, factor: float) -> float:
        """Return the deadline, in seconds from the start, of a round that has a quorum and waits for unmeasured nodes.

        Args:
            elapsed_seconds: Seconds in which a quorum has answered.
            factor: Multiple of them that is waited for the others.
        """
        return max(factor * elapsed_seconds, elapsed_seconds + MIN_SLACK_SECONDS)

    def _slack(self, centre: float, spread: float) -> float:
        return max(self._mads * MAD_TO_SIGMA * spread, 0.5 * centre, MIN_SLACK_SECONDS)
