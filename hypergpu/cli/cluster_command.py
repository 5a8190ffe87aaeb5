"""Commands on a cluster: options that locate it, and a connected client."""

import asyncio
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

import typer

from hypergpu.cli.option_group import GroupCommand, OptionGroup
from hypergpu.client import Client, connect
from hypergpu.common.address import is_loopback
from hypergpu.common.command_line import PREFIX
from hypergpu.common.options import ADDRESS, Insecure, ShownToken, ShownTokenFile, TlsCa, TlsCert, TlsKey
from hypergpu.common.text import one_line
from hypergpu.common.tls import Tls, client_tls
from hypergpu.common.token import shown_token
from hypergpu.console import say
from hypergpu.discovery import Cluster, find, local_clusters

_PANEL: Final = "Cluster (the local one by default)"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Options that select a cluster and its credentials."""

    run: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="One of several local runs: its name, directory or process.", rich_help_panel=_PANEL
        ),
    ] = ""
    coordinator: Annotated[
        str,
        typer.Option(
            envvar="HYPERGPU_COORDINATOR",
            metavar=ADDRESS,
            help="Address of the coordinator.",
            rich_help_panel=_PANEL,
        ),
    ] = ""
    proxy: Annotated[
        str,
        typer.Option(
            envvar="HYPERGPU_PROXY",
            metavar=ADDRESS,
            help="Address of the proxy's control API.",
            rich_help_panel=_PANEL,
        ),
    ] = ""
    token: ShownToken = None
    token_file: ShownTokenFile = None
    tls_ca: TlsCa = None
    tls_cert: TlsCert = None
    tls_key: TlsKey = None
    insecure: Insecure = False

    def locate(self, *, changes: bool = False) -> Cluster:
        """Return the cluster, and print its name if the user gave no address.

        Raises:
            InvalidInput: no cluster is running, several are and the command changes one, or the token is invalid.
        """
        token = shown_token(self.token, self.token_file, os.environ)
        cluster = find(self.coordinator, self.proxy, token, self.run, changes=changes)
        if not self.coordinator and not self.proxy:
            others = len(local_clusters()) - 1 if not self.run else 0
            hint = f"; the newest of {others + 1}, choose another with --run NAME" if others > 0 else ""
            say(f"{PREFIX}run {one_line(cluster.name)}{hint}", error=True)
        return cluster

    def tls(self, address: str) -> Tls | None:
        """Return the TLS settings for the server at this address; None for plaintext, the default on loopback."""
        is_plain = self.insecure or is_loopback(address)
        return client_tls(self.tls_ca, self.tls_cert, self.tls_key, insecure=is_plain)

    def proxy_tls(self, address: str) -> Tls | None:
        """Return the TLS settings for the proxy; None for plaintext, always used by its control API on this machine."""
        if not address or address.startswith("unix:") or is_loopback(address):
            return None
        return self.tls(address)


TARGET: Final = OptionGroup(Target)


class TargetCommand(GroupCommand):
    """Command with the options of a `Target`."""

    groups: ClassVar[tuple[OptionGroup[Any], ...]] = (TARGET,)


class ClusterCommand(TargetCommand):
    """Command whose function is asynchronous and has a connected client in its context.

    If several local clusters are running, it uses the newest.
    """

    changes = False

    def invoke(self, context: Any) -> None:
        """Connect, and run the function."""
        asyncio.run(self._talk(context, super().invoke(context)))

    async def _talk(self, context: Any, command: Coroutine[Any, Any, None]) -> None:
        target = TARGET.of(context)
        try:
            cluster = target.locate(changes=self.changes)
            tls = target.tls(cluster.coordinator) if cluster.coordinator else None
            async with connect(cluster, tls, target.proxy_tls(cluster.proxy)) as context.obj:
                await command
        finally:
            command.close()


class ChangingCommand(ClusterCommand):
    """A `ClusterCommand` that changes something: if several local clusters are running, the user must choose one."""

    changes = True


def client_of(context: typer.Context) -> Client:
    """Return the client of a `ClusterCommand`."""
    assert isinstance(context.obj, Client)
    return context.obj
