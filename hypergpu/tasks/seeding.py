"""Seeds for the global random generators of torch, numpy and Python."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch

_NUMPY_SEEDS: Final = 1 << 32
"""Seeds of numpy's global generator are below this."""


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch, numpy and `random`, and restore their state afterwards.

    Generators of their own, such as `numpy.random.default_rng()`, are not affected.

    Args:
        seed: 0 to 2**64 - 1.
        device: a CUDA device whose generator is seeded and restored too.
    """
    cuda = [device] if torch.device(device).type == "cuda" else []
    of_random, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            np.random.seed(seed % _NUMPY_SEEDS)
            random.seed(seed)
            yield
    finally:
        random.setstate(of_random)
        np.random.set_state(of_numpy)
