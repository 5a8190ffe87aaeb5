"""Handwritten digits of 8 × 8 pixels: real, bundled with scikit-learn, and learnt in seconds.

Source: E. Alpaydin & C. Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning
Repository, 1998 (its 1,797 test images). Target: 97 % of 300 held-out images, reached within the default 25 rounds.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.tasks.base import Task

HELD_OUT = 300


Images = tuple[Tensor, Tensor]
"""Images, shape (images, 64), and their digits."""


def task() -> Task:
    """Return the digits task: a multilayer perceptron of 19,000 parameters."""
    train, test = read_images()
    return Task(model=_model, train=train, test=test, name="digits", target=0.97)


def read_images() -> tuple[Images, Images]:
    """Return the images for training, and those that are held out."""
    images, classes = load_digits(return_X_y=True)
    order = torch.from_numpy(KeyedRandom(0, "digits", "split").generator().permutation(len(images)))
    inputs = torch.tensor(images, dtype=torch.float32)[order] / 2  # pixels are 0 to 16
    targets = torch.tensor(classes, dtype=torch.int64)[order]
    return (inputs[HELD_OUT:], targets[HELD_OUT:]), (inputs[:HELD_OUT], targets[:HELD_OUT])


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
