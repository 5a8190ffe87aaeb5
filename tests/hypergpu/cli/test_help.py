"""What every command promises: help with an example, and the example is one that the command takes."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.main import get_command

from hypergpu.cli.app import COMMANDS as ROOT_COMMANDS
from hypergpu.cli.app import app
from hypergpu.cli.lazy_group import Entry
from hypergpu.common.command_line import Service, run_app
from hypergpu.coordinator.__main__ import service as coordinator
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
GROUPS = {path[:1] for path in COMMANDS if len(path) > 1}


def command_of(words: list[str]) -> tuple[object, list[str]]:
    """Return the command that a line calls, and its arguments."""
    assert words[0] == "hypergpu"
    command: object = get_command(app)
    arguments = words[1:]
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command = getattr(command, "commands")[arguments.pop(0)]  # noqa: B009  (its class is no public name)
    return command, arguments


def functions() -> Iterator[Callable[..., object]]:
    """What the options and arguments of each command are declared by."""
    for entry in ROOT_COMMANDS:
        target = entry.target
        if isinstance(target, typer.Typer):
            yield from (command.callback for command in target.registered_commands if command.callback)
        elif target is not coordinator:  # its numbers are settings, which have bounds of their own
            yield target.options if isinstance(target, Service) else target


def whole_numbers() -> Iterator[tuple[str, object]]:
    """The options and arguments of all commands that take a whole number, and the largest that each takes."""
    for function in functions():
        for name, hint in get_type_hints(function, include_extras=True).items():
            kind, *options = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if kind is int or int in get_args(kind):
                yield f"{function.__name__}.{name}", max((option.max or 0 for option in options), default=0)


def test_every_whole_number_that_a_command_takes_has_a_bound() -> None:
    found = dict(whole_numbers())
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


def imported_by(*arguments: str, **environment: str) -> set[str]:
    """Return the modules that a command imports beside the standard library, by their first names."""
    program = (
        "import sys\nfrom hypergpu.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


HEAVY = {"torch", "numpy", "grpc", "google", "pydantic", "structlog", "yaml", "sklearn", "prometheus_client", "uvloop"}


def test_help_and_the_completion_of_commands_import_nothing_that_takes_long() -> None:
    found = imported_by("--help")
    assert "typer" in found
    assert found & HEAVY == set()
    completing = {"_HYPERGPU_COMPLETE": "complete_bash", "COMP_WORDS": "hypergpu sta", "COMP_CWORD": "1"}
    assert imported_by(**completing) & HEAVY == set()
    assert imported_by("simulate", "--list") >= {"numpy", "pydantic"}, "the measure itself"


@pytest.mark.parametrize("entry", ROOT_COMMANDS, ids=lambda entry: entry.name)
def test_the_list_of_commands_says_what_their_help_begins_with(entry: Entry) -> None:
    command = entry.command()
    first = inspect.cleandoc(command.help).split("\n\n")[0]
    assert entry.summary == " ".join(first.split())


def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    program = tmp_path / "hypergpu"
    load = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from hypergpu.__main__ import main"
    program.write_text(f"#!{sys.executable}\n{load}; main()\n")
    program.chmod(0o755)
    script = (
        'set -e\neval "$(hypergpu completion bash)"\ncomplete -p hypergpu\n'
        'ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _hypergpu_completion "$1"; echo "${COMPREPLY[@]}"; }\n'
        "ask hypergpu sta\nask hypergpu completion ''\nask hypergpu token --ro\n"
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    registered, *completed = done.stdout.splitlines()
    assert registered.endswith("-F _hypergpu_completion hypergpu")
    assert completed == ["status", "bash zsh fish", "--rotate"]


@pytest.mark.parametrize(("shell", "part"), [("zsh", "#compdef hypergpu"), ("fish", "complete --command hypergpu")])
def test_other_shells_have_scripts_too(cli: Cli, shell: str, part: str) -> None:
    assert part in cli("completion", shell).out
    assert "'bash', 'zsh', 'fish'" in cli("completion", "csh").err


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


@pytest.mark.parametrize("path", [path for path in COMMANDS if path not in GROUPS], ids=" ".join)
def test_every_command_has_an_example_in_the_documents(path: tuple[str, ...]) -> None:
    """tests/e2e/test_documents.py runs each of them, or says why not."""
    shown = [span.split() for document in DOCUMENTS for span in calls_in(document)]
    assert [words for words in shown if tuple(words[1 : 1 + len(path)]) == path]


@pytest.mark.parametrize(
    "line", ["hypergpu demo --node 3", "hypergpu exclude", "hypergpu inject latency_spike", "hypergpu node --gpus x"]
)
def test_a_line_that_a_command_does_not_take_is_noticed(line: str) -> None:
    with pytest.raises(typer.TyperException):
        require_parses(line)


def calls_in(document: str) -> list[str]:
    """Return the commands of a document's shell blocks and tables, and those in its sentences that have arguments."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [each.line for each in document_commands(document)] + re.findall(r"`(hypergpu [^`]+)`", text)


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
