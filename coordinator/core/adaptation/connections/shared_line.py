"""Number of nodes of a round where they share the coordinator's access line.

Nothing tells the coordinator its own bandwidth, nor whether nodes share it. Both follow from rounds of different
numbers of nodes: over lines of their own, each node is as fast among half as many, and over a full shared line twice as
fast. With A the rate of all nodes together where it has stopped to grow with their number, and o the rate of a node's
own line, a node among n has the rate r(n) = min(o, A / n). Rounds of n nodes with b bytes each make the progress per
second

    n / (n + φ) / (t + b / r(n))

with φ the number of nodes whose noise equals the signal (see `goodput`), and t the time of a round without transfers.
Where all nodes seem equally fast and the line may be full, three in four of them are tried, once: fewer would show it
more clearly, and cost more where the line is not shared. φ grows as training goes on, so that more nodes pay later.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final, NamedTuple

import numpy as np

from hypergpu.coordinator.core.decisions import Figures
from hypergpu.coordinator.core.links.profile import MBIT
from hypergpu.coordinator.core.node_arrays import Floats

LEAST_NODES: Final = 4
"""Smallest number of nodes of which fewer are tried."""
_LEAST_CHOSEN: Final = 2
_FIRST: Final = 0.75
"""Share of the nodes that is tried first."""
_SHOWS: Final = 0.8
"""Share of the nodes, or less, whose rate shows whether they share a line."""
_ALIKE: Final = 1.1
"""Ratio of the fastest and of the slowest node's rate to the median up to which nodes may share a line: of a full one,
each gets as much as the others."""
_LARGE_GAIN: Final = 1.25
"""Ratio of progress per second, of half of the nodes to all, for which fewer are tried: the line may not be shared."""
_LEAST_GAIN: Final = 1.1
"""Ratio for which the number changes once that is known."""
_STEPS: Final = (2, 4)
"""Factors between a number that was tried and one that is not, first and later: the nodes' own lines may limit them."""
_KEPT: Final = 3
"""Latest rounds of each number of nodes that count."""
_CHANGE: Final = 1.5
"""Ratio of a rate to the usual one of as many nodes from which the line has changed, twice in a row."""


class LineReason(StrEnum):
    """Reason for a number of nodes."""

    LINE_MAY_BE_SHARED = "line_may_be_shared"
    """All nodes seem equally fast: fewer of them may be faster each."""
    LINE_IS_SHARED = "line_is_shared"
    """Fewer nodes are faster each, and their rounds make more progress per second."""
    MORE_NODES_PAY = "more_nodes_pay"
    """Rounds of more nodes make more progress per second by now."""
    LINE_IS_NOT_SHARED = "line_is_not_shared"
    """Fewer nodes were no faster each, so all take part again."""
    LINE_HAS_CHANGED = "line_has_changed"
    """Rates differ from those of as many nodes before, or there are other nodes, so all take part again."""


class LineOutlook(NamedTuple):
    """Expectations of the coming round that do not concern the line."""

    nodes: int
    """Available nodes."""
    node_bytes: float
    """Bytes of a node's transfers, both directions together."""
    rest_seconds: float
    """Time of a round without transfers."""
    noise_nodes: float
    """Number of nodes whose gradient noise equals the gradient."""


class LineChange(NamedTuple):
    """Change of the number of nodes."""

    reason: LineReason
    figures: Figures


@dataclass(frozen=True, slots=True)
class _Line:
    """Rates that the line has shown."""

    all_rate: float
    """Rate of all nodes together, in bytes per second."""
    own_rate: float
    """Rate of a node's own line; infinite if unknown."""
    fewest: int
    """Smallest number of nodes that was tried."""
    is_known: bool
    """Far fewer nodes than all were tried."""

    def worth(self, count: Floats, outlook: LineOutlook) -> Floats:
        """Return the progress per second of rounds of so many nodes."""
        rate = np.minimum(self.own_rate, self.all_rate / count)
        worth: Floats = count / (count + outlook.noise_nodes) / (outlook.rest_seconds + outlook.node_bytes / rate)
        return worth

    def worth_of(self, count: int, outlook: LineOutlook) -> float:
        """Return the same of one number."""
        return float(self.worth(np.array([float(count)]), outlook)[0])


