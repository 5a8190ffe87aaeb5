"""The three services as commands, each with its own options."""

import typer

from hypergpu.coordinator.__main__ import coordinate
from hypergpu.netsim_proxy.__main__ import main as run_proxy
from hypergpu.node.__main__ import work

_PANEL = "Run a service"


def proxy(context: typer.Context) -> None:
    """Put a network between gRPC clients and a service: latency, jitter, loss and bandwidth per node.

    Example: hypergpu proxy --listen 127.0.0.1:50052 --upstream 127.0.0.1:50051 --profile poor
    """
    run_proxy(context.args)


def add_to(app: typer.Typer) -> None:
    """Register the services."""
    app.command("coordinator", rich_help_panel=_PANEL)(coordinate)
    app.command("node", rich_help_panel=_PANEL)(work)
    # The proxy reads its own command line, `--help` too.
    own = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command("proxy", rich_help_panel=_PANEL, context_settings=own)(proxy)
