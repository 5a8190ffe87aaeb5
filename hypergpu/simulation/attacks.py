"""Attacks of hostile nodes: what they send, from what the honest nodes of the round send.

The attackers know every honest update of the round, and all send the same, as those of ByzFL do (Allouah et al.,
"ByzFL", 2025), whose names and formulas these are: sign flipping; IPM (Xie et al., "Fall of empires", UAI 2019); ALIE
(Baruch et al., "A little is enough", NeurIPS 2019); mimic (Karimireddy et al., ICLR 2022); infinite and Gaussian
values. The optimal ones search the strength that moves the aggregate furthest (Shejwalkar & Houmansadr, NDSS 2021).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final, Literal, get_args

import numpy as np
from pydantic import BeforeValidator, Field

from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.whole import Count
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.common.tensors import Flat

AttackName = Literal[
    "sign_flip",
    "ipm",
    "optimal_ipm",
    "alie",
    "optimal_alie",
    "mimic",
    "replay",
    "echo",
    "inf",
    "gaussian",
    "noise",
    "drift",
    "label_flip",
    "lazy",
]
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)
OTHERS: Final[frozenset[AttackName]] = frozenset({"label_flip", "replay", "echo", "lazy"})
"""Attacks that need no update of others: wrong labels, an update of its own that was sent before, the step of the model
that the coordinator sent (Lin et al., "Free-riders in federated learning", 2019), and a part of the work."""
LAZY: Final = 4
"""Samples of each batch, of which a lazy node computes one and claims all."""


class Byzantine(ConfigSection):
    """Attack of a node."""

    attack: AttackName
    """Name of the attack."""
    strength: Annotated[float, Field(ge=0)] | None = None
    """Factor of the attack; by default that of its paper."""
    from_round: Count = 1
    """First round of the attack; before, the node is honest."""


def as_attack(given: Any) -> Any:
    """Return an attack that is given by its name alone as a section."""
    return {"attack": given} if isinstance(given, str) else given


AnAttack = Annotated[Byzantine, BeforeValidator(as_attack)]
EVALUATIONS: Final = 20
"""Strengths that an optimal attack tries."""
Updates = np.typing.NDArray[np.float32]
"""Updates of honest nodes, shape (nodes, floats)."""
Aggregate = Callable[[Updates], Flat]
"""Function of the updates of all nodes that the attackers expect of the coordinator."""
Attack = Callable[["Situation", float], Flat]
"""Function of what the attackers know, and a strength."""


@dataclass(frozen=True)
class Situation:
    """Knowledge of the attackers of a round."""

    honest: Updates
    """Updates of honest nodes; at least one. For `mimic`, those that were sent before."""
    attackers: int
    """Number of attackers."""
    aggregate: Aggregate
    """Function that they expect of the coordinator."""
    seed: int
    """Seed of random numbers."""

    @property
    def mean(self) -> Flat:
        """Mean of the honest updates."""
        return np.asarray(self.honest.mean(axis=0), np.float32)

    @property
    def deviation(self) -> Flat:
        """Standard deviation of each coordinate over the honest updates."""
        alone = len(self.honest) < 2
        return np.zeros_like(self.honest[0]) if alone else np.asarray(self.honest.std(axis=0, ddof=1), np.float32)

    def noise(self, strength: float, seed: int) -> Flat:
        """Return random numbers with the norm of an honest update, times `strength`."""
        numbers = _normal(self.honest.shape[1], seed)
        typical = float(np.median(np.linalg.norm(self.honest, axis=1)))
        return np.asarray(numbers * (strength * typical / np.linalg.norm(numbers)), np.float32)


def attack(name: AttackName, strength: float | None, situation: Situation) -> Flat:
    """Return what every attacker sends by an attack on updates; `OTHERS` are none.

    `strength` is its factor; None = that of its paper.
    """
    usual, function = _FUNCTIONS[name]
    return function(situation, usual if strength is None else strength)


def _ipm(situation: Situation, strength: float) -> Flat:
    return np.asarray(-strength * situation.mean, np.float32)


def _alie(situation: Situation, strength: float) -> Flat:
    return np.asarray(situation.mean + strength * situation.deviation, np.float32)


def _mimic(situation: Situation, _: float) -> Flat:
    return np.array(situation.honest[0], np.float32)


def _inf(situation: Situation, _: float) -> Flat:
    return np.full_like(situation.honest[0], np.inf)


def _gaussian(situation: Situation, strength: float) -> Flat:
    return np.asarray(strength * _normal(situation.honest.shape[1], situation.seed), np.float32)


def _noise(situation: Situation, strength: float) -> Flat:
    return situation.noise(strength, situation.seed)


def _drift(situation: Situation, strength: float) -> Flat:
    """Return an honest update with a step in the same direction in every round."""
    return np.asarray(situation.honest[0] + situation.noise(strength, 0), np.float32)


def _strongest(sent: Attack, situation: Situation, _: float) -> Flat:
    """Return what moves the aggregate furthest from the honest mean; steps widen while they gain, then narrow."""
    mean, honest = situation.mean, situation.honest

    def moved(strength: float) -> float:
        hostile = np.tile(sent(situation, strength), (situation.attackers, 1))
        return float(np.linalg.norm(situation.aggregate(np.concatenate([honest, hostile])) - mean))

    best, step, widens = 0.0, 10.0, True
    furthest = moved(best)
    for _attempt in range(EVALUATIONS - 1):
        distance = moved(best + step)
        widens = widens and distance > furthest
        if distance > furthest:
            best, furthest = best + step, distance
        step *= 2.0 if widens else 0.8
    return np.asarray(sent(situation, best), np.float32)


def _normal(size: int, seed: int) -> Flat:
    return KeyedRandom(seed, "attack").generator().standard_normal(size, np.float32)


_FUNCTIONS: Final[Mapping[str, tuple[float, Attack]]] = {
    "sign_flip": (1.0, _ipm),
    "ipm": (2.0, _ipm),
    "optimal_ipm": (0.0, partial(_strongest, _ipm)),
    "alie": (1.5, _alie),
    "optimal_alie": (0.0, partial(_strongest, _alie)),
    "mimic": (0.0, _mimic),
    "inf": (0.0, _inf),
    "gaussian": (1.0, _gaussian),
    "noise": (1.0, _noise),
    "drift": (1.0, _drift),
}
"""Usual strength and function of each attack."""
