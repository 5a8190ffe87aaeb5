"""Reader that stops while there is a reason to hold it."""

from hypergpu.netsim_proxy.link.outcomes import Direction
from hypergpu.netsim_proxy.relay.agenda import Agenda
from hypergpu.netsim_proxy.relay.effects import Pause, Resume


class HeldReader:
    """Reader of one direction of a connection; any number of reasons may hold it."""

    def __init__(self, agenda: Agenda, connection: int, direction: Direction) -> None:
        self.direction = direction
        self._agenda, self._connection = agenda, connection
        self.index = direction.ordinal
        self._holds: set[object] = set()

    def hold(self, reason: object) -> None:
        """Stop reading until every reason is released."""
        if not self._holds:
            self._agenda.effects.append(Pause(self._connection, self.direction))
        self._holds.add(reason)

    def release(self, reason: object) -> None:
        """Resume reading, unless other reasons remain."""
        if reason in self._holds:
            self._holds.remove(reason)
            if not self._holds:
                self._agenda.effects.append(Resume(self._connection, self.direction))
