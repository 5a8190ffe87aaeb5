"""Validation of values that enter the core from outside."""

import math
from enum import StrEnum
from typing import TypeVar

from hypergpu.common.errors import InvalidInput, UnknownName

Choice = TypeVar("Choice", bound=StrEnum)


def require_non_negative(value: float, name: str) -> float:
    """Return `value` as a float after checking that it is finite and not negative.

    Raises:
        InvalidInput: The value is negative, not finite or not a number. The message contains `name`.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise InvalidInput(f"{name} must be a finite number >= 0, not {value!r}")
    return number


def require_positive(value: float, name: str) -> float:
    """Return `value` as a float after checking that it is finite and positive.

    Raises:
        InvalidInput: The value is not positive, not finite or not a number. The message contains `name`.
    """
    if require_non_negative(value, name) == 0:
        raise InvalidInput(f"{name} must be above 0")
    return float(value)


def parse_enum(choices: type[Choice], name: str, what: str) -> Choice:
    """Return the member of an enum with this value.

    Raises:
        UnknownName: There is no such member; the error suggests the nearest one.
    """
    known = [str(each) for each in choices]
    if name not in known:
        raise UnknownName(what, str(name), known)
    return choices(name)
