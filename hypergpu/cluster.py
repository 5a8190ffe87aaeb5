"""Where the cluster is: as told, or the local one that runs here, or the one in containers."""

import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import InvalidInput

HOW_TO_START = "start one with `hypergpu demo` or `hypergpu up`"
COMPOSE_FILES = ("docker-compose.yml", "compose.yaml")


@dataclass(frozen=True, slots=True)
class Cluster:
    """The addresses of a running cluster, and what opens them."""

    coordinator: str
    proxy: str = ""
    """HOST:PORT of the netsim proxy's control service; empty where there is none."""
    token: str = ""
    run_dir: str = ""
    pid: int = 0
    """The process that runs a local cluster."""


def state_dir() -> Path:
    """Where local clusters leave their addresses, for the commands of other terminals."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "hypergpu" / "clusters"


def announce(cluster: Cluster) -> Path:
    """Write down a local cluster, readable by its user alone (it holds the join token); the caller removes the file."""
    directory = state_dir()
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{cluster.pid}.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(asdict(cluster)), encoding="utf-8")
    return file


def find(coordinator: str = "", proxy: str = "", token: str = "") -> Cluster:
    """The cluster at the given addresses; else the newest local one; else the one of the Compose project here.

    Raises:
        InvalidInput: there is none; the message says how to start one.
    """
    if coordinator:
        return Cluster(coordinator, proxy, token)
    found = _newest_local() or _compose_project()
    if found is None:
        raise InvalidInput(f"no cluster is running here: {HOW_TO_START}, or say --coordinator HOST:PORT")
    return Cluster(found.coordinator, proxy or found.proxy, token or found.token, found.run_dir, found.pid)


def _newest_local() -> Cluster | None:
    files = sorted(state_dir().glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        try:
            cluster = Cluster(**json.loads(file.read_text(encoding="utf-8")))
            os.kill(cluster.pid, 0)
        except (OSError, ValueError, TypeError):
            continue  # it ended without the chance to clean up, or is another user's
        return cluster
    return None


def _compose_project() -> Cluster | None:
    if not shutil.which("docker") or not any(Path(name).exists() for name in COMPOSE_FILES):
        return None
    coordinator = _compose("port", "coordinator", "50051")
    if not coordinator:
        return None
    proxy = _compose("port", "netsim", "50053")
    return Cluster(coordinator, proxy, _compose("exec", "-T", "coordinator", "cat", "/run/hypergpu/join-token"))


def _compose(*arguments: str) -> str:
    done = subprocess.run(["docker", "compose", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
