"""Parameters of the running round in chunks, encoded once for all nodes that receive them in the same form."""

import asyncio
from collections.abc import Callable
from typing import Any

from hypergpu.common.tensors import chunks
from hypergpu.common.wire import encode_part
from hypergpu.coordinator.core.model.fragment_sendings import Held, ModelSendings, OutgoingModel
from hypergpu.coordinator.core.model.outgoing import Sending

Compute = Callable[..., "asyncio.Future[Any]"]
"""Runs a function, after a text that says what it does, on the thread that also changes the model."""


class Broadcast:
    """Broadcast of one run's parameters.

    Args:
        outgoing: encodes; used on the compute thread only.
        compute: queues functions on that thread, in order.
        planner: plans what nodes are sent; by default the whole model.
    """

    def __init__(self, outgoing: OutgoingModel, compute: Compute, planner: ModelSendings | None = None) -> None:
        self._outgoing, self._compute = outgoing, compute
        self._round = 0
        """Round whose parameters can be sent; 0 = none."""
        self._planner = planner or ModelSendings(1)
        self._parts: dict[Sending, asyncio.Future[list[bytes]]] = {}

    def begin_round(self, round_number: int) -> None:
        """Send the model's present parameters from now on."""
        self._round, self._parts = round_number, {}
        changed = self._planner.begin_round(round_number)
        self._compute("preparing the parameters", self._outgoing.begin_round, changed)

    def end_round(self) -> None:
        """Send nothing until the next round begins."""
        self._round, self._parts = 0, {}

    def revert(self) -> None:
        """Note that the model was given up for an earlier one."""
        self._planner.revert()

    def is_current(self, round_number: int) -> bool:
        """Return whether the parameters of this round are still needed."""
        return self._round == round_number

    def plan(self, codec: str, held: Held) -> Sending:
        """Return what to send to a node, by what it says that it holds."""
        return self._planner.plan(codec, held)

    async def parts(self, round_number: int, sending: Sending) -> list[bytes] | None:
        """Return the encoded chunks of a round's parameters, or None if the round is no longer running."""
        if not self.is_current(round_number):
            return None
        parts = self._parts.get(sending)
        if parts is None:
            parts = self._parts[sending] = self._compute("encoding the parameters", self._encode, sending)
        return await asyncio.shield(parts)

    def _encode(self, sending: Sending) -> list[bytes]:
        return [encode_part(chunk) for chunk in chunks(self._outgoing.payload(sending))]
