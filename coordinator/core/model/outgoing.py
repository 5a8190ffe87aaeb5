"""Parameters as nodes receive them: encoded once for each codec and round, not for each node."""

from typing import Final, NamedTuple

import numpy as np

from hypergpu.common.tensors import Flat, Payload
from hypergpu.coordinator.core.model.global_model import GlobalModel

DIFFERENCE_CODEC: Final = "int8"
"""Codec in which nodes receive the difference to the parameters before; its error is too large for the parameters."""


class Sending(NamedTuple):
    """Form in which a node is sent the parameters of a round."""

    codec: str
    version: int = 0
    """Version that the node holds then, to which a difference can be added; 0 = none."""
    base: int = 0
    """Version to which the payload is the difference; 0 = the payload holds the parameters themselves."""


def plan_sending(codec: str, held: int, version: int) -> Sending:
    """Return what to send to a node that holds a version of the parameters.

    Args:
        codec: codec of the node's parameters.
        held: version that the node says it holds; 0 = none.
        version: version of this round; each round has another one, also one that is opened again.
    """
    if codec != DIFFERENCE_CODEC:
        return Sending(codec)
    if held and held == version - 1:
        return Sending(codec, version, held)
    return Sending("none", version)


class OutgoingParameters:
    """Encodes the parameters of the round that runs.

    Nodes that add differences hold parameters that are not quite the model's. Those are kept here too: each difference
    leads from them to the model, so that errors do not add up, and a node without them receives exactly them.

    They are kept from the first time that such a node is sent parameters: two more models and a quarter.
    """

    def __init__(self, model: GlobalModel) -> None:
        self.version = 0
        """Version of the parameters; the first is 1."""
        self._model = model
        self._form = model.payload_format(DIFFERENCE_CODEC)
        self._held: Flat | None = None
        """Parameters of the nodes that add each difference; None before there are any."""
        self._difference: Payload | None = None
        self._decoded: Flat | None = None

    def begin_round(self) -> None:
        """Take the model's present parameters as those of the next round."""
        self.version += 1
        self._decoded = None
        if self._held is None:
            return
        values, parameters = self._model.values, self._form.parameters
        difference = values.copy()
        difference[:parameters] -= self._held[:parameters]
        self._difference, _ = self._form.encode(difference, self._difference)
        self._form.add_to(self._difference, self._held)

    def payload(self, sending: Sending) -> Payload:
        """Return the payload of a node; it may share memory with the model.

        Raises:
            ValueError: there is no such difference.
        """
        if sending.base:
            if self._difference is None or sending.version != self.version:
                raise ValueError(f"no difference leads from version {sending.base} to {sending.version}")
            return self._difference
        values = self._held_values() if sending.version else self._model.values
        return self._model.payload_format(sending.codec).encode(values)[0]

    def received(self, codec: str) -> Flat:
        """Return the parameters that nodes have in this round after decoding, shape (size,)."""
        form = self._model.payload_format(codec)
        if form.codec.is_exact:
            return self._model.values
        if codec == DIFFERENCE_CODEC:
            return self._held_values()
        if self._decoded is None:
            self._decoded = np.empty_like(self._model.values)
            form.decode(form.encode(self._model.values)[0], self._decoded)
        return self._decoded

    def _held_values(self) -> Flat:
        """Return the parameters of the nodes that add differences; the first ones are exact."""
        if self._held is None:
            self._held = self._model.values.copy()
        return self._held
