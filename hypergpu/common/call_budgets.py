"""Budgets of calls to a service: no caller may take the time of the others by calling too often."""

from typing import Final

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.errors import ResourceExhausted
from hypergpu.common.token_bucket import Budget, Budgets

USERS: Final = Budget(rate=50.0, burst=200.0)
"""Calls for status, and those for control, from one address."""


class CallBudgets:
    """Budgets by caller and kind of call.

    Args:
        clock: time.
    """

    def __init__(self, clock: Clock = monotonic) -> None:
        self._budgets, self._clock = Budgets(), clock

    def user(self, address: str, *, controls: bool) -> None:
        """Count a call for status, or for control: who only reads does not keep an operator out.

        Raises:
            ResourceExhausted: too many came from this address.
        """
        self.spend("calls for control" if controls else "calls for status", address, USERS)

    def spend(self, what: str, caller: str, budget: Budget) -> None:
        """Count a call of a kind.

        Raises:
            ResourceExhausted: the caller's budget is spent.
        """
        wait = self._budgets.spend((what, caller), budget, self._clock())
        if wait:
            raise ResourceExhausted(
                f"too many {what} of {caller or 'this caller'}: {budget.rate:g} a second are permitted; try again in "
                f"{wait:.2g} s"
            )
