"""Where the cluster is: as told, or the local one that runs here, or the one in containers."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from hypergpu.common.errors import InvalidInput

log = structlog.get_logger()
HOW_TO_START = "start one with `hypergpu demo` or `hypergpu up`"
COMPOSE_FILES = ("docker-compose.yml", "compose.yaml")


@dataclass(frozen=True, slots=True)
class Cluster:
    """The addresses of a running cluster, and what opens them."""

    coordinator: str
    """HOST:PORT; empty for a netsim proxy that runs alone."""
    proxy: str = ""
    """HOST:PORT of the netsim proxy's control service; empty where there is none."""
    token: str = ""
    """For the coordinator."""
    run_dir: str = ""
    pid: int = 0
    """The process that runs a local cluster."""
    proxy_token: str | None = None
    """For the proxy; None: the same."""
    in_compose: bool = False
    """Whether it runs in containers of the Compose project here."""

    @property
    def name(self) -> str:
        """What users call it: the name of its run directory, or its address."""
        return Path(self.run_dir).name or self.coordinator or self.proxy

    @property
    def token_of_proxy(self) -> str:
        """What the proxy is shown."""
        return self.token if self.proxy_token is None else self.proxy_token


def state_dir() -> Path:
    """Return where local clusters leave their addresses, for the commands of other terminals.

    Raises:
        RuntimeError: there is no home directory.
    """
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "hypergpu" / "clusters"


def announce(cluster: Cluster) -> Callable[[], None]:
    """Write down a local cluster, readable by its user alone: it holds the join token. Call what it returns at the end.

    Where that cannot be, the cluster runs all the same, and other terminals are told its addresses instead.
    """
    try:
        directory = state_dir()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = directory / f"{cluster.pid}.json"
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
            json.dump(asdict(cluster), opened)
    except (OSError, RuntimeError) as error:
        log.warning(
            "other terminals cannot find this cluster by themselves",
            reason=str(error),
            fix=f"say --coordinator {cluster.coordinator} --proxy {cluster.proxy}, or set XDG_STATE_HOME",
        )
        return lambda: None

    def withdraw() -> None:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)

    return withdraw


def find(coordinator: str = "", proxy: str = "", token: str = "", run: str = "", *, changes: bool = False) -> Cluster:
    """Return the cluster at the given addresses; else the local one; else the one of the Compose project here.

    A token that the user did not give goes to the cluster that it belongs to and to nobody else.

    Args:
        coordinator, proxy: HOST:PORT; a proxy alone is one that runs without a coordinator.
        token: given by the user.
        run: name, directory or process of a local cluster; empty: the newest.
        changes: whether the cluster is to be changed: then several are not guessed among.

    Raises:
        InvalidInput: there is none, or more than one to change; the message says what to do.
    """
    local = local_clusters()
    if coordinator or proxy:
        return _at(coordinator, proxy, token, local)
    found = _chosen(local, run, changes=changes) or _compose_project()
    if found is None:
        raise InvalidInput(f"no cluster is running here: {HOW_TO_START}, or say --coordinator HOST:PORT")
    return replace(found, token=token or found.token)


def local_clusters() -> list[Cluster]:
    """Return the clusters that run on this machine as this user, the newest first."""
    found = []
    try:
        files = sorted(state_dir().glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    except (OSError, RuntimeError):
        return []
    for file in files:
        try:
            if file.stat().st_uid != os.getuid():
                continue  # it could send the token of this user elsewhere
            cluster = Cluster(**json.loads(file.read_text(encoding="utf-8")))
            os.kill(cluster.pid, 0)
        except (OSError, ValueError, TypeError, RecursionError, OverflowError):
            continue  # it ended without the chance to clean up, or is another user's
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
        raise InvalidInput(f"{len(local)} clusters run here: say --run NAME, where NAME is one of {names}")
    return local[0] if local else None


def _compose_project() -> Cluster | None:
    if not shutil.which("docker") or not any(Path(name).exists() for name in COMPOSE_FILES):
        return None
    coordinator = _compose("port", "coordinator", "50051")
    if not coordinator:
        return None
    proxy = _compose("port", "netsim", "50053")
    token = _compose("exec", "-T", "coordinator", "cat", "/run/hypergpu/join-token")
    return Cluster(coordinator, proxy, token, in_compose=True)


def _compose(*arguments: str) -> str:
    done = subprocess.run(["docker", "compose", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
