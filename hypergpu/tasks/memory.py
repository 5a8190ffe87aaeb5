"""Detection of exhausted memory, and batches that shrink when memory runs out."""

from collections.abc import Callable
from typing import Final

import torch

_SIGNS: Final = (
    "out of memory",  # CUDA, MPS, XPU
    "can't allocate memory",  # torch's CPU allocator on Linux
    "not enough memory",  # torch's CPU allocator on Windows and macOS
    "cannot allocate memory",  # the operating system
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
"""Parts of error messages, in lower case, of errors without a type of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, means that memory ran out."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(cause, (RuntimeError, OSError)) and any(sign in str(cause).lower() for sign in _SIGNS):
            return True
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def in_batches(total: int, batch_size: int, take: Callable[[int, int], None]) -> int:
    """Call `take(start, size)` for consecutive ranges of `total` samples, smaller ones when memory runs out.

    Args:
        total: number of samples.
        batch_size: samples of the first batch; halved each time memory runs out, down to 1.
        take: processes a range; must have no effect if it raises.

    Returns:
        The batch size at the end.

    Raises:
        Exception: any other error of `take`, or exhausted memory with a single sample.
    """
    start = 0
    while start < total:
        size = min(batch_size, total - start)
        if _fits(take, start, size):
            start += size
        else:
            batch_size = max(1, size // 2)
    return batch_size


def _fits(take: Callable[[int, int], None], start: int, size: int) -> bool:
    """Process a range; return False, with all its tensors released, if it does not fit."""
    try:
        take(start, size)
    except Exception as error:
        if size == 1 or not is_out_of_memory(error):
            raise
    else:
        return True
    torch.cuda.empty_cache()  # fragmented memory; does nothing unless CUDA is in use
    return False
