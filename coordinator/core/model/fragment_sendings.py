"""Parameters as nodes receive them where each round synchronises one fragment: what they do not hold yet.

A node that took part in the round before is sent one fragment, the one that was merged there. One that was away is sent
all fragments that were merged meanwhile, and one that holds no model, or values that were given up, is sent everything.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from hypergpu.common.codecs import PayloadFormat
from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.fragments import fragment_of
from hypergpu.common.tensors import Flat, Payload
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.model.outgoing import FIRST_CODEC, OutgoingParameters, Sending, SendingPlanner


class Held(NamedTuple):
    """Versions of the parameters that a node says it holds."""

    version: int = 0
    """Version of the parameters; 0 = none. Of a whole model, it is one to which a difference can be added."""
    fragments: Sequence[int] = ()
    """Version of each fragment to which a difference can be added; 0 = none."""


NOTHING: Final = Held()


def after(held: Held, sending: Sending) -> Held:
    """Return what a node holds when it has received what was sent."""
    if not sending.fragments:
        return Held(sending.version)
    fragments = [*held.fragments, *[0] * (max(sending.fragments) + 1 - len(held.fragments))]
    for fragment in sending.fragments:
        fragments[fragment] = sending.fragment_version
    return Held(sending.version, fragments)


class ModelSendings:
    """Planner of the form in which each node is sent the parameters of a round, as far as it does not hold them.

    Args:
        fragments: Number of fragments; 1 = each round sends the whole model.
        overlap: Nodes train while fragments travel. One that needs all of them can't.
    """

    def __init__(self, fragments: int, *, overlap: bool = False) -> None:
        self.version = 0
        """Version of the parameters; the first is 1. Each round has another one, also one that is opened again."""
        self._changed_at = [0] * fragments
        """Version with which each fragment changed last."""
        self._planners = [SendingPlanner() for _ in range(fragments)]
        self._round = 0
        self._all_changed = True
        self._overlap = overlap

    @property
    def _count(self) -> int:
        return len(self._planners)

    def begin_round(self, number: int) -> Sequence[int]:
        """Plan the sending of the next version, in a round; return the fragments that have changed since the last."""
        self.version += 1
        if self._all_changed or self._count == 1:
            changed: Sequence[int] = range(self._count)
        else:  # a round that is opened again has merged nothing
            changed = () if number == self._round else (fragment_of(number - 1, self._count),)
        for fragment in changed:
            self._changed_at[fragment] = self.version
            self._planners[fragment].begin_round()
        self._round, self._all_changed = number, False
        return changed

    def revert(self) -> None:
        """Note that the whole model was given up for an earlier one: what nodes hold is of no use."""
        self._all_changed = True

    def plan(self, codec: str, held: Held) -> Sending:
        """Return what to send to a node with this codec of parameters, by what it says that it holds."""
        if self._count == 1:
            return self._planners[0].plan(codec, held.version)
        known = held.version if held.version <= self.version else 0
        needed = tuple(fragment for fragment, version in enumerate(self._changed_at) if version > known)
        background = self._overlap and len(needed) < self._count
        if len(needed) > 1:  # nobody holds just these
            sent = Sending(codec if codec == "none" else FIRST_CODEC, self.version)
            return sent._replace(fragments=needed, background=background)
        (fragment,) = needed or (fragment_of(self._round - 1, self._count),)
        version = held.fragments[fragment] if len(held.fragments) == self._count else 0
        sent = self._planners[fragment].plan(codec, version)
        return Sending(sent.codec, self.version, sent.base, (fragment,), sent.version, background)


def sendings_of(config: TrainingConfig) -> ModelSendings:
    """Return the planner of a configuration."""
    return ModelSendings(config.fragments, overlap=config.overlap)


class _FragmentView:
    """Some fragments of a model, like a model of their own."""

    def __init__(self, model: GlobalModel, fragments: Sequence[int]) -> None:
        self._model, self._fragments = model, fragments

    @property
    def values(self) -> Flat:
        """Copy of their parameters, followed by the state."""
        return self._model.fragments.take(self._model.values, self._fragments)

    def payload_format(self, codec: str) -> PayloadFormat:
        """Return the format of their payloads in a codec."""
        return self._model.payload_format(codec, self._fragments)


class OutgoingModel:
    """Encodes the parameters of the round that runs, as `ModelSendings` has planned them."""

    def __init__(self, model: GlobalModel) -> None:
        self._model = model
        if model.is_whole:
            self._parts = [OutgoingParameters(model)]
        else:
            self._parts = [
                OutgoingParameters(_FragmentView(model, (fragment,))) for fragment in range(model.fragments.count)
            ]

    def begin_round(self, changed: Sequence[int]) -> None:
        """Take the present parameters of the fragments that have changed as those of the next round."""
        for fragment in changed:
            self._parts[fragment].begin_round()

    def payload(self, sending: Sending) -> Payload:
        """Return the payload of a node; it may share memory with the model.

        Raises:
            ValueError: there is no such difference.
        """
        if not sending.fragments:
            return self._parts[0].payload(sending)
        if len(sending.fragments) == 1:
            of_fragment = Sending(sending.codec, sending.fragment_version, sending.base)
            return self._parts[sending.fragments[0]].payload(of_fragment)
        view = _FragmentView(self._model, sending.fragments)
        return view.payload_format(sending.codec).encode(view.values)[0]

    def received(self, codec: str) -> Flat:
        """Return the parameters that nodes have in this round after decoding, of a whole model; shape (size,)."""
        return self._parts[0].received(codec)
