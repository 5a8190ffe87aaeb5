import io
import json
import math
import sys

import pytest
import structlog

from hypergpu.common import strict_json
from hypergpu.common.log import configure


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
        configure("info", json=True)
        structlog.get_logger().info("the loss is odd", loss=math.nan)
    finally:
        structlog.reset_defaults()
    assert json.loads(stream.getvalue(), parse_constant=refuse)["loss"] is None
