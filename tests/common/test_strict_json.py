import io
import json
import math
import sys
from pathlib import Path

import pytest
import structlog

from hypergpu.common import strict_json
from hypergpu.common.errors import ConfigError
from hypergpu.common.log import LogFormat, configure


def refuse(name: str) -> None:
    raise AssertionError(name)


def test_a_number_that_is_not_finite_becomes_null_wherever_it_is() -> None:
    tree = {"a": math.nan, "b": [1.0, -math.inf, (math.inf, "NaN")], "c": {"d": {"e": math.nan}}, "f": True}
    read = json.loads(strict_json.dumps(tree), parse_constant=refuse)
    assert read == {"a": None, "b": [1.0, None, [None, "NaN"]], "c": {"d": {"e": None}}, "f": True}


def test_what_is_finite_is_encoded_as_json_does() -> None:
    tree = {"a": 0.1, "b": [1, None]}
    assert strict_json.dumps(tree, indent=1) == json.dumps(tree, indent=1)
    assert strict_json.dumps({"x": {1}}, default=sorted, separators=(",", ":")) == '{"x":[1]}'
    with pytest.raises(TypeError):
        strict_json.dumps({"x": {1}})


def test_logs_are_strict_json(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        configure(log_format=LogFormat.JSON)
        structlog.get_logger().info("the loss is odd", loss=math.nan)
    finally:
        structlog.reset_defaults()
    assert json.loads(stream.getvalue(), parse_constant=refuse)["loss"] is None


@pytest.mark.parametrize("depth", [strict_json.MAX_DEPTH, strict_json.MAX_DEPTH + 1, 200_000])
def test_nesting_is_bounded_whatever_the_recursion_limit(depth: int) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)  # as py-evm does when it is imported
    try:
        for left, right in (("[", "]"), ('{"a":', "}")):
            text = left * depth + "1" + right * depth
            if depth <= strict_json.MAX_DEPTH:
                assert json.dumps(strict_json.parse(text)) == text.replace(":", ": ")
            else:
                for each in (text, text.encode(), left * depth):
                    with pytest.raises(ValueError, match="nested too deep"):
                        strict_json.parse(each)
    finally:
        sys.setrecursionlimit(before)


def test_brackets_in_strings_and_side_by_side_are_no_nesting() -> None:
    tree = {"a": "[" * 300, 'b"{\\': '\\"' + "{" * 300, "c": [[1]] * 300}
    assert strict_json.parse(json.dumps(tree)) == tree


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('"' + "[" * 300, "nested too deep|not valid JSON"),
        ("]" * 300 + "[" * 300, "not valid JSON"),
    ],
)
def test_what_is_no_json_is_an_error_however_it_is_nested(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        strict_json.parse(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[1]", "a list instead of an object"),
        ("null", "a NoneType instead of an object"),
        ('{"a": 1', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_only_an_object_is_parsed(text: str | bytes, fault: str) -> None:
    assert strict_json.parse_object('{"a": [1]}') == {"a": [1]}
    assert strict_json.parse("[1]") == [1]
    with pytest.raises(ValueError, match=fault):
        strict_json.parse_object(text)


def test_an_object_is_read_from_a_file_within_bounds(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    file.write_text('{"rounds": 3}')
    assert strict_json.read_object(file) == {"rounds": 3}
    assert strict_json.read_object(file, max_bytes=13) == {"rounds": 3}
    with pytest.raises(ConfigError, match="larger than 12 bytes"):
        strict_json.read_object(file, max_bytes=12)
    file.write_text("[3]")
    with pytest.raises(ConfigError, match=r"cannot read .*summary\.json: a list instead of an object"):
        strict_json.read_object(file)
    with pytest.raises(ConfigError, match="No such file"):
        strict_json.read_object(tmp_path / "nothing.json")


def test_lines_are_read_one_by_one_and_blank_ones_skipped(tmp_path: Path) -> None:
    file = tmp_path / "rounds.jsonl"
    file.write_bytes(b'{"round":1}\n\n  \r\n{"round":2}')
    assert list(strict_json.read_lines(file)) == [{"round": 1}, {"round": 2}]
    file.write_bytes(b"")
    assert list(strict_json.read_lines(file)) == []
    with pytest.raises(ConfigError, match=r"cannot read .*nothing\.jsonl: No such file"):
        next(strict_json.read_lines(tmp_path / "nothing.jsonl"))


def test_an_invalid_line_is_an_error_that_names_it_or_skipped(tmp_path: Path) -> None:
    file = tmp_path / "rounds.jsonl"
    file.write_bytes(b'{"round":1}\n\n[2]\n{"round":3}\n{"rou')
    with pytest.raises(ConfigError, match=r"cannot read .*rounds\.jsonl: line 3: a list instead of an object"):
        list(strict_json.read_lines(file))
    skipped: list[int] = []
    assert list(strict_json.read_lines(file, on_invalid=skipped.append)) == [{"round": 1}, {"round": 3}]
    assert skipped == [3, 5]


def test_a_line_beyond_the_bound_is_skipped_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "MAX_LINE_BYTES", 10)
    file = tmp_path / "rounds.jsonl"
    file.write_bytes(b'{"r":1  }\n{"r": "' + b"x" * 33 + b'"}\n{"r":2}\n{"r":  3  }')
    skipped: list[int] = []
    assert list(strict_json.read_lines(file, on_invalid=skipped.append)) == [{"r": 1}, {"r": 2}]
    assert skipped == [2, 4]
    with pytest.raises(ConfigError, match="line 2: longer than 10 bytes"):
        list(strict_json.read_lines(file))
