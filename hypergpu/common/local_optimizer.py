"""Optimizer of a node's local steps."""

import math
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

from hypergpu.common.errors import InvalidInput

LocalOptimizerName = Literal["sgd", "adamw", "muon", "task"]
LOCAL_OPTIMIZERS: Final[tuple[LocalOptimizerName, ...]] = get_args(LocalOptimizerName)
"""Names of the optimizers that a node has; `task` is the one that the task brings."""


class LocalOptimizer(NamedTuple):
    """Optimizer of a node's local steps."""

    name: str
    """One of `LOCAL_OPTIMIZERS`."""
    learning_rate: float

    @property
    def has_momentum(self) -> bool:
        """True if its steps follow a mean of gradients, whatever the settings of the run."""
        return self.name in ("adamw", "muon")


ADAMW: Final = LocalOptimizer("adamw", 0.001)
"""AdamW with its default rate (Loshchilov & Hutter, ICLR 2019)."""
MUON: Final = LocalOptimizer("muon", 0.02)
"""Muon with the rate that suited three tasks of different kinds: benchmarks/local_optimizers.py."""


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Settings of the local steps that all work units of a run share.

    Raises:
        InvalidInput: a value is out of range, or not finite.
    """

    momentum: float = 0.0
    """Momentum of SGD; the other optimizers have their own."""
    nesterov: bool = False
    """Use Nesterov's form of it."""
    weight_decay: float | None = None
    """Decay of the parameters; None is 0 for SGD, and 0.01 for AdamW and Muon."""
    clip_norm: float | None = None
    """Norm that the gradient of a step is scaled down to; None leaves it."""
    proximal: float = 0.0
    """Weight of the pull to the parameters that the work began with (FedProx)."""
    keeps_state: bool = False
    """Keep the state of the optimizer between work units."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise InvalidInput(f"a local momentum of {self.momentum} is outside the range: 0 up to, not including, 1")
        for name, value in (("weight decay", self.weight_decay), ("proximal weight", self.proximal)):
            if value is not None and not 0 <= value < math.inf:
                raise InvalidInput(f"a {name} of {value} is not a finite number that is at least 0")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise InvalidInput(f"a norm to clip to of {self.clip_norm} is not a finite number above 0")

    @property
    def keeps_gradients(self) -> bool:
        """True if a step of SGD adds the gradient as it is, so that each part of it can be applied at once."""
        return not (self.momentum or self.weight_decay or self.proximal or self.clip_norm is not None)

    def decay_of(self, optimizer: str) -> float:
        """Return the weight decay of an optimizer."""
        return (0.0 if optimizer == "sgd" else 0.01) if self.weight_decay is None else self.weight_decay


PLAIN: Final = LocalSettings()
"""Settings that leave an optimizer as it is."""
