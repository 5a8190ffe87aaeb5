"""State of a local optimizer between the work units of one node."""

from hypergpu.common.local_optimizer import LocalOptimizer, LocalSettings
from hypergpu.node.optimizers.local_training import LocalTraining
from hypergpu.node.optimizers.state import OptimizerState


class KeptState:
    """Optimizer state of a node in one run.

    The state after a work unit is pending until its fate is known. It is kept if the update was accepted, and dropped
    if it was not: the next unit then begins with the state that the lost one began with. Until then both are in memory.
    """

    def __init__(self) -> None:
        self._kept = OptimizerState()
        self._optimizer = ""
        """Optimizer whose state is kept."""
        self._pending: tuple[int, str, OptimizerState] | None = None
        """Round, optimizer and state."""

    def local_training(self, optimizer: LocalOptimizer, settings: LocalSettings, accepted_round: int) -> LocalTraining:
        """Return how the local steps of a work unit are taken, with the state that they begin with; see `begin`."""
        state = self.begin(optimizer.name, accepted_round) if settings.keeps_state else None
        return LocalTraining(optimizer, settings, state)

    def trained(self, local: LocalTraining, round_number: int, *, trial: bool) -> None:
        """Note that the work unit of a round was done; a trial leaves no state, since its update is not used."""
        if local.state is not None and not trial:
            self.stage(round_number, local.optimizer.name, local.state)

    def begin(self, optimizer: str, accepted_round: int) -> OptimizerState:
        """Return a copy of the state for a work unit; it is empty if another optimizer was used before.

        Args:
            optimizer: name of the optimizer of the unit.
            accepted_round: latest round whose update of this node was accepted; it decides the fate of the last one.
        """
        if self._pending is not None and self._pending[0] == accepted_round:
            _, self._optimizer, self._kept = self._pending
        self._pending = None
        return self._kept.copy() if optimizer == self._optimizer else OptimizerState()

    def stage(self, round_number: int, optimizer: str, state: OptimizerState) -> None:
        """Note the state after the work unit of a round."""
        self._pending = (round_number, optimizer, state)
