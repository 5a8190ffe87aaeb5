"""Figures that come from outside."""

import math
from enum import StrEnum
from typing import TypeVar

from hypergpu.common.errors import InvalidInput, UnknownName

Choice = TypeVar("Choice", bound=StrEnum)


def require_non_negative(value: float, name: str) -> float:
    """`value`, if it is a finite number ≥ 0.

    Raises:
        InvalidInput: it is not.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise InvalidInput(f"{name} must be a finite number >= 0, not {value!r}")
    return number


def require_positive(value: float, name: str) -> float:
    """`value`, if it is a finite number > 0.

    Raises:
        InvalidInput: it is not.
    """
    if require_non_negative(value, name) == 0:
        raise InvalidInput(f"{name} must be above 0")
    return float(value)


def parse_enum(choices: type[Choice], name: str, what: str) -> Choice:
    """The member of an enum with this value.

    Raises:
        UnknownName: there is none; the nearest is named.
    """
    known = [str(each) for each in choices]
    if name not in known:
        raise UnknownName(what, str(name), known)
    return choices(name)
