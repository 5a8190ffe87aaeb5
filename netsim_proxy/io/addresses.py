"""Addresses of listeners and upstreams: HOST:PORT, or the path of a Unix socket."""

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from hypergpu.common.address import split_address
from hypergpu.common.background import Background
from hypergpu.common.errors import ConfigError
from hypergpu.netsim_proxy.io.listener import Listener, bind_sockets, bind_unix
from hypergpu.netsim_proxy.io.throttle import Throttle

Protocol = TypeVar("Protocol", bound=asyncio.BaseProtocol)

UNIX: Final = "unix:"
LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_BACKLOG: Final = 1024
_MAX_PATH_BYTES: Final = 107
"""Longest path of a Unix socket, by the kernel's address structure."""


@dataclass(frozen=True, slots=True)
class Address:
    """Address of either kind; `path` is None for HOST:PORT."""

    text: str
    host: str = ""
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read HOST:PORT or unix:PATH.

        Raises:
            ConfigError: it is neither.
        """
        if not text.startswith(UNIX):
            host, port = split_address(text)
            return cls(text, host, port)
        path = text.removeprefix(UNIX)
        if not path or "\0" in path or len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise ConfigError(
                f"{text[:200]!r} is not unix:PATH with a path of 1 to {_MAX_PATH_BYTES} bytes, as in unix:/run/p.sock"
            )
        return cls(text, path=Path(path))

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach the address."""
        return self.path is not None or self.host in LOOPBACK

    async def listen(
        self,
        make_protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        background: Background,
        throttle: Throttle,
    ) -> tuple[Listener, str]:
        """Accept connections; return the listener and the address with the real port.

        Raises:
            ConfigError: an address that is in use or not ours.
        """
        try:
            if self.path is not None:
                remove_stale(self.path)
                sockets, text = [bind_unix(str(self.path), _BACKLOG)], self.text
            else:
                sockets = await bind_sockets(self.host.strip("[]"), self.port, _BACKLOG)
                text = f"{self.host}:{sockets[0].getsockname()[1]}"
        except OSError as error:
            raise ConfigError(f"cannot listen on {self.text}: {error.strerror or error}") from error
        return Listener(sockets, make_protocol, context, background, throttle), text

    async def connect(
        self,
        make_protocol: Callable[[], Protocol],
        context: ssl.SSLContext | None = None,
        server_name: str | None = None,
    ) -> tuple[asyncio.Transport, Protocol]:
        """Connect, with TLS if a context is given; the certificate must name `server_name`.

        Raises:
            OSError: nobody answers, or TLS fails.
        """
        loop = asyncio.get_running_loop()
        if self.path is not None:
            path = str(self.path)
            return await loop.create_unix_connection(make_protocol, path, ssl=context, server_hostname=server_name)
        return await loop.create_connection(
            make_protocol, self.host.strip("[]"), self.port, ssl=context, server_hostname=server_name
        )

    def remove(self) -> None:
        """Remove the file of a Unix socket that no longer has a listener."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()


def remove_stale(path: Path) -> None:
    """Remove the socket file of a process that has ended.

    Raises:
        ConfigError: somebody listens on it, or it is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"cannot listen on {UNIX}{path}: there is a file of that name, which is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError(f"cannot listen on {UNIX}{path}: {error.strerror or error}") from error
    raise ConfigError(f"cannot listen on {UNIX}{path}: another process does; choose another path")
