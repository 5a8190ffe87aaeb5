"""The three services as commands."""

import typer

from hypergpu.coordinator.__main__ import add_to as add_coordinator
from hypergpu.netsim_proxy.__main__ import add_to as add_proxy
from hypergpu.node.__main__ import add_to as add_node


def add_to(app: typer.Typer) -> None:
    """Add the services to an application."""
    for add in (add_coordinator, add_node, add_proxy):
        add(app)
