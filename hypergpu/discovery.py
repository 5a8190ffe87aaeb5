"""Discovery of a cluster: at given addresses, on this machine, or in the Compose project of this directory."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from hypergpu.common import strict_json
from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.common.private_files import create_private

log = structlog.get_logger()
HOW_TO_START = "start one with `hypergpu demo` or `hypergpu up`"
COMPOSE_FILES = ("docker-compose.yml", "compose.yaml")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Addresses and tokens of a running cluster."""

    coordinator: str
    """HOST:PORT; empty for a proxy that runs alone."""
    proxy: str = ""
    """HOST:PORT of the proxy's control API; empty if there is no proxy."""
    token: str = ""
    """Token for the coordinator's control service: an operator's, or a viewer's."""
    run_dir: str = ""
    pid: int = 0
    """Process that runs a local cluster."""
    proxy_token: str | None = None
    """Token of the proxy; None: that of the coordinator."""
    in_compose: bool = False
    """True if the cluster runs in the Compose project of this directory."""

    @property
    def name(self) -> str:
        """Name of the run directory, or else the address."""
        return Path(self.run_dir).name or self.coordinator or self.proxy

    @property
    def token_of_proxy(self) -> str:
        """Token that the proxy expects."""
        return self.token if self.proxy_token is None else self.proxy_token


def state_dir() -> Path:
    """Return the directory in which local clusters publish their addresses.

    Raises:
        RuntimeError: the user has no home directory.
    """
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "hypergpu" / "clusters"


def announce(cluster: Cluster) -> Callable[[], None]:
    """Publish a local cluster in a file that only its user can read; return a function that withdraws it.

    If the file cannot be written, a warning tells the user which options other terminals need.
    """
    try:
        directory = state_dir()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = directory / f"{cluster.pid}.json"
        file.unlink(missing_ok=True)
        create_private(file, json.dumps(asdict(cluster)).encode())
    except (OSError, RuntimeError) as error:
        log.warning(
            "other terminals cannot find this cluster",
            reason=str(error),
            fix=f"give them --coordinator {cluster.coordinator} --proxy {cluster.proxy}, or set XDG_STATE_HOME",
        )
        return lambda: None

    def withdraw() -> None:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)

    return withdraw


def find(coordinator: str = "", proxy: str = "", token: str = "", run: str = "", *, changes: bool = False) -> Cluster:
    """Return the cluster at the given addresses, else a local one, else that of the Compose project here.

    The token of a local cluster is used for that cluster only.

    Args:
        coordinator: HOST:PORT, or empty.
        proxy: HOST:PORT of the control API, or empty.
        token: given by the user.
        run: name, directory or process of a local cluster; empty: the newest.
        changes: whether the caller changes the cluster: then several local ones are an error.

    Raises:
        InvalidInput: no cluster was found, or several and the caller changes one.
    """
    local = local_clusters()
    if coordinator or proxy:
        return _at(coordinator, proxy, token, local)
    found = _chosen(local, run, changes=changes) or _compose_project()
    if found is None:
        raise InvalidInput(f"no cluster is running here: {HOW_TO_START}, or give --coordinator HOST:PORT")
    return replace(found, token=token or found.token)


def local_clusters() -> list[Cluster]:
    """Return this user's clusters on this machine, the newest first."""
    found = []
    try:
        files = sorted(state_dir().glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    except (OSError, RuntimeError):
        return []
    for file in files:
        try:
            if file.stat().st_uid != os.getuid():
                continue  # another user could redirect the token of this one
            cluster = Cluster(**strict_json.read_object(file))
            os.kill(cluster.pid, 0)
        except (ConfigError, OSError, TypeError, OverflowError):
            continue  # left over from a process that was killed, or of another user
        found.append(cluster)
    return found


def _at(coordinator: str, proxy: str, token: str, local: list[Cluster]) -> Cluster:
    of_coordinator = next((each for each in local if coordinator and each.coordinator == coordinator), None)
    if of_coordinator is not None and not proxy:
        proxy = of_coordinator.proxy
    of_proxy = next((each for each in local if proxy and each.proxy == proxy), None)
    return Cluster(
        coordinator,
        proxy,
        token or (of_coordinator.token if of_coordinator else ""),
        of_coordinator.run_dir if of_coordinator else "",
        proxy_token=token or (of_proxy.token_of_proxy if of_proxy else ""),
    )


def _chosen(local: list[Cluster], run: str, *, changes: bool) -> Cluster | None:
    names = ", ".join(f"{each.name} (process {each.pid})" for each in local)
    if run:
        wanted = [each for each in local if run in {each.name, each.run_dir, str(each.pid)}]
        if len(wanted) == 1:
            return wanted[0]
        problem = "several runs are" if wanted else "no run is"
        raise InvalidInput(f"{problem} called {run!r} here; running: {names or 'none'}")
    if changes and len(local) > 1:
        raise InvalidInput(f"{len(local)} clusters are running here: choose one with --run NAME, one of {names}")
    return local[0] if local else None


def _compose_project() -> Cluster | None:
    if not shutil.which("docker") or not any(Path(name).exists() for name in COMPOSE_FILES):
        return None
    coordinator = _compose("port", "coordinator", "50051")
    if not coordinator:
        return None
    proxy = _compose("port", "netsim", "50053")
    token = _compose("exec", "-T", "coordinator", "cat", "/run/operator/operator-token")
    return Cluster(coordinator, proxy, token, in_compose=True)


def _compose(*arguments: str) -> str:
    done = subprocess.run(["docker", "compose", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
