"""How long a round may take, from what its nodes needed before: nobody sets a timeout."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from hypergpu.common.statistics import MAD_TO_SIGMA, median_and_mad

WINDOW = 9
"""Rounds of a node that count."""
LONGEST_IN_VAIN_SECONDS = 86_400.0
"""The most that a round is given for the sake of one that nobody answered."""


class DeadlineReason(StrEnum):
    """What a round's deadline rests on."""

    NOT_MEASURED = "not_measured"
    """Fewer than half of its nodes have ever finished a round: a generous fixed time."""
    MEASURED = "measured"
    """Median + k·MAD of what its nodes need."""
    NEWCOMERS = "newcomers"
    """As measured, but longer, since some of its nodes are new."""
    AFTER_QUORUM = "after_quorum"
    """Nothing was measured before, but now a quorum has shown how long it takes."""
    FIXED = "fixed"
    """Policy `none`: everybody who is there is waited for."""
    EXTENDED = "extended"
    """It passed without a quorum."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Seconds from the start of the round, and what they rest on."""

    seconds: float
    reason: DeadlineReason
    median_seconds: float = 0.0
    mad_seconds: float = 0.0
    measured_nodes: int = 0


class DeadlineEstimator:
    """Learns what each node needs from a work unit to an accepted update (pull, compute, push), and sets deadlines.

    A node's need is the median of its last rounds + k·MAD of them, so that a link that is sometimes slow is given its
    slow times too. A round's deadline is the median of its nodes' needs + k·MAD of those, and no longer than the
    slowest of them needs: a node far outside what is usual in this cluster is not waited for.

    Late updates teach nothing: else a node could stretch the rounds of a small cluster further with each of them. Where
    nobody at all answers a round, the next one is given twice the time in all, till the first answer.
    """

    def __init__(self, *, mads: float = 4.0, first_seconds: float = 600.0, least_slack_seconds: float = 1.0) -> None:
        self._mads = mads
        self._first_seconds = first_seconds
        self._least_slack_seconds = least_slack_seconds
        self._history: dict[str, deque[float]] = {}
        self._needs: dict[str, float] = {}
        """Worked out when asked for: not with every update."""
        self._least_seconds = 0.0

    def observe(self, node: str, seconds: float) -> None:
        """A node needed `seconds` from its unit to the arrival of its update, in time."""
        history = self._history.get(node)
        if history is None:
            history = self._history[node] = deque(maxlen=WINDOW)
        history.append(seconds)
        self._needs.pop(node, None)
        self._least_seconds = 0.0

    def record_empty_round(self, seconds: float) -> None:
        """A round lasted for so long, extensions included, and nobody answered: in that time again, nobody would.

        Extended as often as that one, a round of half of it lasts for twice as long.
        """
        self._least_seconds = min(max(self._least_seconds, 0.5 * seconds), LONGEST_IN_VAIN_SECONDS)

    def forget(self, node: str) -> None:
        """The node is gone for good."""
        self._history.pop(node, None)
        self._needs.pop(node, None)

    def need(self, node: str) -> float | None:
        """Seconds that a node needs for a round, with its usual spread; None before its first."""
        need = self._needs.get(node)
        if need is None and node in self._history:
            centre, spread = median_and_mad(self._history[node])
            need = self._needs[node] = centre + self._slack(centre, spread)
        return need

    def deadline(self, nodes: Sequence[str]) -> Deadline:
        """The deadline of a round of these nodes."""
        needs = [need for node in nodes if (need := self.need(node)) is not None]
        if 2 * len(needs) < len(nodes) or not needs:
            seconds = max(self._first_seconds, self._least_seconds)
            return Deadline(seconds, DeadlineReason.NOT_MEASURED, measured_nodes=len(needs))
        centre, spread = median_and_mad(needs)
        seconds = min(centre + self._slack(centre, spread), max(needs))
        reason = DeadlineReason.MEASURED
        if len(needs) < len(nodes):
            seconds, reason = max(seconds, 4.0 * max(needs)), DeadlineReason.NEWCOMERS
        return Deadline(max(seconds, self._least_seconds), reason, centre, spread, len(needs))

    def fixed(self) -> Deadline:
        """The deadline of a round that waits for everybody: only what never ends is given up."""
        return Deadline(max(self._first_seconds, self._least_seconds), DeadlineReason.FIXED)

    def after_quorum(self, elapsed_seconds: float) -> float:
        """Where nothing was measured: seconds from the start that the rest may take once a quorum needed `elapsed`."""
        return max(3.0 * elapsed_seconds, elapsed_seconds + 0.5 * self._least_slack_seconds)

    def _slack(self, centre: float, spread: float) -> float:
        return max(self._mads * MAD_TO_SIGMA * spread, 0.5 * centre, self._least_slack_seconds)
