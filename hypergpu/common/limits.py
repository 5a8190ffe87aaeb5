"""Largest whole numbers that options and settings take."""

from typing import Final

LARGEST_COUNT: Final = (1 << 31) - 1
"""Largest number of rounds, samples or nodes: fits 32 bits, signed or not."""
LARGEST_INTEGER: Final = (1 << 63) - 1
"""Largest seed or number of bytes: fits 64 bits, signed or not."""
