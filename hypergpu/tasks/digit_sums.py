"""Sums of two handwritten digits: the class of a pair of images is the last digit of their sum.

The images are those of `digits`. It takes about ten times as many steps as `digits`, because one image alone says
nothing about the class.
Target: 80 % of 1,000 pairs of held-out images.
"""

import torch
from torch import nn

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.tasks.base import Task
from hypergpu.tasks.digits import Images, read_images

CLASSES = 10
TRAIN_PAIRS = 20_000
HELD_OUT_PAIRS = 1_000


def task() -> Task:
    """Return the digit_sums task: a multilayer perceptron of 25,000 parameters."""
    train, test = read_images()
    return Task(
        model=_model,
        train=_pairs(train, TRAIN_PAIRS, "train"),
        test=_pairs(test, HELD_OUT_PAIRS, "held out"),
        name="digit_sums",
        target=0.8,
    )


def _pairs(images: Images, count: int, part: str) -> Images:
    """Return `count` pairs that are drawn from the images of one part, and their classes."""
    inputs, digit = images
    drawn = KeyedRandom(0, "digit_sums", part).generator().integers(len(inputs), size=(2, count))
    first, second = torch.from_numpy(drawn)
    return torch.cat((inputs[first], inputs[second]), dim=1), (digit[first] + digit[second]) % CLASSES


def _model() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(128, 128), nn.ReLU()),
        *(nn.Linear(128, 64), nn.ReLU()),
        nn.Linear(64, CLASSES),
    )
