"""A regression that is judged by R², over the whole test set at once.

Here: how diabetes progresses within a year, from 10 measurements of 442 real patients (bundled with scikit-learn;
Efron et al., "Least Angle Regression", Annals of Statistics, 2004).
"""

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from hypergpu.tasks import Metric, Task


def diabetes() -> Task:
    """R² of 0.4 or more on 111 held-out patients within 25 rounds."""
    x, y = (torch.tensor(part).float() for part in load_diabetes(return_X_y=True))
    x, y = (x - x.mean(0)) / x.std(0), ((y - y.mean()) / y.std())[:, None]
    held_out = torch.arange(len(x)) % 4 == 0
    return Task(
        model=lambda: nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1)),
        train=(x[~held_out], y[~held_out]),
        test=(x[held_out], y[held_out]),
        loss=nn.functional.mse_loss,
        metric=Metric("r2", r2, over="set"),
        target=0.4,
        name="diabetes",
    )


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of the variance that the outputs explain."""
    return 1 - (targets - outputs).square().sum() / (targets - targets.mean()).square().sum()
