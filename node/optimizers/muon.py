"""Muon: momentum whose matrices are made nearly orthogonal (Jordan et al., "Muon", 2024).

The steps are those of `torch.optim.Muon`. That class imports torch's compiler, for which the first work unit of each
node would wait a second, and it computes in bfloat16 alone, which makes a step of small matrices six times as long.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

MOMENTUM: Final = 0.95
_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic with the steepest slope at zero, at which small singular values grow fastest."""
_ITERATIONS: Final = 5
_RMS: Final = 0.2
"""Root mean square of AdamW's moves late in a training, at a rate of 1 (Liu et al., "Muon is scalable for LLM
training", 2025). With it, Muon takes AdamW's learning rates."""
_LEAST_NORM: Final = 1e-7
_SMALL: Final = 1 << 15
"""Values of a matrix up to which float32 is faster than the conversion to bfloat16 and back."""


@torch.no_grad()
def muon_step(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], velocities: Sequence[Tensor], rate: float, decay: float
) -> None:
    """Take a step: v ← β·v + (1 - β)·g, and parameters ← (1 - rate·decay)·parameters - rate·orthogonal(Nesterov's v).

    Args:
        parameters: matrices, changed in place.
        gradients: one per matrix, of its shape; changed in place.
        velocities: means of the gradients, changed in place.
        rate: learning rate.
        decay: weight decay.
    """
    for parameter, gradient, velocity in zip(parameters, gradients, velocities, strict=True):
        velocity.lerp_(gradient, 1.0 - MOMENTUM)
        move = orthogonal(gradient.lerp_(velocity, MOMENTUM))
        if decay:
            parameter.mul_(1.0 - rate * decay)
        parameter.add_(move, alpha=-rate * _RMS * math.sqrt(max(parameter.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """Return a matrix with nearly the same singular vectors, and singular values of 0.5 to 1.5.

    Each Newton-Schulz iteration applies a·x + b·x³ + c·x⁵ to the singular values.
    """
    a, b, c = _COEFFICIENTS
    small = matrix.numel() <= _SMALL and matrix.device.type == "cpu"
    wide = matrix if small else matrix.bfloat16()
    wide = wide.T if matrix.shape[0] > matrix.shape[1] else wide
    wide = wide / wide.norm().clamp(min=_LEAST_NORM)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide
