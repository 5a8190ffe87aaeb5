"""Parameters as nodes receive them: encoded once for each codec and round, not for each node."""

from typing import Final, NamedTuple, Protocol

import numpy as np

from hypergpu.common.codecs import PayloadFormat
from hypergpu.common.tensors import Flat, Payload

DIFFERENCE_CODEC: Final = "int8"
"""Codec in which nodes receive the difference to the parameters before; its error is too large for the parameters."""
FIRST_CODEC: Final = "bf16"
"""Codec of the first parameters to which differences lead."""


class Sending(NamedTuple):
    """Form in which a node is sent the parameters of a round."""

    codec: str
    version: int = 0
    """Version that the node holds then, to which a difference can be added; 0 = none."""
    base: int = 0
    """Version to which the payload is the difference; 0 = the payload holds the parameters themselves. Where a payload
    holds a fragment, it is a version of that fragment."""
    fragments: tuple[int, ...] = ()
    """Numbers of the fragments in the payload; empty = the whole model."""
    fragment_version: int = 0
    """Version of the fragment that the node holds then, to which a difference can be added; 0 = none."""
    background: bool = False
    """The node trains while these parameters, and its update, travel."""
    kept: tuple[int, str] | None = None
    """Round and codec of earlier parameters, which are sent again; None = the present ones."""


class Source(Protocol):
    """Parameters, followed by state."""

    @property
    def values(self) -> Flat:
        """Present values, shape (size,)."""
        ...

    def payload_format(self, codec: str) -> PayloadFormat:
        """Return the format of their payloads in a codec."""
        ...


class SendingPlanner:
    """Planner of the form in which each node is sent the parameters of a round.

    Differences lead from what nodes hold. In the first round with a lossy codec, all its nodes are sent the parameters
    in bf16 and hold those. From then on, `int8` sends the difference to a node that holds the version before, and what
    the others hold, as float32, to one that does not. After a round in which nobody could have received either, it
    begins anew.
    """

    def __init__(self) -> None:
        self.version = 0
        """Version of the parameters; the first is 1. Each round has another one, also one that is opened again."""
        self._since = 0
        """First version that a node may hold; 0 = none."""
        self._used = 0
        """Latest version that a node may hold."""

    def begin_round(self) -> None:
        """Plan the sending of the next version."""
        self.version += 1
        if self._used < self.version - 1:
            self._since = 0

    def plan(self, codec: str, held: int) -> Sending:
        """Return what to send to a node with this codec of parameters that says that it holds a version (0 = none)."""
        if codec == "none":
            return Sending(codec)
        if not self._since:
            self._since = self.version
        if self._since == self.version:
            self._used = self.version
            return Sending(FIRST_CODEC, self.version)
        if codec != DIFFERENCE_CODEC:
            return Sending(codec)
        self._used = self.version
        if self._since <= held == self.version - 1:
            return Sending(codec, self.version, held)
        return Sending("none", self.version)


class OutgoingParameters:
    """Encodes the parameters of the round that runs.

    Nodes that add differences hold parameters that are not quite the model's. Those are kept here too: each difference
    leads from them to the model, so that errors do not add up, and a node without them receives exactly them.

    They are kept while nodes may hold them: two more models and a quarter.
    """

    def __init__(self, model: Source) -> None:
        self.version = 0
        """Version of the parameters; the first is 1."""
        self._model = model
        self._form = model.payload_format(DIFFERENCE_CODEC)
        self._held: Flat | None = None
        """Parameters of the nodes that hold version `_held_version`; None before there are any."""
        self._held_version = 0
        self._began = 0
        """Version with which nodes began to hold parameters, in the first codec."""
        self._difference: Payload | None = None

    def begin_round(self) -> None:
        """Take the model's present parameters as those of the next round."""
        self.version += 1
        if self._held_version < self.version - 1:
            self._held = self._difference = None

    def payload(self, sending: Sending) -> Payload:
        """Return the payload of a node; it may share memory with the model.

        Raises:
            ValueError: there is no such difference.
        """
        if sending.base:
            self._advance()
            if self._difference is None or sending.version != self.version or self._began == self.version:
                raise ValueError(f"no difference leads from version {sending.base} to {sending.version}")
            return self._difference
        if not sending.version:
            return self._model.payload_format(sending.codec).encode(self._model.values)[0]
        if sending.codec == FIRST_CODEC:
            return self._first_payload()
        return self._model.payload_format(sending.codec).encode(self._held_values())[0]

    def received(self, codec: str) -> Flat:
        """Return the parameters that nodes have in this round after decoding, shape (size,)."""
        if self._model.payload_format(codec).codec.is_exact:
            return self._model.values
        if self._held is None or self._began == self.version:
            return self._first_values()
        return self._held_values() if codec == DIFFERENCE_CODEC else self._decoded()

    def _decoded(self, payload: Payload | None = None) -> Flat:
        """Return a payload in the first codec after decoding; by default, of the model's parameters."""
        form = self._model.payload_format(FIRST_CODEC)
        values = np.empty_like(self._model.values)
        form.decode(form.encode(self._model.values)[0] if payload is None else payload, values)
        return values

    def _first_payload(self) -> Payload:
        """Return the payload with which nodes begin to hold a version."""
        form = self._model.payload_format(FIRST_CODEC)
        if self._held is not None:
            return form.encode(self._held)[0]  # exact: these are rounded already
        payload, _ = form.encode(self._model.values)
        self._begin(self._decoded(payload))
        return payload

    def _first_values(self) -> Flat:
        """Return the parameters with which nodes begin to hold a version."""
        return self._begin(self._decoded()) if self._held is None else self._held

    def _begin(self, values: Flat) -> Flat:
        self._held, self._held_version, self._began = values, self.version, self.version
        return values

    def _held_values(self) -> Flat:
        """Return the parameters of the nodes that hold this version; exact ones if none holds the version before."""
        if self._held is None:
            self._held, self._held_version = self._model.values.copy(), self.version
        self._advance()
        return self._held

    def _advance(self) -> None:
        """Encode the difference that leads from what nodes hold to the model, and add it as they do."""
        if self._held is None or self._held_version == self.version:
            return
        parameters = self._form.parameters
        difference = self._model.values.copy()
        difference[:parameters] -= self._held[:parameters]
        self._difference, _ = self._form.encode(difference, self._difference)
        self._form.add_to(self._difference, self._held)
        self._held_version = self.version
