"""Whole numbers with bounds: no setting takes an integer that the wire, numpy or torch have no room for."""

from typing import Annotated, Final

from pydantic import BeforeValidator, Field

from hypergpu.common.limits import LARGEST_COUNT, LARGEST_INTEGER

_OUT_OF_REACH: Final = 1 << 64


def _reachable(value: object) -> object:
    """Return a number that no bound allows as an integer, so that the bound is what the error names."""
    if isinstance(value, int):  # compared as it is: it may be above the largest float
        return max(-_OUT_OF_REACH, min(value, _OUT_OF_REACH)) if not isinstance(value, bool) else value
    if isinstance(value, float) or (isinstance(value, str) and any(char.isdigit() for char in value)):
        try:
            number = float(value)
        except ValueError:
            return value
        if abs(number) >= _OUT_OF_REACH:
            return _OUT_OF_REACH if number > 0 else -_OUT_OF_REACH
    return value


REACHABLE: Final = BeforeValidator(_reachable)
"""Validator that follows every bound of a whole number."""
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT), REACHABLE]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST_COUNT), REACHABLE]
Bytes = Annotated[int, Field(ge=1, le=LARGEST_INTEGER), REACHABLE]
BytesOrZero = Annotated[int, Field(ge=0, le=LARGEST_INTEGER), REACHABLE]
Integer = Annotated[int, Field(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER), REACHABLE]
Seed = Annotated[int, Field(ge=0, le=LARGEST_INTEGER), REACHABLE]
