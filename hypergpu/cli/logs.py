"""`hypergpu logs`: the events of the run, or the output of one process of the cluster."""

import asyncio
import json
import os
import re
from collections import deque
from pathlib import Path
from typing import Annotated, TextIO

import typer

from hypergpu.cli.cluster_command import client_of
from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.options import FLAG, AsJson
from hypergpu.common.text import duration
from hypergpu.console import say
from hypergpu.discovery import Cluster
from hypergpu.protos import coordinator_pb2 as pb

_POLL_SECONDS = 0.2
_MAX_LINE_CHARACTERS = 64 * 1024
"""Length at which lines are split: a process may print without line breaks."""
_REPLICA = re.compile(r"(?P<service>[A-Za-z0-9_]+)-(?P<number>\d+)")
_SERVICE = re.compile(r"[A-Za-z0-9_]+")


async def logs(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A local process whose output to print: a node, coordinator or netsim."),
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", metavar=FLAG, help="Continue until the run ends.")] = False,
    last: Annotated[
        int, typer.Option("--last", "-n", metavar="N", min=0, max=LARGEST_COUNT, help="Number of past events or lines.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """Print the run's events: rounds, decisions, membership. With a NAME, print the output of that process.

    Example: hypergpu logs node_2 --follow
    """
    client = client_of(context)
    if name:
        await _show_process(client.cluster, name, last, follow=follow, as_json=as_json)
        return
    idle = None if follow else 1.0
    request = pb.WatchEventsRequest(replay=last)
    async for event in client.stream(client.control.WatchEvents, request, idle_seconds=idle):
        say(event.json if as_json else f"{duration(event.seconds):>11}  round {event.round:<4} {event.text}")


async def _show_process(cluster: Cluster, name: str, last: int, *, follow: bool, as_json: bool) -> None:
    if cluster.run_dir:
        file = _log_file(Path(cluster.run_dir) / "logs", name)
        await _show_file(file, cluster.pid, last, follow=follow, as_json=as_json)
    elif cluster.in_compose:
        await _show_container(name, last, follow=follow, as_json=as_json)
    else:
        raise InvalidInput(f"the log of {name} is on the machine that runs it; the coordinator does not have it")


def _log_file(directory: Path, name: str) -> Path:
    """Return the log of a process.

    Raises:
        UnknownName: no process has that name.
    """
    files = {"netsim" if file.stem == "netsim_proxy" else file.stem: file for file in directory.glob("*.log")}
    if name == "netsim_proxy":
        name = "netsim"
    if name not in files:
        raise UnknownName("process", name, files)
    return files[name]


async def _show_file(file: Path, pid: int, last: int, *, follow: bool, as_json: bool) -> None:
    """Print the last lines of a file; with `follow`, also those that are added while process `pid` runs."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        for line in deque(_lines(opened), maxlen=last):
            _show(line, as_json)
        while follow:
            ended = not _is_alive(pid)  # before reading, so that the last lines are not missed
            for line in _lines(opened):
                _show(line, as_json)
            if ended:
                return
            await asyncio.sleep(_POLL_SECONDS)


def _lines(opened: TextIO) -> list[str]:
    """Return the complete lines from here on; a line that is still being written is left for the next call."""
    lines: list[str] = []
    while True:
        start = opened.tell()
        line = opened.readline(_MAX_LINE_CHARACTERS)
        if not line.endswith("\n") and len(line) < _MAX_LINE_CHARACTERS:
            opened.seek(start)
            return lines
        lines.append(line)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


async def _show_container(name: str, last: int, *, follow: bool, as_json: bool) -> None:
    replica = _REPLICA.fullmatch(name)
    if not replica and not _SERVICE.fullmatch(name):
        raise InvalidInput(f"{name} is not a container; `docker compose ps` lists them")
    service = [f"--index={replica['number']}", replica["service"]] if replica else [name]
    options = ["--no-log-prefix", f"--tail={last}", *(["--follow"] if follow else [])]
    process = await asyncio.create_subprocess_exec(
        *("docker", "compose", "logs", *options, *service), stdout=asyncio.subprocess.PIPE, limit=1 << 20
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            _show(line.decode("utf-8", "replace"), as_json)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code:
        raise InvalidInput(f"no container {name} here has a log; `docker compose ps` lists them")


def _show(line: str, as_json: bool) -> None:
    text = line.rstrip("\n")
    say(json.dumps({"line": text}) if as_json else text)