class SharedLine:
    """Search for the number of nodes of a round.

    Attributes:
        most: Largest number of nodes of the coming round; None without a limit.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self._nodes = 0
        """Available nodes during the search."""
        self._rates: dict[int, deque[float]] = {}
        """Median rate of a node in the latest rounds of each number of nodes."""
        self._are_alike = False
        self._has_tried = False
        """Fewer nodes than all were tried. That rounds happen to differ in their nodes shows little."""
        self._is_private = False
        """Nodes were found not to share a line, which is not tried again."""
        self._has_changed = False

    def record(self, nodes: int, rates: Sequence[float]) -> None:
        """Record a round.

        Args:
            nodes: Nodes that had work.
            rates: Bytes of the transfers of each, per second of its communication, as far as that was measured.
        """
        if 2 * len(rates) < nodes or not rates:
            return
        usual = median(rates)
        kept = self._rates.setdefault(nodes, deque(maxlen=_KEPT))
        kept.append(usual)
        first, latest = kept[0], [*kept][1:]
        self._has_changed = len(kept) == _KEPT and (min(latest) > _CHANGE * first or _CHANGE * max(latest) < first)
        is_complete = len(rates) == nodes  # a late node is not as fast as the others
        self._are_alike = is_complete and max(rates) <= _ALIKE * usual and usual <= _ALIKE * min(rates)

    def choose(self, outlook: LineOutlook) -> LineChange | None:
        """Choose the number of nodes of the coming round; return what changed and why."""
        self._nodes = self._nodes or outlook.nodes
        if not 0.75 * self._nodes <= outlook.nodes <= 1.25 * self._nodes or self._has_changed:
            return self._begin_again(outlook)
        if outlook.nodes < LEAST_NODES or not self._rates or outlook.node_bytes <= 0.0:
            return None
        line, now = self._known(), min(self.most or outlook.nodes, outlook.nodes)
        if not line.is_known or not self._has_tried:
            return self._try_fewer(line, outlook)
        least = line.fewest // _STEPS[2 * line.fewest <= outlook.nodes]
        counts = np.arange(max(least, _LEAST_CHOSEN), outlook.nodes + 1, dtype=np.float64)
        worths = line.worth(counts, outlook)
        best, gain = int(counts[int(worths.argmax())]), float(worths.max()) / line.worth_of(now, outlook)
        is_shared = line.own_rate * outlook.nodes > _SHOWS / _FIRST * line.all_rate
        if not is_shared:
            self._is_private = True
            best, reason = outlook.nodes, LineReason.LINE_IS_NOT_SHARED
        else:
            reason = LineReason.LINE_IS_SHARED if best < now else LineReason.MORE_NODES_PAY
        if best == now or (is_shared and gain < _LEAST_GAIN):
            return None
        self.most = best if best < outlook.nodes else None
        return self._change(reason, now, best, {"gain": gain, "all_mbit": MBIT * line.all_rate})

    def _try_fewer(self, line: _Line, outlook: LineOutlook) -> LineChange | None:
        """Try fewer nodes, if half of them would be worth much more over a shared line."""
        half = outlook.nodes // 2
        gain = line.worth_of(half, outlook) / line.worth_of(outlook.nodes, outlook)
        if gain < _LARGE_GAIN or not self._are_alike or self._is_private:
            return None
        self.most, self._has_tried = int(_FIRST * outlook.nodes), True
        figures = {"gain": gain, "all_mbit": MBIT * line.all_rate}
        return self._change(LineReason.LINE_MAY_BE_SHARED, outlook.nodes, self.most, figures)

    def _known(self) -> _Line:
        """Return what the rates show. Own lines limit rates that do not add up to that of the full line."""
        rates = {count: median(each) for count, each in self._rates.items()}
        all_rate = max(count * rate for count, rate in rates.items())
        own = [rate for count, rate in rates.items() if count * rate < math.sqrt(_FIRST) * all_rate]
        fewest = min(rates)
        return _Line(all_rate, max(own, default=math.inf), fewest, fewest <= _SHOWS * max(rates))

    def _begin_again(self, outlook: LineOutlook) -> LineChange | None:
        """Forget the line, and take all nodes."""
        before, self.most = self.most, None
        self._nodes, self._has_changed = outlook.nodes, False
        self._has_tried = False
        self._rates.clear()
        return None if before is None else self._change(LineReason.LINE_HAS_CHANGED, before, outlook.nodes, {})

    @staticmethod
    def _change(reason: LineReason, before: int, after: int, figures: Figures) -> LineChange:
        return LineChange(reason, {"from": before, "to": after, **figures})
