"""Commands for the cluster in containers; each is one `docker compose` call that could be typed as well."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.cli.running import AsJson
from hypergpu.common.errors import HyperGPUError, InvalidInput
from hypergpu.show import say

Nodes = Annotated[int, typer.Option("--nodes", "-n", min=0, max=10_000, help="How many node containers.")]


def up(nodes: Nodes = 5, as_json: AsJson = False) -> None:
    """Build and start coordinator, proxy, nodes, Prometheus and Grafana in containers.

    Example: hypergpu up --nodes 8
    """
    _docker(["deploy/up", str(nodes)], quiet=as_json)
    _report(as_json)


def scale(
    nodes: Annotated[int, typer.Argument(metavar="N", min=0, max=10_000, help="How many node containers from now on.")],
    as_json: AsJson = False,
) -> None:
    """Change the number of node containers while the cluster trains, and say how the run stands.

    Example: hypergpu scale 8
    """
    _docker(["deploy/scale", str(nodes)], quiet=as_json)
    _report(as_json)


def down(
    volumes: Annotated[bool, typer.Option("--volumes", help="Drop the recorded runs too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop the containers; recorded runs stay in their volume.

    Example: hypergpu down
    """
    drop = ["--volumes"] if volumes else []
    _docker(["docker", "compose", "--profile", "monitoring", "down", *drop], quiet=as_json)
    if as_json:
        say("[]")


def _docker(command: list[str], *, quiet: bool) -> None:
    if not Path("docker-compose.yml").exists():
        raise InvalidInput("there is no docker-compose.yml here: run this in the HyperGPU repository")
    if not shutil.which("docker"):
        raise InvalidInput("docker is not installed; `hypergpu demo` needs none")
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL if quiet else None)
    if done.returncode:
        raise HyperGPUError(f"`{' '.join(command)}` failed with exit code {done.returncode}; its message is above")


def _report(as_json: bool) -> None:
    if not as_json:
        say("look with `hypergpu status --watch`; change with `hypergpu scale N`; end with `hypergpu down`")
        return
    listing = ["docker", "compose", "ps", "--format", "json"]
    done = subprocess.run(listing, check=True, capture_output=True, text=True)
    containers = [json.loads(line) for line in done.stdout.splitlines()]
    say(json.dumps([{key.lower(): item[key] for key in ("Name", "Service", "State", "Health")} for item in containers]))
