"""Write what ByzFL's aggregators make of a few vectors, for the test of ours.

    pip download --no-deps byzfl==0.0.11 && unzip byzfl-0.0.11-py3-none-any.whl -d byzfl
    python tools/byzfl_vectors.py byzfl > tests/coordinator/core/byzfl_vectors.json

The package's own `__init__` needs torchvision and seaborn, which its aggregators do not; it is left out.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def main(folder: str) -> None:
    package = ModuleType("byzfl")
    package.__path__ = [str(Path(folder).resolve() / "byzfl")]
    sys.modules["byzfl"] = package
    rules, mixing = import_module("byzfl.aggregators.aggregators"), import_module("byzfl.aggregators.preaggregators")
    cases: list[dict[str, Any]] = []
    for count, byzantine, size in ((5, 1, 4), (9, 2, 7), (20, 4, 5)):
        random = np.random.default_rng(count)
        vectors = random.standard_normal(size) + 0.3 * random.standard_normal((count, size))
        vectors[:byzantine] *= -3.0
        vectors = vectors.astype(np.float32)
        wide = vectors.astype(np.float64)
        mixed = mixing.NNM(byzantine)(wide)
        found = {"nnm": mixed}
        for prefix, given in (("", wide), ("nnm ", mixed)):
            clipping = rules.CenteredClipping(None, 3, 0.5)
            clipping.m = given[-1].copy()  # its constructor refuses every centre
            found |= {
                f"{prefix}trimmed_mean": rules.TrMean(byzantine)(given),
                f"{prefix}median": rules.Median()(given),
                f"{prefix}multi_krum": rules.MultiKrum(byzantine)(given),
                f"{prefix}geometric_median": rules.GeometricMedian(0.1, 3)(given),
                f"{prefix}centered_clipping": clipping(given),
            }
        expected = {name: value.tolist() for name, value in found.items()}
        cases.append({"byzantine": byzantine, "vectors": vectors.tolist(), "expected": expected})
    print(json.dumps(cases))


if __name__ == "__main__":
    main(sys.argv[1])
