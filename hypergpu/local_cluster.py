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
from hypergpu.common.token import JOIN, OPERATOR, VIEWER, token_file
from hypergpu.coordinator.operator_token import OPERATOR_TOKEN
from hypergpu.coordinator.page import page_address
from hypergpu.coordinator.run_dir import archive_previous_run
from hypergpu.coordinator.run_lock import RunLock
from hypergpu.discovery import Cluster, announce
from hypergpu.processes import Process

_NODE_GRACE_SECONDS = 1.0
"""Time for a node to finish its work after SIGTERM."""
_LISTEN = ("--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0")


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
    page: str
    """Address of the live page, with a token that reads only."""

    def __init__(
        self,
        run_dir: Path,
        nodes: Sequence[LocalNode],
        *,
        seed: int = 0,
        settings: Mapping[str, object] | None = None,
        scenario: Path | None = None,
        import_from: Path | None = None,
    ) -> None:
        """Describe the cluster; nothing starts before the block is entered.

        Args:
            run_dir: run directory.
            nodes: nodes to start.
            seed: seed of the network.
            settings: settings of the coordinator, and of the nodes those that begin with `node.`, by dotted key.
            scenario: file of links and events for the proxy, instead of the nodes' profiles.
            import_from: directory in which the processes look for modules too, beside the current one.
        """
        self.run_dir, self.nodes = run_dir, nodes
        self._settings = settings or {}
        links = [
            f"--node-profile={node.node_id}={node.profile}" + (f"@{node.region}" if node.region else "")
            for node in nodes
        ]
        self._network = (f"--seed={seed}", *(links if scenario is None else [f"--scenario={scenario}"]))
        self._import_from = import_from
        self._token = secrets.token_urlsafe(24)
        self._operator_token = ""
        self._stack = AsyncExitStack()
        self.processes: dict[str, Process] = {}
        self.owns_run_dir = False
        """True if the coordinator has taken `run_dir`; before that, its files may belong to another run."""

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
        viewer_token = secrets.token_urlsafe(24)
        coordinator = await self._start_coordinator(viewer_token)
        stack.push_async_callback(coordinator.end)
        addresses = await coordinator.addresses()
        upstream = addresses["listening"]
        self.owns_run_dir = True
        self.page = page_address(addresses["metrics"], viewer_token)
        self._operator_token = token_file(self.run_dir / OPERATOR_TOKEN, "the operator token").first
        proxy = await self._start_proxy(upstream)
        stack.push_async_callback(proxy.end)
        ports = await proxy.addresses()
        stack.push_async_callback(self._end_nodes)
        await self._start_nodes(ports["listening"])
        # After the forks above: gRPC's threads do not survive them.
        cluster = Cluster(upstream, ports["control"], self._operator_token, str(self.run_dir.resolve()), os.getpid())
        self.client = await stack.enter_async_context(connect(cluster))
        stack.callback(announce(cluster))

    async def _start_process(
        self, name: str, *arguments: str, tokens: Mapping[str, str], orphaned: signal.Signals = signal.SIGTERM
    ) -> Process:
        logs = self.run_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        environment = {
            **tokens,
            "OMP_NUM_THREADS": "1",  # processes share the machine's cores
            "PYTHONUNBUFFERED": "1",
        }
        if self._import_from is not None:
            paths = (str(self._import_from), os.environ.get("PYTHONPATH"))
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        process = await Process.start(name, arguments, environment, logs, when_orphaned=orphaned)
        self.processes[name] = process
        return process

    async def _start_coordinator(self, viewer_token: str) -> Process:
        settings = [f"--set={key}={value}" for key, value in self._settings.items()]
        options = (*_LISTEN, "--insecure", f"--out={self.run_dir}", *settings)
        tokens = {**self._join, VIEWER.variable: viewer_token}
        return await self._start_process("coordinator", "coordinator", *options, tokens=tokens)

    async def _start_proxy(self, upstream: str) -> Process:
        tokens = {OPERATOR.variable: self._operator_token}
        options = (*_LISTEN, "--drain-seconds=1", f"--upstream={upstream}", *self._network)
        return await self._start_process("netsim_proxy", "proxy", *options, tokens=tokens)

    async def _start_nodes(self, address: str) -> None:
        # A node loads only the code of tasks that it is given.
        task = [f"--task={self._settings['training.task']}"] if "training.task" in self._settings else []
        settings = [f"--set={key}={value}" for key, value in self._settings.items() if key.startswith("node.")]
        for node in self.nodes:
            await self._start_process(
                node.node_id,
                "node",
                f"--node-id={node.node_id}",
                f"--coordinator={address}",
                f"--gpu={node.gpu}",
                f"--set=node.region={node.region}",
                f"--set=node.grace_seconds={_NODE_GRACE_SECONDS}",
                f"--set=node.state_dir={self.run_dir / 'leases'}",
                "--insecure",
                *settings,
                *task,
                tokens=self._join,
                orphaned=signal.SIGKILL,  # a node has no files to write
            )

    @property
    def _join(self) -> dict[str, str]:
        return {JOIN.variable: self._token}

    async def _end_nodes(self) -> None:
        running = [self.processes[node.node_id] for node in self.nodes if node.node_id in self.processes]
        await asyncio.gather(*(process.end(_NODE_GRACE_SECONDS + 1) for process in running))
