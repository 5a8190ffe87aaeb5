"""Cluster of processes on this machine: a coordinator, a netsim proxy, and nodes."""

import asyncio
import os
import secrets
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from hypergpu.client import Client, connect
from hypergpu.common.extras import require_extra
from hypergpu.coordinator.run_dir import archive_previous_run
from hypergpu.coordinator.run_lock import RunLock
from hypergpu.discovery import Cluster, announce
from hypergpu.processes import Process

_NODE_GRACE_SECONDS = 1.0
"""Time for a node to finish its work when it is told to end."""


@dataclass(frozen=True, slots=True)
class LocalNode:
    """Node to start, with its simulated GPU and link."""

    node_id: str
    profile: str
    gpu: str
    region: str = ""
    """Region whose distance to the coordinator adds latency; empty: none."""


class LocalCluster:
    """Local cluster, running within an `async with` block; on exit, nodes end first, so that they deregister.

    Each process listens on a free port of the loopback interface. Logs go to `run_dir`/logs.
    """

    client: Client

    def __init__(
        self,
        run_dir: Path,
        nodes: Sequence[LocalNode],
        *,
        seed: int = 0,
        settings: Mapping[str, object] | None = None,
        scenario: Path | None = None,
    ) -> None:
        """Describe the cluster; nothing starts before the block is entered.

        Args:
            run_dir: run directory.
            nodes: nodes to start.
            seed: seed of the network.
            settings: settings of the coordinator, by dotted key.
            scenario: file of links and events for the proxy, instead of the nodes' profiles.
        """
        self.run_dir, self.nodes = run_dir, nodes
        self._seed = seed
        self._settings, self._scenario = settings or {}, scenario
        self._token = secrets.token_urlsafe(24)
        self._stack = AsyncExitStack()
        self.processes: dict[str, Process] = {}
        self.owns_run_dir = False
        """Whether the coordinator has taken `run_dir`; before that, its files may belong to another run."""

    async def __aenter__(self) -> "LocalCluster":
        async with AsyncExitStack() as stack:  # if one process fails to start, ends the others
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        require_extra("torch")  # else the processes would fail, with the reason in their logs
        with RunLock(self.run_dir):  # the coordinator takes it next
            archive_previous_run(self.run_dir, "logs")
        logs = self.run_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        environment = {
            "HYPERGPU_TOKEN": self._token,
            "OMP_NUM_THREADS": "1",  # processes share the machine's cores
            "PYTHONUNBUFFERED": "1",
        }

        async def start(name: str, *arguments: str, when_orphaned: signal.Signals = signal.SIGTERM) -> Process:
            process = await Process.start(name, arguments, environment, logs, when_orphaned=when_orphaned)
            self.processes[name] = process
            return process

        settings = [f"--set={key}={value}" for key, value in self._settings.items()]
        listen = ("--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--insecure")
        coordinator = await start("coordinator", "coordinator", *listen, f"--out={self.run_dir}", *settings)
        stack.push_async_callback(coordinator.end)
        upstream = (await coordinator.addresses())["listening"]
        self.owns_run_dir = True

        links = [
            f"--node-profile={node.node_id}={node.profile}" + (f"@{node.region}" if node.region else "")
            for node in self.nodes
        ]
        if self._scenario is not None:
            links = [f"--scenario={self._scenario}"]
        local = ("--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0")
        network = (f"--upstream={upstream}", f"--seed={self._seed}", *links)
        proxy = await start("netsim_proxy", "proxy", *local, "--drain-seconds=1", *network)
        stack.push_async_callback(proxy.end)
        ports = await proxy.addresses()

        # A node loads only the code of tasks that it is given.
        task = [f"--task={self._settings['training.task']}"] if "training.task" in self._settings else []
        stack.push_async_callback(self._end_nodes)
        for node in self.nodes:
            await start(
                node.node_id,
                "node",
                f"--node-id={node.node_id}",
                f"--coordinator={ports['listening']}",
                f"--gpu={node.gpu}",
                f"--set=node.region={node.region}",
                f"--set=node.grace_seconds={_NODE_GRACE_SECONDS}",
                "--insecure",
                *task,
                when_orphaned=signal.SIGKILL,  # a node has no files to write
            )

        # After the forks above: gRPC's threads do not survive them.
        cluster = Cluster(upstream, ports["control"], self._token, str(self.run_dir.resolve()), os.getpid())
        self.client = await stack.enter_async_context(connect(cluster))
        stack.callback(announce(cluster))

    async def _end_nodes(self) -> None:
        running = [self.processes[node.node_id] for node in self.nodes if node.node_id in self.processes]
        await asyncio.gather(*(process.end(_NODE_GRACE_SECONDS + 1) for process in running))
