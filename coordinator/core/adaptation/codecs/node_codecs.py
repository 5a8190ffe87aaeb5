"""Codecs of each node, and what limits them, in columns with one entry for each link of the monitor."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.adaptation.codecs.choice import PARAMETERS_CODECS, Codecs
from hypergpu.coordinator.core.adaptation.codecs.sizes import CodecPair
from hypergpu.coordinator.core.node_arrays import Bools, Floats, Ints, grow_column
from hypergpu.coordinator.core.rounds.events import Contribution

FIRST_BLOCK: Final = 8
"""Rounds after a change was taken back in which it is not tried again; twice as many each further time."""
LONGEST_BLOCK: Final = 1 << 20
_MEMORY: Final = 0.7
"""Weight of the past in the share of rounds that a node takes part in."""


class NodeCodecs:
    """Codecs of all nodes.

    Args:
        first: Codecs of a new node.
    """

    def __init__(self, first: CodecPair) -> None:
        self._first = first
        self.held: TransferCodecs | None = None
        """Codecs that every node is to have, as far as it may; None where they are chosen."""
        self.update: Ints = np.zeros(0, np.int64)
        self.parameters: Ints = np.zeros(0, np.int64)
        self.is_known: Bools = np.zeros(0, np.bool_)
        """The node was part of a plan before."""
        self.presence: Floats = np.zeros(0)
        """Share of the latest rounds that the node took part in."""
        self.holds: Bools = np.zeros(0, np.bool_)
        """The next parameters can be sent to it as a difference."""
        self.others_hold = False
        """Some nodes hold the parameters of the latest round, so that one without them is sent float32, not bf16."""
        self.blocked: Ints = np.zeros((0, 4), np.int64)
        """Round until which a block lasts, length of the next block, and the strongest codecs meanwhile."""

    def grow(self, rows: int) -> None:
        """Make room for at least `rows` nodes."""
        self.update = grow_column(self.update, rows, self._first.update)
        self.parameters = grow_column(self.parameters, rows, self._first.parameters)
        self.is_known = grow_column(self.is_known, rows, 0.0)
        self.presence = grow_column(self.presence, rows, 1.0)
        self.holds = grow_column(self.holds, rows, 0.0)
        self.blocked = grow_column(self.blocked, rows, 0.0)

    def present(self, rows: Ints) -> Codecs:
        """Return the codecs of these nodes."""
        return Codecs(self.update[rows], self.parameters[rows])

    def pair(self, row: int) -> CodecPair:
        """Return the codecs of one node."""
        return CodecPair(self.update.item(row), self.parameters.item(row))

    def set(self, rows: Ints, codecs: Codecs) -> None:
        """Set the codecs of these nodes."""
        self.update[rows], self.parameters[rows] = codecs.update, codecs.parameters

    def sent_parameters(self, rows: Ints) -> Ints:
        """Return the codecs in which parameters travel: a node that holds nothing to differ from is sent whole ones."""
        whole = (self.parameters[rows] == len(PARAMETERS_CODECS) - 1) & ~self.holds[rows]
        sent: Ints = np.where(whole, 0 if self.others_hold else 1, self.parameters[rows])
        return sent

    def abandon(self) -> None:
        """Record that a round was abandoned: nobody is known to hold its parameters."""
        self.holds[:] = False
        self.others_hold = False

    def observe(self, rows: Ints, used: Sequence[Contribution]) -> None:
        """Record the nodes that contributed to a round: they hold its parameters."""
        self.presence *= _MEMORY
        self.presence[rows] += 1.0 - _MEMORY
        self.holds[:] = False
        holding = PARAMETERS_CODECS[-1:] if self.others_hold else PARAMETERS_CODECS[1:]  # see `SendingPlanner`
        self.holds[rows] = [each.parameters_codec in holding for each in used]
        self.others_hold = bool(self.holds.any())

    def take_back(self, row: int, before: CodecPair, round_number: int) -> None:
        """Return to earlier codecs, and use no stronger ones for a while."""
        self.update[row], self.parameters[row] = before
        length = max(self.blocked.item(row, 1), FIRST_BLOCK)
        self.blocked[row] = round_number + 1 + length, min(2 * length, LONGEST_BLOCK), *before

    def limit(self, rows: Ints, most: Codecs, round_number: int) -> None:
        """Lower the strongest permitted codecs, in place, of nodes whose change was taken back lately."""
        until, _, update, parameters = self.blocked[rows].T
        lasts = round_number < until
        most.update[lasts] = np.minimum(most.update, update)[lasts]
        most.parameters[lasts] = np.minimum(most.parameters, parameters)[lasts]
