"""Values of the model that a node keeps between rounds where each round synchronises one fragment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hypergpu.common.codecs import PayloadFormat
from hypergpu.common.fragments import Fragments, fragment_of
from hypergpu.common.tensors import Flat, Payload
from hypergpu.node.core.update_encoder import EncodedUpdate, UpdateEncoder


@dataclass(slots=True)
class _Captured:
    """Own values of a fragment when its update was made."""

    round: int
    values: Flat
    accepted: bool = False


class _Arrived(NamedTuple):
    """Values of fragments that were received while a work unit was done."""

    values: Flat
    which: Sequence[int]
    before: Flat
    """Values of them that had been received before."""


class LocalModel:
    """Values that a node trains on, beside those that it last received, and the residual of each fragment.

    An update holds the change of a fragment since it was received last, which may be many rounds ago, and the values of
    the state. What a work unit made of the others counts as soon as a unit of another round begins: work that is done
    again begins where it began before.

    Received values replace the node's own. Those that arrive while it trains (`receive_later`) move its own instead,
    when the next unit begins: x ← x + (received - captured), if its update of the captured values was merged. So each
    step counts once: those before the update are in the received values, and those after it are kept (as in Zhou et
    al., "DaSGD: squeezing SGD parallelization performance in distributed training using delayed averaging", 2020). A
    fragment that is sent again in a round that was opened again, with nothing merged since, moves nothing.

    It takes the memory of three models, beside the residuals.

    Args:
        fragments: Places of the fragments.
        size: Number of parameters and state.
    """

    def __init__(self, fragments: Fragments, size: int) -> None:
        self.fragments = fragments
        self.fragment_versions = [0] * fragments.count
        """Version of each fragment to which a difference can be added; 0 = none."""
        self._received: Flat = np.zeros(size, np.float32)
        self._own: Flat = np.zeros(size, np.float32)
        self._trained: tuple[int, Flat] | None = None
        """Round, and values after its work unit."""
        self._captured: dict[int, _Captured] = {}
        self._arrived: list[_Arrived] = []
        self._encoders = [
            UpdateEncoder(fragments.size((each,)), fragments.state_size) for each in range(fragments.count)
        ]

    def base(self, fragment: int) -> Flat:
        """Return a copy of a fragment as it was received, followed by the state."""
        return self.fragments.take(self._received, (fragment,))

    def receive_payload(
        self,
        form: PayloadFormat,
        payload: Payload,
        which: Sequence[int],
        fragment_version: int,
        *,
        is_difference: bool,
        later: bool,
    ) -> None:
        """Decode fragments, and receive them, or receive them later.

        Args:
            form: Format of the payload.
            payload: Whole payload.
            which: Numbers of the fragments in it.
            fragment_version: Version of the fragment, if it is only one; see `fragment_versions`.
            is_difference: It is the difference to the only fragment as it was received last.
            later: They arrived during a work unit; see `receive_later`.

        Raises:
            ProtocolError: The payload is not in its format; what is held stays as it was.
        """
        if is_difference:
            values = self.base(which[0])
            form.add_to(payload, values)
        else:
            values = np.empty(form.size, np.float32)
            form.decode(payload, values)
        receive = self.receive_later if later else self.receive
        receive(values, which, fragment_version)

    def receive(self, values: Flat, which: Sequence[int], fragment_version: int = 0) -> None:
        """Replace fragments, and the state, by values that were received.

        Args:
            values: Shape (fragments.size(which) + state,).
            which: Numbers of the fragments in `values`.
            fragment_version: Version of the fragment, if it is only one; see `fragment_versions`.
        """
        self._hold(values, which, fragment_version)
        self._arrived.clear()
        for buffer in (self._own, *([self._trained[1]] if self._trained else [])):
            self.fragments.put(values, buffer, which)
        for fragment in which:
            self._captured.pop(fragment, None)

    def receive_later(self, values: Flat, which: Sequence[int], fragment_version: int = 0) -> None:
        """Let fragments that were received during a work unit move the node's own values when the next unit begins."""
        self._arrived.append(_Arrived(values, which, self.fragments.take(self._received, which)))
        self._hold(values, which, fragment_version)

    def _hold(self, values: Flat, which: Sequence[int], fragment_version: int) -> None:
        self.fragments.put(values, self._received, which)
        for fragment in which:
            self.fragment_versions[fragment] = fragment_version

    def begin(self, round_number: int, accepted_round: int) -> Flat:
        """Return the values that the work unit of a round begins with, shape (size,); they are not to be changed.

        Args:
            round_number: Round of the unit.
            accepted_round: Latest round whose update of this node is in the model.
        """
        if self._trained is not None:
            if self._trained[0] != round_number:
                self._own = self._trained[1]
            self._trained = None
        for captured in self._captured.values():
            captured.accepted |= captured.round == accepted_round
        for arrived in self._arrived:
            self._move(arrived)
        self._arrived.clear()
        return self._own

    def _move(self, arrived: _Arrived) -> None:
        """Move the node's own values of fragments by what their merge has added. Its state stays its own."""
        start = 0
        for fragment in arrived.which:
            end = start + self.fragments.size((fragment,))
            own, merged = self.fragments.take(self._own, (fragment,)), arrived.values[start:end]
            is_known = np.array_equal(merged, arrived.before[start:end])
            captured = self._captured.pop(fragment, None)
            if captured is not None and captured.accepted:
                own[: end - start] += merged - captured.values[: end - start]
            elif captured is not None or not is_known:  # what it has made of its own is in no merge
                own[: end - start] = merged
            self.fragments.put(own, self._own, (fragment,))
            start = end

    def end(self, change: Flat, round_number: int, *, trial: bool = False) -> Flat:
        """Note how the work unit of a round has changed the values that `begin` returned; return what they are now.

        The change by a trial is dropped: it may have made them worse.

        Args:
            change: Shape (size,).
            round_number: Round of the unit.
            trial: The unit was only measured.
        """
        values = self._own + change
        if not trial:
            self._trained = round_number, values
        return values

    def capture(self, values: Flat, round_number: int, fragment: int, *, trial: bool = False) -> Flat:
        """Return the update of a round: the change of a fragment since it was received, then the values of the state.

        Args:
            values: Own values, shape (size,).
            round_number: Round of the update.
            fragment: Number of the fragment.
            trial: The update will not be used.
        """
        update = self.fragments.take(values, (fragment,))
        if not trial:
            self._captured[fragment] = _Captured(round_number, update.copy())
        parameters = self.fragments.size((fragment,))
        update[:parameters] -= self.base(fragment)[:parameters]
        return update

    def update_of(
        self, values: Flat, codec: str, fragment: int, *, round_number: int, accepted_round: int, trial: bool
    ) -> EncodedUpdate:
        """Capture and encode the update that own values make; see `capture` and `encode`."""
        update = self.capture(values, round_number, fragment, trial=trial)
        return self.encode(
            update, codec, fragment, round_number=round_number, accepted_round=accepted_round, trial=trial
        )

    def encode(
        self, update: Flat, codec: str, fragment: int, *, round_number: int, accepted_round: int, trial: bool
    ) -> EncodedUpdate:
        """Encode what `capture` returned, as `UpdateEncoder.encode` does.

        A residual decays with each update of its fragment.
        """
        count = self.fragments.count
        accepted = [0] * count
        accepted[fragment_of(accepted_round, count)] = _turn(accepted_round, count)
        for encoder, turn in zip(self._encoders, accepted, strict=True):
            encoder.settle(turn)
        turn = _turn(round_number, count)
        encoder, settled = self._encoders[fragment], accepted[fragment]
        return encoder.encode(update, codec, round_number=turn, accepted_round=settled, trial=trial)


def _turn(round_number: int, count: int) -> int:
    """Return which turn of its fragment a round is; the first is 1."""
    return round_number // count + 1
