"""`hypergpu view`: show a run in the browser."""

import secrets
import signal
import time
import webbrowser
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from hypergpu.common.errors import InvalidInput
from hypergpu.common.http import HttpServer
from hypergpu.common.latest import LATEST, RUNS, find_run
from hypergpu.common.options import Open
from hypergpu.common.roles import Role
from hypergpu.common.token import TokenSource
from hypergpu.console import say
from hypergpu.coordinator.page import about_directory, page_address, page_routes
from hypergpu.coordinator.page.record_files import LINES, WHOLE

_LOOPBACK: Final = "127.0.0.1"
_LONG_SECONDS: Final = 3600.0


def view(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run directory; by default the newest.")] = RUNS
    / LATEST,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port on this machine; 0 takes a free one.")
    ] = 0,
    beside: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="Another run, such as a simulated one, to draw beside it in the charts."),
    ] = None,
    opens: Open = False,
) -> None:
    """Show a run in the browser until Ctrl-C: one that goes on, one that has ended, or a simulated one.

    Example: hypergpu view runs/first --open
    """
    found = _run_in(run_dir)
    other = None if beside is None else _run_in(beside)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    token = secrets.token_urlsafe(16)
    tokens = {Role.VIEWER: TokenSource([token])}
    server = HttpServer(
        f"{_LOOPBACK}:{port}", page_routes(found, tokens, partial(about_directory, found), beside=other)
    )
    try:
        address = page_address(server.address, token)
        say(address)
        if opens:
            webbrowser.open(address)
        while True:
            time.sleep(_LONG_SECONDS)
    except KeyboardInterrupt:
        pass
    finally:
        server.close()


def _run_in(path: Path) -> Path:
    found = find_run(path)
    if not found.is_dir():
        raise InvalidInput(f"{found} is not a directory; give the directory of a run, which holds events.jsonl")
    if not any((found / name).is_file() for name in (*LINES.values(), *WHOLE.values())):
        raise InvalidInput(f"{found} holds no run: there is no {', '.join(LINES.values())} or summary.json in it")
    return found
