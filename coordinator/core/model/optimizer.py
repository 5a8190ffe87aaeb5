"""Optimizers that apply the mean update of a round to the parameters, in place and block by block.

An update is a gradient (one local step) or the change that local training made (more steps). In the second case the
negative change takes the place of the gradient (Reddi et al., "Adaptive federated optimization", ICLR 2021,
algorithm 2).
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.tensors import Flat
from hypergpu.coordinator.core.model.aggregation import BLOCK, is_finite


class Optimizer(Protocol):
    """Interface of an optimizer: steps along a descent direction.

    Attributes:
        rate: Learning rate; it may change between steps.
    """

    rate: float

    def step(self, parameters: Flat, direction: Flat) -> None:
        """Change `parameters` in place; `direction` (same shape) may be overwritten."""
        ...

    def state(self) -> Mapping[str, Flat]:
        """Return the tensors for a checkpoint, by name."""
        ...

    def restore(self, state: Mapping[str, Flat]) -> None:
        """Restore the tensors that `state` returned.

        Raises:
            ValueError: A tensor is missing, unknown, not finite or out of range, or has another shape.
        """
        ...


_STEPS_BASE = 1 << 20
"""Base of the step count, which is stored as two digits since a float32 is exact only up to 16 million."""


class Sgd:
    """Stochastic gradient descent with momentum: v ← μ·v + d, x ← x + rate·v.

    Nesterov's form is x ← x + rate·(d + μ·v), as in torch.optim.SGD (Sutskever et al., "On the importance of
    initialization and momentum in deep learning", ICML 2013).

    With `momentum_every` N > 1, the momentum term is delayed: N - 1 steps are plain, and in the N-th v takes in the
    mean of the N directions (Liu et al., "Asynchronous local-SGD training for language modeling", 2024, algorithm 3,
    with c = 0 and whole steps in between). Momentum with each step of a few updates amplifies the stale ones.
    """

    def __init__(self, size: int, rate: float, momentum: float = 0.0, *, nesterov: bool = False) -> None:
        self.momentum = momentum
        """μ; it may change between steps."""
        self.restarts = False
        """True = drop velocity that points against the direction (O'Donoghue & Candès, "Adaptive restart", 2015)."""
        self.rate = rate
        self.momentum_every = 1
        """N; it may change between steps."""
        self._waiting: Flat | None = None
        self._waited = 0
        self._size, self._nesterov = size, nesterov
        self._velocity: Flat | None = np.zeros(size, np.float32) if momentum else None
        self._scratch: Flat = np.empty(min(BLOCK, size) if nesterov else 0, np.float32)

    def step(self, parameters: Flat, direction: Flat) -> None:
        """See `Optimizer.step`."""
        rate, momentum = np.float32(self.rate), np.float32(self.momentum)
        if self._velocity is None and momentum:
            self._velocity = np.zeros(self._size, np.float32)
        if self._velocity is not None and self.momentum_every > 1:
            self._step_delayed(parameters, direction, self._velocity)
            return
        if self.restarts and self._velocity is not None and float(np.dot(self._velocity, direction)) < 0.0:
            self._velocity.fill(0.0)
        for start in range(0, len(parameters), BLOCK):
            piece = slice(start, start + BLOCK)
            move = direction[piece]
            if self._velocity is not None:
                velocity = self._velocity[piece]
                velocity *= momentum
                velocity += move
                if self._nesterov:
                    move += np.multiply(velocity, momentum, out=self._scratch[: len(move)])
                else:
                    np.copyto(move, velocity)
            move *= rate
            parameters[piece] += move

    def _step_delayed(self, parameters: Flat, direction: Flat, velocity: Flat) -> None:
        """Step plainly, and in every N-th step by momentum too."""
        if self._waiting is None:
            self._waiting = np.zeros(self._size, np.float32)
        waiting, momentum = self._waiting, np.float32(self.momentum)
        waiting += direction
        self._waited += 1
        if self._waited >= self.momentum_every:
            waiting *= np.float32(1.0 / self._waited)
            if self.restarts and float(np.dot(velocity, waiting)) < 0.0:
                velocity.fill(0.0)
            velocity *= momentum
            if not self._nesterov:
                direction += velocity
            velocity += waiting
            if self._nesterov:
                direction += np.multiply(velocity, momentum, out=waiting)
            waiting.fill(0.0)
            self._waited = 0
        direction *= np.float32(self.rate)
        parameters += direction

    def state(self) -> Mapping[str, Flat]:
        """See `Optimizer.state`."""
        state = {} if self._velocity is None else {"velocity": self._velocity}
        if self._waiting is not None and self._waited:
            state |= {"waiting": self._waiting, "waited": np.array([self._waited], np.float32)}
        return state

    def restore(self, state: Mapping[str, Flat]) -> None:
        """See `Optimizer.restore`."""
        if self._velocity is None and "velocity" in state:  # momentum that was set between steps
            self._velocity = np.zeros(self._size, np.float32)
        self._waiting, self._waited = None, 0
        if "waiting" in state or "waited" in state:
            self._waiting, self._waited = np.zeros(self._size, np.float32), 1
        _require_like(self.state(), state)
        if self._velocity is not None:
            np.copyto(self._velocity, state["velocity"])
        if self._waiting is not None:
            waited = float(state["waited"][0])
            if not 0 < waited < _STEPS_BASE or not waited.is_integer():
                raise ValueError(f"the optimizer has waited for {waited:g} steps, which is no count")
            np.copyto(self._waiting, state["waiting"])
            self._waited = int(waited)


class Adam:
    """Adam with bias correction (Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015)."""

    def __init__(self, size: int, rate: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> None:
        self.rate = rate
        self._beta1, self._beta2, self._epsilon = beta1, beta2, np.float32(epsilon)
        self._mean: Flat = np.zeros(size, np.float32)
        self._square: Flat = np.zeros(size, np.float32)
        self._scratch: Flat = np.empty(min(BLOCK, size), np.float32)
        self._steps = 0

    def step(self, parameters: Flat, direction: Flat) -> None:
        """See `Optimizer.step`."""
        self._steps += 1
        rate = np.float32(self.rate / (1.0 - self._beta1**self._steps))
        correction = np.float32(1.0 / (1.0 - self._beta2**self._steps))
        for start in range(0, len(parameters), BLOCK):
            piece = slice(start, start + BLOCK)
            d, mean, square = direction[piece], self._mean[piece], self._square[piece]
            scratch = self._scratch[: len(d)]
            mean *= np.float32(self._beta1)
            np.multiply(d, np.float32(1.0 - self._beta1), out=scratch)
            mean += scratch
            self._take_square(square, d)
            np.multiply(square, correction, out=scratch)
            np.sqrt(scratch, out=scratch)
            scratch += self._epsilon
            np.divide(mean, scratch, out=d)
            d *= rate
            parameters[piece] += d

    def _take_square(self, square: Flat, d: Flat) -> None:
        """Move the mean of squares to the square of `d`, which is overwritten."""
        square *= np.float32(self._beta2)
        d *= d
        d *= np.float32(1.0 - self._beta2)
        square += d

    def state(self) -> Mapping[str, Flat]:
        """See `Optimizer.state`."""
        steps = np.array(divmod(self._steps, _STEPS_BASE), np.float32)
        return {"mean": self._mean, "square": self._square, "steps": steps}

    def restore(self, state: Mapping[str, Flat]) -> None:
        """See `Optimizer.restore`."""
        _require_like(self.state(), state)
        high, low = (float(digit) for digit in state["steps"])
        if not all(0 <= digit < _STEPS_BASE and digit.is_integer() for digit in (high, low)):
            raise ValueError(f"the optimizer's steps are {high:g} and {low:g}, which are no count")
        if float(state["square"].min(initial=0.0)) < 0:
            raise ValueError("the optimizer's mean of squares is negative")
        np.copyto(self._mean, state["mean"])
        np.copyto(self._square, state["square"])
        self._steps = int(high) * _STEPS_BASE + int(low)


class Yogi(Adam):
    """Adam whose mean of squares moves by an amount that does not depend on its size.

    It forgets large updates less quickly (Zaheer et al., "Adaptive methods for nonconvex optimization", NeurIPS 2018).
    """

    def _take_square(self, square: Flat, d: Flat) -> None:
        d *= d
        sign = np.sign(d - square)
        d *= sign
        d *= np.float32(1.0 - self._beta2)
        square += d


def _require_like(own: Mapping[str, Flat], state: Mapping[str, Flat]) -> None:
    if own.keys() != state.keys():
        named = [", ".join(sorted(names)) or "nothing" for names in (state, own)]
        raise ValueError(f"the optimizer's state holds {named[0]} where {named[1]} belongs")
    for name, part in state.items():
        if part.dtype != np.float32 or part.shape != own[name].shape:
            found = f"{part.dtype} of shape {part.shape}"
            raise ValueError(f"the optimizer's {name} is {found} where float32 of shape {own[name].shape} belongs")
        if not is_finite(part):
            raise ValueError(f"the optimizer's {name} is not finite")


def make_optimizer(config: TrainingConfig, size: int) -> Optimizer:
    """Return the configured optimizer for `size` parameters."""
    adaptive = {"adam": Adam, "yogi": Yogi}.get(config.server_optimizer)
    if config.local_steps == 1:
        rate, epsilon = config.learning_rate, 1e-8
    else:  # an Adam step is about as long as its rate, whatever the size of the change: a rate of 1 is far too large
        rate, epsilon = config.server_learning_rate or (0.01 if adaptive else 1.0), 1e-3
    if adaptive is not None:
        return adaptive(size, rate, epsilon=epsilon)
    return Sgd(size, rate, config.server_momentum, nesterov=config.server_nesterov)
