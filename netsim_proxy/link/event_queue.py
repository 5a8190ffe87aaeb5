"""Queue of future events, by time or by training round."""

import itertools
import math
from collections.abc import Iterable
from heapq import heappop, heappush

from hypergpu.netsim_proxy.link.events import NetworkEvent


class EventQueue:
    """Future events, each returned once when it is due: in order of time, or of round."""

    def __init__(self, events: Iterable[NetworkEvent] = (), start: float = 0.0) -> None:
        self._by_time: list[tuple[float, int, NetworkEvent]] = []
        self._by_round: list[tuple[int, int, NetworkEvent]] = []
        self._order = itertools.count()
        for event in events:
            self.add(event, start)

    def __len__(self) -> int:
        return len(self._by_time) + len(self._by_round)

    def add(self, event: NetworkEvent, start: float = 0.0) -> None:
        """Add an event; its time counts from `start`. An event with neither time nor round is due at `start`."""
        if event.scheduled_round is not None:
            heappush(self._by_round, (event.scheduled_round, next(self._order), event))
        else:
            heappush(self._by_time, (start + (event.scheduled_time or 0.0), next(self._order), event))

    @property
    def next_at(self) -> float:
        """Time of the next event by time; infinite if there is none."""
        return self._by_time[0][0] if self._by_time else math.inf

    def due(self, now: float) -> list[tuple[float, NetworkEvent]]:
        """Return the events by time that are due and not returned yet, each with its time."""
        out = []
        while self._by_time and self._by_time[0][0] <= now:
            at, _, event = heappop(self._by_time)
            out.append((at, event))
        return out

    def due_in_round(self, number: int) -> list[NetworkEvent]:
        """Return the events of rounds up to `number` that are not returned yet."""
        out = []
        while self._by_round and self._by_round[0][0] <= number:
            out.append(heappop(self._by_round)[2])
        return out
