"""Inputs for a decoder: arbitrary bytes, damaged valid ones, and valid structures with values that cannot be."""

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

_MOST_CHANGES: Final = 4
_TOKENS: Final = (
    *(
        b"\0",
        b"\n",
        b"\r",
        b'"',
        b"'",
        b":",
        b",",
        b"-",
        b"#",
        b"&a ",
        b"*a",
        b"!!python/none ",
        b"\xef\xbb\xbf",
        b"\xff",
    ),
    *(b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"null", b"true", b"\\ud800", b"\xc2\xb2", b"9" * 20, b"9" * 5_000),
    *(b"[" * 5_000, b'{"a":' * 2_000, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\0" * 8, b"\x80" * 12, b"x" * 140_000),
)
"""Bytes that decoders stumble over: numbers that do not fit, deep nesting, odd text, the largest lengths."""
_VALUES: Final[Sequence[Any]] = (
    *(None, True, False, 0, -1, 1, 0.5, 1e-300, 1e308, -1e308, math.nan, math.inf, 2**31, 2**63, 2**64, 10**400),
    *(
        "",
        " ",
        "x",
        "nan",
        "*",
        "\0",
        "\ud800",
        "²",
        "\u202e",
        "x" * 5_000,
        [],
        {},
        [None],
        {"": None},
        {"a": {"b": [{}]}},
    ),
    *([0] * 300, ["x"] * 3),
)
"""Values in the place of others in JSON and YAML."""
_TEXTS: Final = ("", "x", "\0", "²", "\u202e", "../x", "*", "x" * 300, "x" * 70_000)
_INTEGERS: Final = (
    0,
    1,
    2,
    255,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -1,
    -(2**31),
    -(2**63),
)
_FLOATS: Final = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e-40, 1e38, 1e300, math.nan, math.inf, -math.inf)
_RANGES: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def inputs(valid: Sequence[bytes]) -> SearchStrategy[bytes]:
    """Bytes for a decoder that accepts the `valid` ones."""
    mutants = [damaged(valid)]
    trees = [tree for data in valid if isinstance(tree := _tree(data), dict | list)]
    if trees:
        mutants.append(changed_trees(trees))
    return st.one_of(st.binary(max_size=100), *mutants, *mutants)


@st.composite
def damaged(draw: DrawFn, valid: Sequence[bytes]) -> bytes:
    """Valid bytes with flipped bits, missing or doubled parts, parts of others, and tokens that do not belong."""
    data = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(1, _MOST_CHANGES))):
        at, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        match draw(st.sampled_from(("flip", "cut", "drop", "double", "splice", "token", "overwrite"))):
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "cut":
                data = data[:at]
            case "drop":
                data = data[:at] + data[end:]
            case "double":
                data = data[:end] + data[at:]
            case "splice":
                data = data[:at] + draw(st.sampled_from(valid))[at:]
            case "token":
                data = data[:at] + draw(st.sampled_from(_TOKENS)) + data[at:]
            case "overwrite":
                token = draw(st.sampled_from(_TOKENS))[: len(data) - at]
                data = data[:at] + token + data[at + len(token) :]
    return data


@st.composite
def changed_trees(draw: DrawFn, trees: Sequence[Any]) -> bytes:
    """JSON, which is YAML too, of a valid tree in which some values and keys are others."""
    tree = json.loads(json.dumps(draw(st.sampled_from(trees))))
    for _ in range(draw(st.integers(1, _MOST_CHANGES))):
        tree = _with_another(draw, tree)
    return json.dumps(tree).encode()


def _with_another(draw: DrawFn, tree: Any) -> Any:
    """Return a tree with another value, key or order somewhere, which is changed in place unless it is the root."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    if not keys:
        return _value(draw)
    key = draw(st.sampled_from(keys))
    match draw(st.sampled_from(("inside", "inside", "inside", "value", "drop", "rename", "root"))):
        case "inside":
            tree[key] = _with_another(draw, tree[key])
        case "value":
            tree[key] = _value(draw)
        case "drop":
            del tree[key]
        case "rename" if isinstance(tree, dict):
            tree[draw(st.sampled_from(("", "x", "nan", "x" * 300)))] = tree.pop(key)
        case "root":
            return _value(draw)
    return tree


def _value(draw: DrawFn) -> Any:
    return deepcopy(draw(st.sampled_from(_VALUES)))


def _tree(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


@st.composite
def messages(draw: DrawFn, valid: Sequence[Message]) -> bytes:
    """Serialised messages: valid ones whose fields hold what they may by their types, and damaged ones."""
    message = type(first := draw(st.sampled_from(valid)))()
    message.CopyFrom(first)
    for _ in range(draw(st.integers(0, _MOST_CHANGES))):
        _change_field(draw, message)
    data = message.SerializeToString()
    return draw(damaged([data])) if draw(st.integers(0, 2)) == 0 else data


def _change_field(draw: DrawFn, message: Message) -> None:
    """Change a field of a message, or of one inside it."""
    fields: Any = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = draw(st.sampled_from(fields))
    name = field.name
    if field.is_repeated:
        _change_repeated(draw, message, field)
    elif draw(st.integers(0, 5)) == 0:
        message.ClearField(name)
    elif field.message_type is not None:
        inner = getattr(message, name)
        inner.SetInParent()
        if field.message_type.fields:
            _change_field(draw, inner)
    else:
        setattr(message, name, _scalar(draw, field))


def _change_repeated(draw: DrawFn, message: Message, field: FieldDescriptor) -> None:
    values = getattr(message, field.name)
    if draw(st.integers(0, 3)) == 0:
        message.ClearField(field.name)
        return
    for _ in range(draw(st.sampled_from((1, 1, 2, 40, 1_100)))):
        if field.message_type is None:
            values.append(_scalar(draw, field))
            return
        if field.message_type.GetOptions().map_entry:
            return
        values.add()
    if field.message_type is not None and field.message_type.fields:
        _change_field(draw, values[-1])


def _scalar(draw: DrawFn, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind in _RANGES:
        least, most = _RANGES[kind]
        return draw(st.sampled_from([value for value in _INTEGERS if least <= value <= most]))
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return draw(st.sampled_from(_FLOATS))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return draw(st.booleans())
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return draw(st.sampled_from((0, 1, 2, 3, 99)))
    text = draw(st.sampled_from(_TEXTS))
    return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
