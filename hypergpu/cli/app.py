"""The command line: which commands there are, by what a user wants to do."""

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from hypergpu.cli import containers, control, look, network, services
from hypergpu.cli.compare import compare
from hypergpu.cli.demo import demo
from hypergpu.cli.doctor import doctor
from hypergpu.cli.export import export
from hypergpu.cli.fit import fit
from hypergpu.cli.logs import logs
from hypergpu.cli.report import report
from hypergpu.cli.running import run_app
from hypergpu.cli.simulate import simulate
from hypergpu.cli.trace import app as trace
from hypergpu.cli.transfer import transfer
from hypergpu.cli.validate import validate
from hypergpu.common import log
from hypergpu.show import say

app = typer.Typer(
    name="hypergpu",
    help="Train one model on many machines joined by bad networks. Start with `hypergpu demo`.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    add_completion=False,
    pretty_exceptions_enable=False,
)

_GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "Start and stop": (demo, containers.up, containers.scale, containers.down, doctor),
    "Look": (look.status, look.nodes, network.links, logs, report, export),
    "Study a network": (simulate, compare, validate, fit, transfer),
    "Change the network": (
        network.profile,
        network.inject,
        network.schedule,
        network.scheduled,
        network.clear,
        network.scenario,
        network.reload,
    ),
    "Steer the training": (
        control.pause,
        control.resume,
        control.stop,
        control.restart,
        control.include,
        control.exclude,
        control.policy,
    ),
}
for panel, commands in _GROUPS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
services.add_to(app)
app.add_typer(trace, name="trace", rich_help_panel="Study a network")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Train one model on many machines joined by bad networks. Start with `hypergpu demo`."""
    if show_version:
        say(f"hypergpu {version('hypergpu')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise typer.BadParameter("say a command; `hypergpu --help` lists them")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point; exits with 0, with 2 after bad input, or with what a command says."""
    log.configure_cli()
    run_app(app, sys.argv[1:] if arguments is None else arguments)
