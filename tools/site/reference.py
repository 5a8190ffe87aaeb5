"""Reference pages in Markdown, generated from the command line, the configuration tree and the public names."""

import inspect
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.main import get_command

import hypergpu
from hypergpu.cli.app import app
from hypergpu.common.config import SystemConfig


def cli_page() -> str:
    """Return every command with its help, arguments and options, in the groups of `hypergpu --help`."""
    root: Any = get_command(app)
    groups: dict[str, list[tuple[str, Any]]] = {}
    for name, command in root.commands.items():
        groups.setdefault(command.rich_help_panel, []).append((name, command))
    lines = ["# Command line", "", "Generated from `hypergpu --help`.", ""]
    for panel, commands in groups.items():
        lines += [f"## {panel}", ""]
        for name, command in commands:
            lines += _command(("hypergpu", name), command)
    return "\n".join(lines)


def _command(path: tuple[str, ...], command: Any) -> Iterator[str]:
    inner = getattr(command, "commands", {})
    yield from (f"### `{' '.join(path)}`", "", *inspect.cleandoc(command.help or "").splitlines(), "")
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    if parameters and not inner:
        yield from ("| option | meaning | default |", "|---|---|---|")
        yield from map(_parameter, parameters)
        yield ""
    for name, each in inner.items():
        yield from _command((*path, name), each)


def _parameter(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in parameter.opts) if parameter.param_type_name == "option" else ""
    metavar = parameter.metavar or parameter.name.upper()
    default = parameter.default
    shown = "" if default in (None, "", False, ()) or callable(default) or parameter.required else f"`{default}`"
    text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
    return f"| {names or f'`{metavar}`'} | {text} | {shown} |"


def configuration_page() -> str:
    """Return every setting with its type, default, bounds and meaning."""
    lines = [
        "# Configuration",
        "",
        "Generated from the configuration tree. [Settings](../settings.md) describes where a value may come from.",
        "",
    ]
    for name, field in SystemConfig.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        lines += [f"## {name}", "", inspect.getdoc(section) or "", ""]
        lines += ["| setting | meaning | default |", "|---|---|---|"]
        for key, setting in section.model_fields.items():
            default = setting.get_default(call_default_factory=True, validated_data={})
            value = str(default) if isinstance(default, StrEnum) else default
            shown = "required" if default is PydanticUndefined else f"`{value!r}`"
            meaning = " ".join((setting.description or "").split()).replace("|", "\\|")
            lines.append(f"| `{name}.{key}` | {meaning} | {shown} |")
        lines.append("")
    return "\n".join(lines)


def api_page() -> str:
    """Return a page of the public names, for mkdocstrings to fill."""
    lines = ["# Python API", "", "Every name is imported from `hypergpu`: `from hypergpu import NetworkSimulator`.", ""]
    for name in hypergpu.__all__:
        value = getattr(hypergpu, name)
        lines += [f"::: {value.__module__}.{value.__qualname__}", ""]
    return "\n".join(lines)
