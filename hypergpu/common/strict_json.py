"""JSON as RFC 8259 has it. Python's own encoder writes a bare NaN or Infinity, which no other parser reads."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any


def dumps(
    value: object,
    *,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """Encode a value; a number that is not finite becomes null."""
    options: dict[str, Any] = {"indent": indent, "separators": separators, "default": default, "allow_nan": False}
    try:
        return json.dumps(value, **options)
    except ValueError:  # something is not finite: look for it only then
        return json.dumps(_finite(value), **options)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
