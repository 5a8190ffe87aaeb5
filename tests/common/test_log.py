"""Logs for people: texts of other machines steer no terminal and forge no line."""

import json
import logging
from collections.abc import Callable, Iterator

import pytest
import structlog

from hypergpu.common import log

EVIL = ["\x1b[2J", "\n2026-01-01 [info] forged", "\r", "\x9b31m", "\x07", "\u202e", "\x7f"]


class Stderr:
    """What was written to standard error."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured, self._text = captured, ""

    def getvalue(self) -> str:
        self._text += self._captured.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Stderr]:
    yield Stderr(capsys)
    structlog.reset_defaults()
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(None)


def as_server() -> None:
    log.configure(log_format=log.LogFormat.TEXT)


@pytest.mark.parametrize("configure", [as_server, log.configure_cli])
@pytest.mark.parametrize("evil", EVIL)
def test_a_line_for_people_holds_no_control_character(stderr: Stderr, configure: Callable[[], None], evil: str) -> None:
    configure()
    structlog.get_logger().info(f"said {evil}!", node=f"a{evil}", parts=[f"b{evil}"], **{f"key{evil}": 1})
    line = stderr.getvalue()
    assert line.count("\n") == 1
    assert line.rstrip("\n").isprintable()
    assert "said \\" in line
    assert line.count(evil.lstrip("\n\r\x1b\x9b\x07\u202e\x7f")) >= 3


@pytest.mark.parametrize("configure", [as_server, log.configure_cli])
def test_a_traceback_keeps_its_lines_and_nothing_else(stderr: Stderr, configure: Callable[[], None]) -> None:
    configure()
    try:
        raise ValueError("bad \x1b[2J name")
    except ValueError:
        structlog.get_logger().exception("it failed")
    told = stderr.getvalue()
    assert "\nTraceback (most recent call last):\n" in told
    assert "ValueError: bad \\x1b[2J name\n" in told
    assert "\x1b" not in told


def test_what_libraries_log_is_held_to_it(stderr: Stderr) -> None:
    as_server()
    record = logging.LogRecord("grpc", logging.ERROR, "x.py", 1, "from %s", ("\x1b]0;me\x07",), None)
    assert logging.lastResort is not None
    logging.lastResort.handle(record)
    assert stderr.getvalue() == "from \\x1b]0;me\\x07\n"


def test_json_has_escapes_of_its_own(stderr: Stderr) -> None:
    log.configure(log_format=log.LogFormat.JSON)
    structlog.get_logger().info("said \x1b\n", node="\u202e")
    assert stderr.getvalue().rstrip("\n").isprintable()
    assert json.loads(stderr.getvalue())["event"] == "said \x1b\n"
