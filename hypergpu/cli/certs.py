"""`hypergpu certs`: make a certificate authority, and certificates of servers and nodes."""

from pathlib import Path
from typing import Annotated

import typer

from hypergpu.common.errors import ConfigError
from hypergpu.common.files import shown
from hypergpu.console import say


def certs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the authority and the certificates.")],
    server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Host name or address that nodes dial; repeatable, for one certificate of the server."
        ),
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="Name of a node that gets a certificate; repeatable.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, metavar="N", help="Days for which they are valid.")] = 365,
) -> None:
    """Make certificates, signed by an authority in DIR, which is made with the first.

    Run it again to renew a certificate: servers read their files again when these change. Give each machine ca.pem and
    its own pair; ca-key.pem signs, and stays.

    Example: hypergpu certs certs --server train.example.org --node node_1 --node node_2
    """
    if not server and not node:
        raise ConfigError("name a certificate to make: --server NAME or --node NODE")
    from hypergpu.certificates import Authority  # noqa: PLC0415  (other commands need no X.509)

    authority = Authority(directory)
    made = [authority.sign_server(server, days)] if server else []
    made += [authority.sign_node(name, days) for name in node or ()]
    for file in made:
        say(f"{shown(file)} and its key, valid for {days} days")
