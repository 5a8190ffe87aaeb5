"""Loaders of public data sets: `torchvision:CIFAR10`, `hf:mnist`. Images of any one size and their classes.

Each needs an extra (`pip install 'hypergpu[vision]'` or `'hypergpu[hf]'`) and a network for its first use; see
`hypergpu.tasks.download_cache`. The model is a small convolutional network. To train another one, write a task.
"""

import importlib
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.common.files import shown
from hypergpu.tasks.base import Task
from hypergpu.tasks.download_cache import ensure_downloaded

_SPLITS = ("train", "test")


def torchvision(name: str) -> Task:
    """Return the task of an image classification set in `torchvision.datasets`, such as CIFAR10 or FashionMNIST.

    Raises:
        UnknownName: torchvision has no such set.
        InvalidInput: torchvision is not installed, the download failed, or the set does not hold images and classes.
    """
    sets = _extra("torchvision.datasets", "vision")
    if name not in sets.__all__:
        raise UnknownName("torchvision data set", name, sets.__all__)
    make = getattr(sets, name)

    def download(directory: Path) -> None:
        for train in (True, False):
            make(directory, train=train, download=True)

    task_name = f"torchvision:{name}"
    directory = ensure_downloaded(task_name, download)
    try:
        parts = [make(directory, train=train, download=False) for train in (True, False)]
        return _images(task_name, *((part.data, part.targets) for part in parts))
    except Exception as error:
        raise _not_usable(task_name, directory, error) from error


def hf(name: str) -> Task:
    """Return the task of a data set on the Hugging Face hub, such as mnist.

    The set needs the columns `image` and `label`, and the splits `train` and `test`.

    Raises:
        InvalidInput: `datasets` is not installed, the download failed, or the set lacks those columns or splits.
    """
    datasets = _extra("datasets", "hf")

    def download(directory: Path) -> None:
        with tempfile.TemporaryDirectory(dir=directory) as cache:
            for split in _SPLITS:
                part = datasets.load_dataset(name, split=split, cache_dir=cache)
                part.save_to_disk(str(directory / split))

    task_name = f"hf:{name}"
    directory = ensure_downloaded(task_name, download)
    try:
        parts = [datasets.load_from_disk(str(directory / split)) for split in _SPLITS]
        pairs = [(np.stack([np.asarray(image) for image in part["image"]]), part["label"]) for part in parts]
        return _images(task_name, *pairs)
    except Exception as error:
        raise _not_usable(task_name, directory, error) from error


def _not_usable(name: str, directory: Path, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{name} in {shown(directory)} is not a set of images of one size and their classes: "
        f"{type(error).__name__}: {error}"
    )


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
    """Return images as float32 of shape (samples, channels, height, width).

    Args:
        name: of the data set, for errors.
        images: shape (samples, height, width) or (samples, height, width, channels).
    """
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
