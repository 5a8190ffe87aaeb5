"""Data sets by name, for users with a network: `torchvision:CIFAR10`, `hf:mnist`. Images of any size and their classes.

Each needs an extra (`pip install 'hypergpu[vision]'` or `'hypergpu[hf]'`) and downloads once, to `HYPERGPU_DATA`
or `~/.cache/hypergpu`. The model is a small convolutional network; for another, write your own task around the data.
"""

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.tasks.base import Task


def torchvision(name: str) -> Task:
    """An image classification set of `torchvision.datasets` that takes `train=`, such as CIFAR10 or FashionMNIST.

    Raises:
        UnknownName: torchvision has no such set.
        InvalidInput: torchvision is not installed, or the set cannot be fetched or is not of images and classes.
    """
    sets = _extra("torchvision.datasets", "vision")
    if name not in sets.__all__:
        raise UnknownName("torchvision data set", name, sets.__all__)
    try:
        parts = [getattr(sets, name)(_cache(), train=train, download=True) for train in (True, False)]
    except Exception as error:
        raise InvalidInput(f"torchvision:{name} cannot be loaded: {type(error).__name__}: {error}") from error
    return _images(f"torchvision:{name}", *((part.data, part.targets) for part in parts))


def hf(name: str) -> Task:
    """A data set of the Hugging Face hub with `image` and `label` columns and `train` and `test` splits, such as mnist.

    Raises:
        InvalidInput: `datasets` is not installed, or the set cannot be fetched or lacks those columns or splits.
    """
    datasets = _extra("datasets", "hf")
    try:
        parts = [datasets.load_dataset(name, split=split, cache_dir=str(_cache())) for split in ("train", "test")]
        pairs = [(np.stack([np.asarray(image) for image in part["image"]]), part["label"]) for part in parts]
    except Exception as error:
        raise InvalidInput(
            f"hf:{name} needs columns image and label, and splits train and test: {type(error).__name__}: {error}"
        ) from error
    return _images(f"hf:{name}", *pairs)


def _images(name: str, train: tuple[Any, Any], test: tuple[Any, Any]) -> Task:
    (train_inputs, train_targets), (test_inputs, test_targets) = (
        (_pixels(name, images), torch.as_tensor(np.asarray(classes), dtype=torch.int64))
        for images, classes in (train, test)
    )
    mean, spread = train_inputs.mean(), train_inputs.std()
    channels, classes = train_inputs.shape[1], int(train_targets.max()) + 1
    return Task(
        model=lambda: _network(channels, classes),
        train=((train_inputs - mean) / spread, train_targets),
        test=((test_inputs - mean) / spread, test_targets),
        name=name,
    )


def _pixels(name: str, images: Any) -> Tensor:
    """Images of shape (samples, height, width[, channels]) as float32 of shape (samples, channels, height, width)."""
    pixels = torch.as_tensor(np.asarray(images))
    if pixels.ndim not in (3, 4):
        raise InvalidInput(f"{name} holds arrays of shape {tuple(pixels.shape)}, not images of one size")
    pixels = pixels.float()
    return pixels[:, None] if pixels.ndim == 3 else pixels.movedim(-1, 1).contiguous()


def _network(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4)),
        *(nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, classes)),
    )


def _extra(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidInput(f"{module.partition('.')[0]} is not installed: pip install 'hypergpu[{extra}]'") from error


def _cache() -> Path:
    return Path(os.environ.get("HYPERGPU_DATA", Path.home() / ".cache" / "hypergpu"))
