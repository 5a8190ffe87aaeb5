"""Budgets of callers: no caller may take the time of the others by calling too often."""

from typing import Final

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.errors import ResourceExhausted
from hypergpu.common.token_bucket import Budget, Budgets

NEWCOMERS: Final = Budget(rate=20.0, burst=200.0)
"""Registrations without a lease from one address: hundreds of nodes behind one NAT or proxy may start at once."""
USERS: Final = Budget(rate=50.0, burst=200.0)
"""Calls for status, and those for control, from one address."""
NODES: Final = Budget(rate=400.0, burst=800.0)
"""Calls of one node for work and transfers, each over up to 16 connections: far above what a round takes."""
HEARTBEATS_AHEAD: Final = 10.0
"""Heartbeats of one node per interval that are permitted: twenty times as many at once."""


class CallBudgets:
    """Budgets by caller and kind of call.

    Args:
        heartbeat_seconds: interval of heartbeats that nodes are told.
        clock: time.
    """

    def __init__(self, heartbeat_seconds: float, clock: Clock = monotonic) -> None:
        rate = HEARTBEATS_AHEAD / heartbeat_seconds
        self._heartbeats = Budget(rate, 20.0 + 2.0 * HEARTBEATS_AHEAD)
        self._budgets, self._clock = Budgets(), clock

    def newcomer(self, address: str) -> None:
        """Count a registration of a process that shows no lease.

        Raises:
            ResourceExhausted: too many came from this address.
        """
        self._spend("registrations", address, NEWCOMERS)

    def user(self, address: str, *, controls: bool) -> None:
        """Count a call for status, or to control the run: who only reads does not keep an operator out.

        Raises:
            ResourceExhausted: too many came from this address.
        """
        self._spend("calls for control" if controls else "calls for status", address, USERS)

    def node(self, node: str, *, is_heartbeat: bool) -> None:
        """Count a call of a node, whose lease is known to be its own.

        Raises:
            ResourceExhausted: it calls too often.
        """
        if is_heartbeat:
            self._spend("heartbeats", node, self._heartbeats)
        else:
            self._spend("calls", node, NODES)

    def _spend(self, what: str, caller: str, budget: Budget) -> None:
        wait = self._budgets.spend((what, caller), budget, self._clock())
        if wait:
            raise ResourceExhausted(
                f"too many {what} of {caller or 'this caller'}: {budget.rate:g} a second are permitted; try again in "
                f"{wait:.2g} s"
            )
