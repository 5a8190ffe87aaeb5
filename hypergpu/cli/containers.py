"""Commands for the cluster in containers; each is one `docker compose` call."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.common.errors import HyperGPUError, InvalidInput
from hypergpu.common.options import FLAG, AsJson
from hypergpu.console import say

Nodes = Annotated[int, typer.Option("--nodes", "-n", metavar="N", min=0, max=10_000, help="Number of node containers.")]


def up(nodes: Nodes = 5, as_json: AsJson = False) -> None:
    """Build and start coordinator, proxy, nodes, Prometheus and Grafana in containers.

    Example: hypergpu up --nodes 8
    """
    _docker(["deploy/up", str(nodes)], quiet=as_json)
    _report(as_json)


def scale(
    nodes: Annotated[int, typer.Argument(metavar="N", min=0, max=10_000, help="New number of node containers.")],
    as_json: AsJson = False,
) -> None:
    """Change the number of node containers during training, and print the status of the run.

    Example: hypergpu scale 8
    """
    _docker(["deploy/scale", str(nodes)], quiet=as_json)
    _report(as_json)


def down(
    volumes: Annotated[bool, typer.Option("--volumes", metavar=FLAG, help="Delete the recorded runs too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop the containers; the recorded runs are kept in their volume.

    Example: hypergpu down
    """
    drop = ["--volumes"] if volumes else []
    _docker(["docker", "compose", "--profile", "monitoring", "down", *drop], quiet=as_json)
    if as_json:
        say("[]")


def _docker(command: list[str], *, quiet: bool) -> None:
    if not Path("docker-compose.yml").exists():
        raise InvalidInput("no docker-compose.yml in this directory: run this in the HyperGPU repository")
    if not shutil.which("docker"):
        raise InvalidInput("docker is not installed; `hypergpu demo` runs without it")
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL if quiet else None)
    if done.returncode:
        raise HyperGPUError(f"`{' '.join(command)}` failed with exit code {done.returncode}; its message is above")


def _report(as_json: bool) -> None:
    if not as_json:
        say("next: `hypergpu status --watch`, `hypergpu scale N`, `hypergpu down`")
        return
    listing = ["docker", "compose", "ps", "--format", "json"]
    done = subprocess.run(listing, check=True, capture_output=True, text=True)
    containers = [json.loads(line) for line in done.stdout.splitlines()]
    say(json.dumps([{key.lower(): item[key] for key in ("Name", "Service", "State", "Health")} for item in containers]))
