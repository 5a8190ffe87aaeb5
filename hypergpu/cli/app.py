"""The `hypergpu` application: its commands, grouped by what a user wants to do."""

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated, Final, NoReturn

import typer
from typer.core import TyperCommand

from hypergpu.cli import containers, control, inspect, network
from hypergpu.cli.certs import certs
from hypergpu.cli.cluster_command import ChangingCommand, ClusterCommand, TargetCommand
from hypergpu.cli.compare import compare
from hypergpu.cli.demo import demo
from hypergpu.cli.doctor import doctor
from hypergpu.cli.export import export
from hypergpu.cli.fit import fit
from hypergpu.cli.init import init
from hypergpu.cli.ledger import app as ledger
from hypergpu.cli.logs import logs
from hypergpu.cli.outlets import outlets
from hypergpu.cli.plan import plan
from hypergpu.cli.report import report
from hypergpu.cli.rewards import rewards
from hypergpu.cli.simulate import simulate
from hypergpu.cli.token import token
from hypergpu.cli.trace import app as trace
from hypergpu.cli.transfer import transfer
from hypergpu.cli.tune import tune
from hypergpu.cli.validate import validate
from hypergpu.cli.view import view
from hypergpu.cli.whatif import whatif
from hypergpu.common import log
from hypergpu.common.command_line import new_app, run_app
from hypergpu.common.options import FLAG
from hypergpu.console import say
from hypergpu.coordinator.__main__ import service as coordinator
from hypergpu.netsim_proxy.__main__ import service as proxy
from hypergpu.node.__main__ import service as node

Commands = tuple[Callable[..., object], ...]
_SIMULATE: Final = "Simulate"
_COMMANDS: tuple[tuple[str, type[TyperCommand], Commands], ...] = (
    ("Start and stop", TyperCommand, (demo, init, containers.up, containers.scale, containers.down)),
    ("Start and stop", TargetCommand, (doctor,)),
    ("Secure", TyperCommand, (token, certs)),
    ("Inspect", ClusterCommand, (inspect.status, inspect.nodes, network.links, logs)),
    ("Inspect", TyperCommand, (view, report, export, outlets, rewards)),
    (_SIMULATE, TyperCommand, (simulate, compare, tune, plan, whatif, validate, fit, transfer)),
    (
        "Control the network",
        ChangingCommand,
        (network.profile, network.upstream_bandwidth, network.clear, network.scenario, network.reload),
    ),
    ("Control the network", network.EventCommand, (network.inject, network.schedule)),
    ("Control the network", ClusterCommand, (network.scheduled,)),
    (
        "Control the run",
        ChangingCommand,
        (
            control.pause,
            control.resume,
            control.stop,
            control.restart,
            control.include,
            control.exclude,
            control.policy,
        ),
    ),
)

app = new_app("Train one model on many machines joined by bad networks. Start with `hypergpu demo`.", completion=True)
for service in (coordinator, node, proxy):
    service.add_to(app)
for panel, kind, commands in _COMMANDS:
    for command in commands:
        app.command(cls=kind, rich_help_panel=panel)(command)
app.add_typer(ledger, name="ledger", rich_help_panel="Inspect")
app.add_typer(trace, name="trace", rich_help_panel=_SIMULATE)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", metavar=FLAG, help="Print the version and exit.")] = False,
) -> None:
    """Handle the options of the application itself."""
    if show_version:
        say(f"hypergpu {version('hypergpu')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise typer.BadParameter("missing command; `hypergpu --help` lists them")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; the arguments default to those of the process."""
    log.configure_cli()
    run_app(app, (sys.argv[1:] if arguments is None else arguments) or ["--help"])
