"""Budgets of the coordinator's callers."""

from typing import Final

from hypergpu.common.call_budgets import CallBudgets
from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.token_bucket import Budget

NEWCOMERS: Final = Budget(rate=20.0, burst=200.0)
"""Registrations without a lease from one address: hundreds of nodes behind one NAT or proxy may start at once."""
NODES: Final = Budget(rate=400.0, burst=800.0)
"""Calls of one node for work and transfers, each over up to 16 connections: far above what a round takes."""
HEARTBEATS_AHEAD: Final = 10.0
"""Heartbeats of one node per interval that are permitted: twenty times as many at once."""


class NodeBudgets(CallBudgets):
    """Budgets of nodes, and of the users of a run.

    Args:
        heartbeat_seconds: interval of heartbeats that nodes are told.
        clock: time.
    """

    def __init__(self, heartbeat_seconds: float, clock: Clock = monotonic) -> None:
        super().__init__(clock)
        rate = HEARTBEATS_AHEAD / heartbeat_seconds
        self._heartbeats = Budget(rate, 20.0 + 2.0 * HEARTBEATS_AHEAD)

    def newcomer(self, address: str) -> None:
        """Count a registration of a process that shows no lease.

        Raises:
            ResourceExhausted: too many came from this address.
        """
        self.spend("registrations", address, NEWCOMERS)

    def node(self, node: str, *, is_heartbeat: bool) -> None:
        """Count a call of a node, whose lease is known to be its own.

        Raises:
            ResourceExhausted: it calls too often.
        """
        if is_heartbeat:
            self.spend("heartbeats", node, self._heartbeats)
        else:
            self.spend("calls", node, NODES)
