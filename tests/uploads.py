"""Uploads that tests make without a transfer."""

import numpy as np

from hypergpu.common.tensors import Assembler, Payload
from hypergpu.coordinator.uploads import Upload


def upload_of(values: np.ndarray[tuple[int], np.dtype[np.float32]], node: str = "a") -> Upload:
    """Upload of a whole update, in a buffer of its own."""
    payload: Payload = np.array(values, np.float32).view(np.uint8)
    return Upload(node, (1, 1), Assembler(payload), payload)
