"""Work of a simulated node in rounds that synchronise one fragment each, with real gradients."""

from collections.abc import Callable
from typing import NamedTuple

from hypergpu.common.codecs import PayloadFormat
from hypergpu.common.errors import NonFiniteUpdate
from hypergpu.common.fragments import Fragments
from hypergpu.common.tensors import Flat, Payload
from hypergpu.coordinator.core.model.outgoing import Sending
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.node.core.local_model import LocalModel
from hypergpu.node.core.update_encoder import EncodedUpdate
from hypergpu.node.trainer import Update

Result = tuple[Update, EncodedUpdate]


class _Begun(NamedTuple):
    """A work unit whose update is what the node held when it began."""

    unit: tuple[int, int]
    """Round and attempt."""
    values: Flat
    encoded: EncodedUpdate | NonFiniteUpdate


class NodeFragments:
    """Values of one node's fragments, and the result of its latest work unit.

    Unlike work on a whole model, a unit is done when the node has done it: the next ones go on from there.

    Args:
        fragments: Places of the fragments.
        size: Number of parameters and state.
    """

    def __init__(self, fragments: Fragments, size: int) -> None:
        self._local = LocalModel(fragments, size)
        self._unit = (0, 0)
        """Round and attempt of the latest work unit."""
        self._result: Result | NonFiniteUpdate | None = None
        self._begun: _Begun | None = None
        """Work unit that began while its fragments travel."""

    def receive(self, sending: Sending, form: PayloadFormat, payload: Payload) -> None:
        """Take parameters that have arrived, as a node does."""
        self._local.receive_payload(
            form,
            payload,
            sending.fragments,
            sending.fragment_version,
            is_difference=sending.base > 0,
            later=sending.background,
        )

    def begin(self, order: ev.WorkAssigned) -> None:
        """Begin a work unit whose update is what the node holds now."""
        values = self._local.begin(order.round, order.accepted_round)
        try:
            self._begun = _Begun((order.round, order.attempt), values, self._encode(order, values))
        except NonFiniteUpdate as error:
            self._begun = _Begun((order.round, order.attempt), values, error)

    def compute(self, order: ev.WorkAssigned, work: Callable[[ev.WorkAssigned, Flat], Update]) -> None:
        """Do a work unit, unless it was done; `work` takes its local steps from parameters."""
        if self._unit == (order.round, order.attempt) or order.fragment is None:
            return
        self._unit = (order.round, order.attempt)
        begun = self._begun if self._begun is not None and self._begun.unit == self._unit else None
        try:
            start = self._local.begin(order.round, order.accepted_round) if begun is None else begun.values
            update = work(order, start)
            values = self._local.end(update.flat, order.round, trial=order.trial)
            encoded = self._encode(order, values) if begun is None else begun.encoded
            self._result = encoded if isinstance(encoded, NonFiniteUpdate) else (update, encoded)
        except NonFiniteUpdate as error:
            self._result = error

    def _encode(self, order: ev.WorkAssigned, values: Flat) -> EncodedUpdate:
        """Return the update that values make; see `LocalModel.update_of`."""
        assert order.fragment is not None
        return self._local.update_of(
            values,
            order.codecs.update,
            order.fragment,
            round_number=order.round,
            accepted_round=order.accepted_round,
            trial=order.trial,
        )

    def result_of(self, order: ev.WorkAssigned) -> Result:
        """Return the result of a work unit that was done last.

        Raises:
            NonFiniteUpdate: It has none.
            ValueError: It was not done last.
        """
        if self._unit != (order.round, order.attempt) or self._result is None:
            raise ValueError(f"the unit of round {order.round}, attempt {order.attempt}, is not the latest of its node")
        if isinstance(self._result, NonFiniteUpdate):
            raise self._result
        return self._result
