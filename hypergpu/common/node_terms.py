"""Terms on which a node takes part: its price, and its priority class."""

from dataclasses import dataclass
from typing import Final, Literal

PriorityClass = Literal["low", "normal", "high"]
PRIORITY_CLASSES: Final[tuple[PriorityClass, ...]] = ("low", "normal", "high")
"""Priority classes in ascending order."""
MAX_PRICE_PER_HOUR: Final = 1e6
_SECONDS_PER_HOUR: Final = 3600.0


@dataclass(frozen=True, slots=True)
class NodeTerms:
    """Price and priority class of a node."""

    price_per_hour: float = 0.0
    """Price of an hour in which the node works for the run, in the user's currency."""
    priority: PriorityClass = "normal"
    """Class that goes first where a budget or a maximum leaves nodes out."""

    def spent(self, seconds: float) -> float:
        """Return the price of so many seconds."""
        return self.price_per_hour * seconds / _SECONDS_PER_HOUR


FREE: Final = NodeTerms()
