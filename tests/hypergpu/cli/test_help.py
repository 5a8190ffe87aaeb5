"""What every command promises: help with an example, and the example is one that the command takes."""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.main import get_command

from hypergpu.cli.app import app
from hypergpu.common.command_line import run_app
from hypergpu.coordinator.__main__ import CoordinatorOptions
from tests.documents import DOCUMENTS, ROOT
from tests.documents import commands as document_commands
from tests.hypergpu.conftest import Cli

EXAMPLE = re.compile(r"(?:Example: |^ {4,})(hypergpu .+?)$", re.MULTILINE)


def commands(group: object, *path: str) -> Iterator[tuple[str, ...]]:
    known: Mapping[str, object] = getattr(group, "commands", {})
    if path or not known:  # a group has its own help
        yield path
    for name, command in known.items():
        yield from commands(command, *path, name)


COMMANDS = sorted(commands(get_command(app)))


def command_of(words: list[str]) -> tuple[object, list[str]]:
    """Return the command that a line calls, and its arguments."""
    assert words[0] == "hypergpu"
    command: object = get_command(app)
    arguments = words[1:]
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command = getattr(command, "commands")[arguments.pop(0)]  # noqa: B009  (its class is no public name)
    return command, arguments


def whole_numbers(group: typer.Typer) -> Iterator[tuple[str, object]]:
    """The options and arguments of all commands that take a whole number, and the largest that each takes."""
    for command in group.registered_commands:
        assert command.callback is not None
        if command.callback is CoordinatorOptions:  # its numbers are settings, which have bounds of their own
            continue
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            kind, *options = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if kind is int or int in get_args(kind):
                yield f"{command.callback.__name__}.{name}", max((option.max or 0 for option in options), default=0)
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from whole_numbers(inner.typer_instance)


def test_every_whole_number_that_a_command_takes_has_a_bound() -> None:
    found = dict(whole_numbers(app))
    assert len(found) > 15
    assert [name for name, largest in found.items() if not largest] == []


def require_parses(line: str) -> None:
    """Fail unless the options and arguments of a command line are such as it takes; nothing is run."""
    command, arguments = command_of(shlex.split(line, comments=True))
    if arguments == ["--help"]:  # prints and exits
        return
    context = command.make_context("test", arguments)  # type: ignore[attr-defined]
    assert not context.args, f"{line}: {context.args} is too much"


def test_there_are_commands() -> None:
    assert ("demo",) in COMMANDS
    assert ("trace", "record") in COMMANDS
    assert len(COMMANDS) > 30


def options_of(path: tuple[str, ...]) -> dict[str, tuple[object, ...]]:
    """Return how a command declares each option: other names, placeholder, environment variable, panel and help."""
    command, _ = command_of(["hypergpu", *path])
    return {
        parameter.opts[0]: (parameter.secondary_opts, parameter.metavar, parameter.envvar, parameter.help)
        for parameter in getattr(command, "params")  # noqa: B009  (its class is no public name)
        if parameter.param_type_name == "option"
    }


@pytest.mark.parametrize(
    ("option", "commands"),
    [
        ("--http-listen", ("coordinator", "node", "proxy")),
        ("--config", ("coordinator", "node")),
        ("--set", ("coordinator", "node")),
        ("--token", ("coordinator", "node")),
        ("--token", ("nodes", "doctor", "pause")),
        ("--token-file", ("coordinator", "node")),
        ("--token-file", ("nodes", "doctor", "pause")),
        ("--operator-token", ("coordinator", "proxy")),
        ("--viewer-token-file", ("coordinator", "proxy")),
        ("--tls-cert", ("coordinator", "proxy")),
        ("--tls-key", ("coordinator", "proxy")),
        ("--tls-ca", ("node", "inject", "doctor")),
        ("--insecure", ("coordinator", "node", "proxy", "inject", "doctor")),
        ("--log-level", ("coordinator", "node", "proxy")),
        ("--log-format", ("coordinator", "node", "proxy")),
        ("--seed", ("coordinator", "proxy", "demo", "simulate", "fit", "transfer")),
        ("--json", ("nodes", "demo", "simulate", "report", "doctor", "inject")),
    ],
)
def test_commands_share_an_option(option: str, commands: tuple[str, ...]) -> None:
    assert len({repr(options_of((command,))[option]) for command in commands}) == 1


def test_no_help_shows_a_default_of_none(cli: Cli) -> None:
    for path in COMMANDS:
        shown = cli(*path, "--help").out
        assert not re.search(r"default: (None|\[\])?[\])]", shown), " ".join(path)


@pytest.mark.parametrize("service", ["coordinator", "node", "proxy"])
def test_a_usage_error_of_a_service_is_one_line_and_exit_code_2(cli: Cli, service: str) -> None:
    result = cli(service, "--log-leve", "info")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith("hypergpu: No such option: --log-leve")
    assert "--log-level" in result.err
    assert "--help`" in result.err


def test_completion_can_be_installed_and_knows_commands_and_choices(
    cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--install-completion" in cli("--help").out
    monkeypatch.setenv("_HYPERGPU_COMPLETE", "complete_bash")
    for line, expected in (("hypergpu coord", {"coordinator"}), ("hypergpu node --log-format ", {"text", "json"})):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        with pytest.raises(SystemExit):
            run_app(app, [], "hypergpu")
        assert set(capsys.readouterr().out.split()) == expected


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_that_it_takes(cli: Cli, path: tuple[str, ...]) -> None:
    shown = cli(*path, "--help")
    assert shown.code == 0
    assert "Example:" in shown.out, f"hypergpu {' '.join(path)} --help shows no example"
    command, rest = command_of(["hypergpu", *path])
    assert not rest
    examples = EXAMPLE.findall(str(getattr(command, "help", "")))
    assert examples
    for line in examples:
        assert command_of(shlex.split(line))[0] is not None
        require_parses(line)
        assert shlex.split(line)[1 : 1 + len(path)] == list(path), "the example is of this command"


@pytest.mark.parametrize(
    "line", ["hypergpu demo --node 3", "hypergpu exclude", "hypergpu inject latency_spike", "hypergpu node --gpus x"]
)
def test_a_line_that_a_command_does_not_take_is_noticed(line: str) -> None:
    with pytest.raises(typer.TyperException):
        require_parses(line)


def documented() -> list[str]:
    """Return the lines of all documents that call `hypergpu` with arguments, or a service."""
    shown = {command.line for document in DOCUMENTS for command in document_commands(document)}
    spans = {
        span
        for document in (*DOCUMENTS, "docs/runbooks.md", "docs/metrics.md", "docs/library.md")
        for span in re.findall(r"`(hypergpu [^`]+ [^`]+)`", (ROOT / document).read_text(encoding="utf-8"))
    }
    names = {f"hypergpu {' '.join(path)}" for path in COMMANDS}  # in a sentence, a command may be named alone
    return sorted(line for line in shown | (spans - names) if line.startswith("hypergpu") and "…" not in line)


@pytest.mark.parametrize("line", documented())
def test_documents_show_lines_that_their_commands_take(line: str) -> None:
    numbers = {"N": "2", "FILE": "README.md", "DIR": "."}
    require_parses(" ".join(numbers.get(word, word) for word in line.split(" ")))
