"""Published combinations of local and server optimizer, by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

RecipeName = Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedprox", "diloco", "muloco"]
_FEDAVG: Final[Mapping[str, Any]] = MappingProxyType({"local_optimizer": "sgd", "server_optimizer": "sgd"})
_DILOCO: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "local_optimizer": "adamw",
        "local_steps": 100,
        "learning_rate": 0.001,
        "server_optimizer": "sgd",
        "server_learning_rate": 0.7,
        "server_momentum": 0.9,
        "server_nesterov": True,
        "local_state": "kept",
    }
)
RECIPES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        # McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017.
        "fedavg": _FEDAVG,
        # Hsu et al., "Measuring the effects of non-identical data distribution for federated visual classification".
        "fedavgm": {**_FEDAVG, "server_momentum": 0.9},
        # Reddi et al., "Adaptive federated optimization", ICLR 2021.
        "fedadam": {**_FEDAVG, "server_optimizer": "adam"},
        "fedyogi": {**_FEDAVG, "server_optimizer": "yogi"},
        # Li et al., "Federated optimization in heterogeneous networks", MLSys 2020.
        "fedprox": {**_FEDAVG, "proximal": 0.01},
        # Douillard et al., "DiLoCo: distributed low-communication training of language models", 2023.
        "diloco": _DILOCO,
        # Thérien et al., "MuLoCo: Muon is a practical inner optimizer for DiLoCo", 2025.
        "muloco": {**_DILOCO, "local_optimizer": "muon", "learning_rate": 0.02},
    }
)
"""Settings of `training` by recipe; a setting that is given beside a recipe holds."""
assert RECIPES.keys() == set(get_args(RecipeName))
