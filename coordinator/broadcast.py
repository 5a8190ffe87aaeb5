"""Parameters of the running round in chunks, encoded once for all nodes that receive them in the same form."""

import asyncio
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

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
        self._kept: dict[tuple[int, str], asyncio.Future[list[bytes]]] = {}
        """Parameters of earlier rounds as their nodes received them, by round and codec."""

    def begin_round(self, round_number: int) -> None:
        """Send the model's present parameters from now on."""
        self._round, self._parts = round_number, {}
        changed = self._planner.begin_round(round_number)
        self._compute("preparing the parameters", self._outgoing.begin_round, changed)

    def end_round(self) -> None:
        """Send nothing until the next round begins."""
        self._round, self._parts = 0, {}

    def keep(self, wanted: Collection[tuple[int, str]]) -> None:
        """Keep the parameters of these rounds, by codec, and no others; called before the step of the latest."""
        self._kept = {
            key: self._kept.get(key) or self._compute("keeping the parameters", self._encode_received, key[1])
            for key in wanted
        }

    def revert(self) -> None:
        """Note that the model was given up for an earlier one."""
        self._planner.revert()

    def is_current(self, round_number: int) -> bool:
        """Return whether the parameters of this round are still needed."""
        return self._round == round_number

    def plan(self, codec: str, held: Held, kept: tuple[int, str] | None = None) -> Sending:
        """Return what to send to a node, by what it says that it holds; or kept parameters, as they are."""
        if kept is not None:
            return Sending("none", kept=kept)
        return self._planner.plan(codec, held)

    async def parts(self, round_number: int, sending: Sending) -> list[bytes] | None:
        """Return the encoded chunks of parameters, or None if they are no longer those of the round, or not kept."""
        if sending.kept is not None:
            kept = self._kept.get(sending.kept)
            return None if kept is None else await asyncio.shield(kept)
        if not self.is_current(round_number):
            return None
        parts = self._parts.get(sending)
        if parts is None:
            parts = self._parts[sending] = self._compute("encoding the parameters", self._encode, sending)
        return await asyncio.shield(parts)

    def _encode(self, sending: Sending) -> list[bytes]:
        return [encode_part(chunk) for chunk in chunks(self._outgoing.payload(sending))]

    def _encode_received(self, codec: str) -> list[bytes]:
        return [encode_part(chunk) for chunk in chunks(self._outgoing.received(codec).view(np.uint8))]
