"""Texts of nodes, files and other people are shown as they are: no markup and no control character is obeyed."""

import ast
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.panel import Panel

from hypergpu.console import PlainConsole, marked, new_table, print_table, say, styled
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import netsim_pb2 as net

Cli = Callable[..., Any]
HOSTILE = ["[/]", "[bold", "[red]x[/red]", "[/red]", "a[b]", ":smile:", "[link=x]y", "\\[", "\\"]


@pytest.mark.parametrize("text", HOSTILE)
def test_every_word_of_a_node_is_shown_as_it_is(on_fakes: Cli, fakes: Any, text: str) -> None:
    fakes.coordinator.nodes = [pb.NodeInfo(node_id="node_1", state=text, gpu=text, quality=text, reason=text)]
    fakes.proxy.links = [net.LinkInfo(node_id="node_1", profile=text, state=text, active_events=[text])]
    status = fakes.coordinator.status
    status.task = status.phase = status.state = status.policy = status.run_id = text
    status.waiting_for = text
    del status.decisions[:]
    status.decisions.append(pb.DecisionRecord(round=1, kind=text, subject=text, reason=text, detail=text))
    fakes.coordinator.events = [pb.RunEvent(seconds=1.0, round=1, kind="x", text=text, json="{}")]
    for command, least in ((("nodes",), 4), (("links",), 3), (("status",), 8), (("logs",), 1), (("pause",), 3)):
        result = on_fakes(*command)
        assert (result.code, result.err) == (0, "")
        assert result.out.count(text) >= least, command


@pytest.mark.parametrize("text", ["\x1b[2J", "\x07", "\x9b31m", "\u202e", "a\rb"])
def test_a_terminal_is_not_steered(on_fakes: Cli, fakes: Any, text: str) -> None:
    fakes.coordinator.nodes = [pb.NodeInfo(node_id="node_1", gpu=text, reason=text, state=text)]
    fakes.coordinator.status.task = fakes.coordinator.status.waiting_for = text
    fakes.coordinator.events = [pb.RunEvent(seconds=1.0, round=1, kind="x", text=text, json="{}")]
    for command in (("nodes",), ("status",), ("logs",)):
        out = on_fakes(*command).out
        assert text not in out
        assert text.strip("[2J31mab").encode("unicode_escape").decode()[:3] in out


def test_what_a_server_says_of_an_error_is_one_printable_line(on_fakes: Cli) -> None:
    result = on_fakes("policy", "a\x1b[2J\nb[/]")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "\x1b" not in result.err
    assert "[/]" in result.err


def test_paths_are_shown_with_their_brackets(cli: Cli) -> None:
    for arguments in (("report", "runs/[a]/b"), ("scenario", "[a].yaml", "--proxy", "127.0.0.1:1")):
        result = cli(*arguments)
        assert result.code == 2
        assert "[a]" in result.err


def printed(renderable: object) -> str:
    console = PlainConsole(width=60)
    console.file = io.StringIO()
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize("text", [*HOSTILE, "\x1b[31m"])
def test_tables_styles_and_panels_take_texts_as_they_are(text: str) -> None:
    table = new_table(text, title=text)
    table.add_row(text)
    told = text.replace("\x1b", "\\x1b")
    assert printed(table).count(told) == 3
    assert told in printed(styled(text, {}))
    assert told in printed(Panel(text, title=marked("[b]{it}[/]", it=text)))
    assert printed(marked("<[b]{it}[/]>", it=text)) == f"<{told}>\n"


def test_a_line_keeps_its_ends(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\nb\x1b")
    say("c", error=True)
    assert capsys.readouterr() == ("a\nb\\x1b\n", "c\n")


COMMAND_LINE = ("*.py", "cli/**/*.py", "report/**/*.py", "simulation/**/*.py")


def test_nothing_is_printed_but_by_what_makes_text_harmless() -> None:
    package = Path(__file__).parents[3] / "hypergpu"
    found = []
    for file in (file for folder in COMMAND_LINE for file in sorted(package.glob(folder))):
        for node in ast.walk(ast.parse(file.read_text())):
            name = node.func if isinstance(node, ast.Call) else None
            if isinstance(name, ast.Name) and name.id in {"print", "Console"}:
                found.append(str(file.relative_to(package)))
            if isinstance(name, ast.Attribute) and name.attr in {"echo", "secho"}:
                found.append(str(file.relative_to(package)))
    assert set(found) == {"console.py"}


def test_a_table_is_as_wide_as_it_needs_to_be_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    headings = [f"{number}{'h' * 50}" for number in range(6)]
    table = new_table(*headings)
    table.add_row(*headings)
    print_table(table)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2
    assert "…" not in out
    assert all(out.count(heading) == 2 for heading in headings)
