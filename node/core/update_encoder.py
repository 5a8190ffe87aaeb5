"""Encoding of a node's updates, with what their codecs lose of one added to the next."""

from typing import NamedTuple

import numpy as np

from hypergpu.common.codecs import ErrorFeedback, PayloadFormat, find_codec
from hypergpu.common.tensors import Flat, Payload


class EncodedUpdate(NamedTuple):
    """An update as it is sent."""

    form: PayloadFormat
    payload: Payload
    noise: float
    """|decoded - exact|² ÷ |exact|², where the residual of earlier updates is part of the exact one."""


class UpdateEncoder:
    """Encodes the updates of one node in one run, and holds the residual.

    Args:
        parameters: number of values that a codec may change.
        state: number of values that follow and stay exact.
    """

    def __init__(self, parameters: int, state: int) -> None:
        self._parameters, self._state = parameters, state
        self._feedback: ErrorFeedback | None = None
        self._buffer: Payload = np.empty(0, np.uint8)

    def encode(
        self, update: Flat, codec: str, *, round_number: int, accepted_round: int = 0, trial: bool = False
    ) -> EncodedUpdate:
        """Encode the update of a round; its payload is overwritten by the next one.

        Args:
            update: shape (parameters + state,). The residual is added to it in place.
            codec: name of the codec.
            round_number: round of the update.
            accepted_round: latest round whose update of this node is in the model; it decides the fate of the last one.
            trial: the update does not enter the model, and so has no part in the residual.

        Raises:
            UnknownName: there is no such codec.
            NonFiniteUpdate: the update holds NaN or infinity.
        """
        form = PayloadFormat(find_codec(codec), self._parameters, self._state)
        self.settle(accepted_round)
        if not form.codec.is_exact and len(self._buffer) != form.payload_bytes:
            self._buffer = np.empty(form.payload_bytes, np.uint8)
        error = None if trial else self._add_residual(update, form, round_number)
        payload, noise = form.encode(update, self._buffer, error)
        return EncodedUpdate(form, payload, noise)

    def settle(self, accepted_round: int) -> None:
        """Keep what the codec lost of the last update if it was accepted for this round; else drop it."""
        if self._feedback is not None:
            self._feedback.settle(accepted_round)

    def _add_residual(self, update: Flat, form: PayloadFormat, round_number: int) -> Flat | None:
        """Add the residual to an update; return the buffer for the new error, or None if errors are not kept."""
        if self._feedback is None and form.codec.needs_feedback:
            self._feedback = ErrorFeedback(self._parameters)
        if self._feedback is None:
            return None
        self._feedback.add_to(update, round_number)
        return self._feedback.stage(round_number)
