"""JSON as RFC 8259 defines it, and bounded readers of JSON files.

Python's own encoder writes a bare NaN or Infinity, which no other parser reads.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, count
from pathlib import Path
from typing import Any, BinaryIO

from hypergpu.common.errors import ConfigError
from hypergpu.common.files import read_bytes, shown

MAX_LINE_BYTES = 8 << 20
"""Longest line of a file of JSON lines: a round of 10,000 nodes takes 2 MB."""
MAX_DEPTH = 200
"""Deepest nesting. The parser of Python 3.11 recurses in C, bounded by the recursion limit alone. Where a library has
raised that, as some do when they are imported, a nested text would end the process."""
_NOT_NESTING = re.compile(r'"(?:[^"\\]++|\\.)*+"|[^\[\]{}"]++', re.DOTALL)
"""Strings, and whatever else neither begins nor ends an array or object."""
_CHANGE = {"[": 1, "{": 1, "]": -1, "}": -1}


def dumps(
    value: object,
    *,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """Encode a value; a number that is not finite becomes null."""
    return _encoded(value, indent=indent, separators=separators, default=default)


def canonical(value: object) -> str:
    """Encode a value in its only form: keys in order, no white space, ASCII; a number that is not finite becomes null.

    Two programs that hash or sign a value get the same bytes. Numbers have the fewest digits that tell them apart.
    """
    return _encoded(value, separators=(",", ":"), sort_keys=True, default=str)


def _encoded(value: object, **options: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:  # something is not finite: look for it only then
        return json.dumps(_finite(value), allow_nan=False, **options)


def parse(text: str | bytes) -> object:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, or is nested too deep.
    """
    if _is_deep(text if isinstance(text, str) else text.decode("latin-1")):
        raise ValueError("nested too deep")
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    return value


def _is_deep(text: str) -> bool:
    """Return whether a JSON text is nested deeper than `MAX_DEPTH`."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    changes = (_CHANGE.get(each, 0) for each in _NOT_NESTING.sub("", text))
    return any(depth > MAX_DEPTH for depth in accumulate(changes))


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Return the object in a JSON text.

    Raises:
        ValueError: the text is not JSON, is nested too deep, or holds something other than an object.
    """
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} instead of an object")
    return value


def read_object(path: Path, max_bytes: int | None = None) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ConfigError: the file cannot be read, is larger than `max_bytes`, or does not hold an object.
    """
    data = read_bytes(path) if max_bytes is None else read_bytes(path, max_bytes)
    try:
        return parse_object(data)
    except ValueError as error:
        raise ConfigError(f"cannot read {shown(path)}: {error}") from error


def read_lines(path: Path, *, on_invalid: Callable[[int], None] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; blank lines are skipped.

    Args:
        path: read line by line: a file of any size takes the memory of one line.
        on_invalid: called with the number of each line that is too long or holds no object, such as the last line of
            a process that was killed; the line is skipped. Without it, such a line is an error.

    Raises:
        ConfigError: the file cannot be read, or a line is invalid; the message names the line.
    """
    for number, line in _numbered_lines(path):
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"longer than {MAX_LINE_BYTES:,} bytes")
            row = parse_object(line)
        except ValueError as error:
            if on_invalid is None:
                raise ConfigError(f"cannot read {shown(path)}: line {number}: {error}") from error
            on_invalid(number)
        else:
            yield row


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank; of one that is too long, its beginning."""
    try:
        with path.open("rb") as file:
            for number in count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return
                if len(line) > MAX_LINE_BYTES:
                    _skip_line(file, line)
                if not line.isspace():
                    yield number, line
    except OSError as error:
        raise ConfigError(f"cannot read {shown(path)}: {error.strerror or error}") from error


def _skip_line(file: BinaryIO, read: bytes) -> None:
    """Read on to the end of the line that begins with `read`."""
    while read and not read.endswith(b"\n"):
        read = file.readline(MAX_LINE_BYTES)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
