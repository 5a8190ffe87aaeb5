"""Values of the model that a node keeps between rounds where each round synchronises one fragment."""

from collections.abc import Sequence

import numpy as np

from hypergpu.common.fragments import Fragments
from hypergpu.common.tensors import Flat
from hypergpu.node.core.update_encoder import EncodedUpdate, UpdateEncoder


class LocalModel:
    """Values that a node trains on, beside those that it last received, and the residual of each fragment.

    An update is the change of a fragment since it was received last, which may be many rounds ago. Received values
    replace the node's own. What a work unit made of the others counts as soon as a unit of another round begins: work
    that is done again begins where it began before.

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
        self._encoders = [
            UpdateEncoder(fragments.size((each,)), fragments.state_size) for each in range(fragments.count)
        ]

    def base(self, fragment: int) -> Flat:
        """Return a copy of a fragment as it was received, followed by the state."""
        return self.fragments.take(self._received, (fragment,))

    def receive(self, values: Flat, which: Sequence[int], fragment_version: int = 0) -> None:
        """Replace fragments, and the state, by values that were received.

        Args:
            values: Shape (fragments.size(which) + state,).
            which: Numbers of the fragments in `values`.
            fragment_version: Version of the fragment, if it is only one; see `fragment_versions`.
        """
        kept = [self._received, self._own, *([self._trained[1]] if self._trained else [])]
        for buffer in kept:
            self.fragments.put(values, buffer, which)
        for fragment in which:
            self.fragment_versions[fragment] = fragment_version

    def begin(self, round_number: int) -> Flat:
        """Return the values that the work unit of a round begins with, shape (size,); they are not to be changed."""
        if self._trained is not None:
            if self._trained[0] != round_number:
                self._own = self._trained[1]
            self._trained = None
        return self._own

    def end(self, change: Flat, round_number: int, fragment: int, *, trial: bool = False) -> Flat:
        """Note how the work unit of a round has changed the values that `begin` returned.

        The change by a trial is dropped: it may have made them worse.

        Args:
            change: Shape (size,).
            round_number: Round of the unit.
            fragment: Number of the fragment that the round synchronises.
            trial: The unit was only measured.

        Returns:
            The change of the fragment since it was received, followed by that of the state.
        """
        values = self._own + change
        if not trial:
            self._trained = round_number, values
        return self.fragments.take(values, (fragment,)) - self.base(fragment)

    def encode(
        self, update: Flat, codec: str, fragment: int, *, round_number: int, accepted_round: int, trial: bool
    ) -> EncodedUpdate:
        """Encode what `end` returned, as `UpdateEncoder.encode` does.

        A residual decays with each update of its fragment.
        """
        count = self.fragments.count
        for number, encoder in enumerate(self._encoders):
            encoder.settle(_turn(accepted_round, count) if accepted_round % count == number else 0)
        turn = _turn(round_number, count)
        settled = _turn(accepted_round, count) if accepted_round % count == fragment else 0
        return self._encoders[fragment].encode(update, codec, round_number=turn, accepted_round=settled, trial=trial)


def _turn(round_number: int, count: int) -> int:
    """Return which turn of its fragment a round is; the first is 1."""
    return round_number // count + 1
