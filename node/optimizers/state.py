"""State of a local optimizer."""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class OptimizerState:
    """State of one optimizer, which its steps change in place. A new one is empty."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Means of gradients and counts of steps, by name."""
    of_torch: dict[str, Any] | None = None
    """`state_dict()` of an optimizer of torch's kind; None before its first step."""

    def tensor(self, name: str, like: Tensor) -> Tensor:
        """Return the tensor of this name, in the shape and on the device of `like`; zeros at first."""
        found = self.tensors.get(name)
        if found is None:
            found = self.tensors[name] = torch.zeros_like(like)
        return found

    def copy(self) -> "OptimizerState":
        """Return a copy that shares no memory."""
        return OptimizerState({name: each.clone() for name, each in self.tensors.items()}, deepcopy(self.of_torch))
