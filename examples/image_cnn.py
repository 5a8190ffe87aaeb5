"""A convolutional network with BatchNorm, on images that are shifted at random each time they are read.

BatchNorm's statistics are averaged like parameters. Augmentation belongs in a Dataset: each node draws its own shifts.
Here: handwritten digits of 8 x 8 pixels (bundled with scikit-learn).
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hypergpu.tasks import Task
from hypergpu.tasks.digits import read_images


class Shifted(Dataset[tuple[Tensor, Tensor]]):
    """Images, each moved by up to one pixel in both directions."""

    def __init__(self, images: Tensor, classes: Tensor) -> None:
        self.images, self.classes = nn.functional.pad(images, (1, 1, 1, 1)), classes

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        top, left = (int(shift) for shift in torch.randint(3, (2,)))
        return self.images[index, :, top : top + 8, left : left + 8], self.classes[index]


def model() -> nn.Module:
    """Return a network of 11,000 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 48), nn.ReLU(), nn.Linear(48, 10)),
    )


def digits() -> Task:
    """95 % or more of 300 held-out digits within 25 rounds."""
    (images, classes), (test_images, test_classes) = read_images()
    train = Shifted(images.reshape(-1, 1, 8, 8), classes)
    test = (test_images.reshape(-1, 1, 8, 8), test_classes)
    return Task(model=model, train=train, test=test, target=0.95, name="image_cnn")
