"""Figures that come from outside."""

import math

from common.errors import InvalidInput


def not_negative(value: float, name: str) -> float:
    """`value`, if it is a finite number ≥ 0.

    Raises:
        InvalidInput: it is not.
    """
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise InvalidInput(f"{name} must be a finite number >= 0, not {value}")
    return number


def positive(value: float, name: str) -> float:
    """`value`, if it is a finite number > 0.

    Raises:
        InvalidInput: it is not.
    """
    if not_negative(value, name) == 0:
        raise InvalidInput(f"{name} must be above 0")
    return float(value)
