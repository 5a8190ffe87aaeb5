"""One run in virtual time, with the real coordinator, a disk that forgets, and nodes on a bad network.

A seed decides everything: when processes die, at which step of the durable path, what a power failure leaves, which
messages are lost, late, doubled or cut off by a partition, and when the disk refuses to write.
"""

import asyncio
import itertools
import json
import os
import random
import shutil
import tempfile
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch
import yaml
from torch import nn

from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import HyperGPUError, StorageError
from hypergpu.common.tensors import Assembler, Payload
from hypergpu.coordinator.app import Coordinator, Options
from hypergpu.coordinator.checkpoints import read_tensors
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.session import AskProgress, Leave, OfferUpdate, Pull, Register, Return
from hypergpu.coordinator.failpoints import Failpoints, Fault, Point
from hypergpu.coordinator.run_records import RunEvent
from hypergpu.coordinator.uploads import Upload
from hypergpu.tasks import Task
from tests.crashes.forgetful import Died, ForgetfulStorage, Lines, without_fsync
from tests.crashes.history import MOMENTUM, History, faults_of, update_of
from tests.crashes.virtual_loop import Stuck, VirtualLoop
from tests.crashes.witness import Witness, ledger_faults

ROUNDS = 10
NODES = ("a", "b", "c")
MOST_SECONDS = 3000.0
IN_MEMORY = Path("/dev/shm")
RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    seed: int
    faults: list[str]
    crashes: int
    told: int
    settings: dict[str, Any]

    def __str__(self) -> str:
        found = "; ".join(self.faults) or "as the model says"
        return f"seed {self.seed}: {found} ({self.crashes} crashes, {self.told} rounds told, {self.settings})"


def toy_task() -> Task:
    """A task that takes no time: its updates are made up."""
    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    targets = (inputs[:, 0] > 0).long()
    return Task(model=lambda: nn.Linear(3, 2), train=(inputs[:30], targets[:30]), test=(inputs[30:], targets[30:]))


class World:
    """The run of a seed."""

    def __init__(self, seed: int, out: Path, loop: VirtualLoop, lines: Lines, given: Mapping[str, Any]) -> None:
        self.out, self.loop, self.lines = out, loop, lines
        self.draws = random.Random(f"world {seed}")
        self.history = History()
        self.witness = Witness()
        self.crashes = 0
        self.failure = ""
        self.coordinator: Coordinator | None = None
        self.storage = ForgetfulStorage(random.Random(f"disk {seed}"), out.with_name("trash"))
        draws = self.draws
        self.settings: dict[str, Any] = {
            "every": draws.choice(["2 %", "1 round", "3 rounds", "1000 seconds"]),
            "loss": draws.choice([0.0, 0.05, 0.2]),
            "doubled": draws.choice([0.0, 0.1]),
            "crashes": draws.randint(1, 6),
            "disk_errors": draws.random() < 0.25,
            "quorum": draws.choice([0.5, 1.0]),
            "mode": draws.choice(["sync", "deterministic", "late", "buffered"]),
            **given,
        }
        self._orders: dict[str, ev.WorkAssigned] = {}
        """Order that each node got last."""
        self._died = asyncio.Event()
        self._partitions = {node: self._draw_partitions() for node in NODES}
        loop.on_error = self._dies_of

    def _draw_partitions(self) -> list[tuple[float, float]]:
        begins = [self.draws.uniform(0.0, 30.0) for _ in range(self.draws.randint(0, 2))]
        return [(begin, begin + self.draws.uniform(0.2, 8.0)) for begin in begins]

    # ------------------------------------------------------------ the coordinator

    @property
    def momentum(self) -> float:
        """Momentum of the server: none where the model would have to know when it is applied."""
        return 0.0 if self.settings["mode"] == "buffered" else MOMENTUM

    @property
    def awaited(self) -> tuple[str, ...]:
        """Nodes that each round counts; empty = any."""
        return NODES if self.settings["mode"] == "deterministic" else ()

    @property
    def _merges_late(self) -> bool:
        return self.settings["mode"] in ("late", "buffered")

    def _config(self) -> SystemConfig:
        training: dict[str, Any] = {
            "rounds": ROUNDS,
            "local_steps": 2,
            "batch_size": 2,
            "server_momentum": self.momentum,
            "min_nodes": len(self.awaited) or 2,
            "quorum": self.settings["quorum"],
            "evaluate_every": 2,
        }
        if self.awaited:
            training |= {"deterministic": True, "quorum": 1.0}
        elif self._merges_late:
            training["mode"] = self.settings["mode"]
        server = {"listen": "127.0.0.1:0", "heartbeat_seconds": 0.5, "heartbeat_misses": 6, "linger_seconds": 0.0}
        checkpoint = {"every": self.settings["every"]}
        tree: dict[str, Any] = {"training": training, "server": server, "checkpoint": checkpoint}
        tree |= {"orchestrator": {"policy": "none"}}
        tree |= {"contribution": {"measured_share": 0}}  # its draws are secret, and a world can be repeated
        return SystemConfig.model_validate(tree)

    def _start(self) -> Coordinator:
        self.loop.epoch += 1
        options = Options(self.out, resume=True, storage=self.storage, clock=self.loop.time)
        coordinator = Coordinator(self._config(), toy_task(), options)
        feed, process = coordinator.engine.feed, self.loop.epoch
        publish = feed.publish

        def tell(event: RunEvent) -> None:
            is_unsafe = any(each.startswith("round_log") for each in coordinator.engine.problems)
            if event.kind == "round_closed" and is_unsafe:
                self.history.unsafe.add((process, event.round))
            if event.kind == "round_closed":
                self.history.told.append((process, event.round))
                self.history.seen.append((process, event.round))
            publish(event)

        feed.publish = tell  # type: ignore[method-assign]
        return coordinator

    def _dies_of(self, error: BaseException) -> bool:
        if isinstance(error, Died):
            self._died.set()
        return isinstance(error, Died)

    def _failpoints(self, *, last: bool) -> Failpoints | None:
        """Draw what this process dies of, if it does at a step of the durable path, and the errors of its disk."""
        draws, faults = self.draws, {}
        if self.settings["disk_errors"] and draws.random() < 0.5:
            point, first = draws.choice(list(Point)[:5] + list(Point)[7:12]), draws.randint(1, 6)
            action = draws.choice(["error", "short"])
            faults[point] = [Fault(action, draws.random(), first, first + draws.randint(0, 2))]
        if not last and draws.random() < 0.7:
            point, first = draws.choice(list(Point)), draws.randint(1, 8)
            is_write = point in (Point.LOG_STEP, Point.LOG_ROUND)
            action = draws.choice(["crash", "torn"]) if is_write else "crash"
            faults[point] = [Fault(action, draws.random(), first, first)]

        def die() -> None:
            self._died.set()
            raise Died

        return Failpoints(faults, die, lambda _: None) if faults else None

    async def supervise(self) -> None:
        """Start the coordinator whenever it has died, until the run is complete."""
        for process in itertools.count():
            last = process >= self.settings["crashes"]
            self._died.clear()
            self.storage.set_failpoints(self._failpoints(last=last))
            try:
                self.coordinator = coordinator = self._start()
                await self._or_died(self._begin(coordinator))
            except (Died, StorageError) as error:
                if isinstance(error, StorageError) and not self.settings["disk_errors"]:
                    raise
                await self._crash()
                continue
            limit = None if last else self.draws.uniform(0.5, 12.0)
            ended = asyncio.ensure_future(coordinator.engine.finished.wait())
            died = asyncio.ensure_future(self._died.wait())
            done, _ = await asyncio.wait((ended, died), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            for each in (ended, died):
                each.cancel()
            if ended in done and not self._died.is_set() and await self._has_closed(coordinator):
                self.failure = coordinator.engine.failure
                self.coordinator = None
                if self.settings["disk_errors"] and "is not on the disk" in self.failure:
                    continue  # it has ended with a code: it is started again
                return
            await self._crash()

    async def _has_closed(self, coordinator: Coordinator) -> bool:
        """Close a coordinator whose run is over; return False if it died meanwhile."""
        try:
            await self._or_died(coordinator.engine.close())
        except Died:
            return False
        return True

    @staticmethod
    async def _begin(coordinator: Coordinator) -> None:
        """Begin as `Coordinator.run` does."""
        if coordinator._complete:
            await coordinator._complete_results()
        await coordinator._begin()

    async def _or_died(self, doing: Coroutine[Any, Any, None]) -> None:
        """Wait for what a process does. It may die on a thread, for whose result it would wait for ever."""
        done, died = asyncio.ensure_future(doing), asyncio.ensure_future(self._died.wait())
        await asyncio.wait((done, died), return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        if not done.done():
            done.cancel()
            raise Died
        done.result()

    async def _crash(self) -> None:
        """End the process: what it had in memory is gone, and what was not on the disk may be."""
        self.crashes += 1
        coordinator, self.coordinator = self.coordinator, None
        self.loop.epoch += 1
        if coordinator is not None:
            engine = coordinator.engine
            engine._outbox._carry_out = lambda _: None  # the dead tell nothing
            if engine._timer is not None:
                engine._timer.cancel()
            engine._background.cancel()
            for file in coordinator.run_dir._files.values():
                file.close()
            coordinator.run_dir._files = {}
            coordinator.run_dir._lock.release()
            for waiter in engine._waiters.values():
                waiter.cancel()
        if self.draws.random() < 0.5:
            self.storage.power_fails()
            self.lines.power_fails(self.draws)
        else:
            self.storage.process_ends()
        await asyncio.sleep(self.draws.uniform(0.05, 3.0))

    # ------------------------------------------------------------ the nodes

    async def _travel(self, node: str) -> bool:
        """Let a message travel; return whether it arrives."""
        await asyncio.sleep(self.draws.uniform(0.001, 0.05) * (20 if self.draws.random() < 0.05 else 1))
        now = self.loop.time()
        if self.coordinator is not None:
            self.witness.see(self.coordinator.engine.ledger)
        cut = any(begin <= now < end for begin, end in self._partitions[node])
        return not cut and self.draws.random() >= self.settings["loss"]

    async def live(self, node: str) -> None:
        """Live as a node: join, train and push again and again, die now and then, until the run is over."""
        for incarnation in itertools.count(1):
            life = asyncio.ensure_future(self._life(node, str(incarnation)))
            lasts = self.draws.uniform(3.0, 60.0)
            done, _ = await asyncio.wait((life,), timeout=lasts)
            if done:
                life.result()
                return
            life.cancel()
            if self.draws.random() < 0.5:
                await self._leave(node)
            await asyncio.sleep(self.draws.uniform(0.1, 5.0))

    async def _leave(self, node: str) -> None:
        """End as on SIGTERM: give the work back, and leave."""
        coordinator, order = self.coordinator, self._orders.get(node)
        if coordinator is None or not await self._travel(node) or self.coordinator is not coordinator:
            return
        engine, why = coordinator.engine, ("shutting_down", "SIGTERM")
        with suppress(HyperGPUError):
            if order is not None:
                engine.ask(Return(node, engine.run_id, order.round, order.attempt, *why))
            engine.ask(Leave(node, engine.run_id, "SIGTERM"))

    async def _life(self, node: str, incarnation: str) -> None:
        while True:
            coordinator, process = self.coordinator, self.loop.epoch
            try:
                if coordinator is None or not await self._travel(node) or self.coordinator is not coordinator:
                    raise ConnectionError
                if await self._member(coordinator, process, node, incarnation):
                    return
            except (HyperGPUError, ConnectionError, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and self.coordinator is coordinator:
                    raise
                await asyncio.sleep(RETRY_SECONDS * self.draws.random())

    async def _member(self, coordinator: Coordinator, process: int, node: str, incarnation: str) -> bool:
        """Take part in the run of one process of the coordinator; return True if the run is over."""
        engine = coordinator.engine
        leases = engine.session.leases
        assert leases is not None
        lease = leases.secret(node, incarnation)
        engine.ask(Register(node, incarnation, 0, {}, engine.identity, lease=lease))
        while True:
            order = await engine.next_order(Pull(node, engine.run_id), 2.0)
            self._require(coordinator)
            if isinstance(order, ev.RunOver):
                return True
            engine.session.seen(node, engine.now)
            if order is None:
                continue
            self.history.seen.append((process, order.round - 1))
            due = self._due(coordinator, order) if self._merges_late else 0
            if not await self._travel(node):
                continue
            self._require(coordinator)
            self._orders[node] = order
            self.history.orders.append((process, node, order.round, order.accepted_round, due))
            await asyncio.sleep(self.draws.uniform(0.02, 0.6))
            await self._push(coordinator, process, order)

    def _require(self, coordinator: Coordinator) -> None:
        if self.coordinator is not coordinator:
            raise ConnectionError

    async def _push(self, coordinator: Coordinator, process: int, order: ev.WorkAssigned) -> None:
        """Send an update until it is answered; a message may arrive twice, and an answer may be lost."""
        engine, node = coordinator.engine, order.node
        values = update_of(node, order.round, len(engine.model.values))
        event = ev.UpdateArrived(node, order.round, order.attempt, 4, loss=0.5, compute_seconds=0.1, norm=1.0)
        due = order.round
        for _ in range(20):
            self._require(coordinator)
            if await self._travel(node):
                copies = 2 if self.draws.random() < self.settings["doubled"] else 1
                for _ in range(copies):
                    self._require(coordinator)
                    reply = engine.ask(OfferUpdate(engine.run_id, event))
                    reply = reply or engine.accept_update(event, _upload(values))
                    due = self._due(coordinator, order)
                if await self._travel(node):
                    self._require(coordinator)
                    assert reply is not None
                    if reply.status in (ev.UpdateStatus.ACCEPTED, ev.UpdateStatus.DUPLICATE):
                        self.history.accepted.append((process, node, order.round, due))
                    return
            await asyncio.sleep(RETRY_SECONDS * self.draws.random())
            self._require(coordinator)
            is_done, due = engine.ask(AskProgress(node, engine.run_id, order.round)), self._due(coordinator, order)
            if is_done and await self._travel(node):
                self.history.accepted.append((process, node, order.round, due))
                return

    def _due(self, coordinator: Coordinator, order: ev.WorkAssigned) -> int:
        """Return the last round that may count an update which is acknowledged now."""
        return coordinator.engine.machine.round_state.merging_round if self._merges_late else order.round

    async def watch(self) -> None:
        """Ask for the status now and then, as people do."""
        while True:
            await asyncio.sleep(self.draws.uniform(0.1, 1.0))
            coordinator, process = self.coordinator, self.loop.epoch
            if coordinator is not None:
                await coordinator.engine.told()
                if self.coordinator is coordinator:
                    self.history.seen.append((process, coordinator.engine.machine.round - 1))


def _upload(values: Any) -> Upload:
    payload: Payload = np.array(values, np.float32).view(np.uint8)
    return Upload("", (1, 1), Assembler(payload), payload)


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing meanwhile."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop])
    try:
        yield
    finally:
        structlog.configure(**before)


async def _run(world: World) -> None:
    living = [asyncio.ensure_future(world.live(node)) for node in NODES]
    watching = asyncio.ensure_future(world.watch())
    try:
        await asyncio.wait_for(world.supervise(), MOST_SECONDS)
    finally:
        for task in (*living, watching):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*living, watching, return_exceptions=True)


def run(seed: int, **given: Any) -> Outcome:
    """Carry out the run of a seed, and hold it against the model; settings that are `given` are not drawn."""
    directory = Path(tempfile.mkdtemp(dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None))
    loop = VirtualLoop(seed)
    try:
        with pytest.MonkeyPatch.context() as patch, quiet():
            without_fsync(patch.setattr)
            patch.setattr(yaml, "safe_dump", lambda *_, **__: "")  # the configuration, which nothing here reads
            torch.set_num_threads(1)
            asyncio.set_event_loop(loop)
            out = directory / "run"
            out.mkdir()
            world = World(seed, out, loop, Lines(out, patch), given)
            initial = Coordinator(world._config(), toy_task(), Options(directory / "initial"))
            values = initial.engine.model.values.copy()
            initial.run_dir.close()
            faults: list[str] = []
            try:
                loop.run_until_complete(_run(world))
            except (TimeoutError, Stuck):
                faults.append(f"the run did not end: it is at {len(world.history.told)} rounds told")
            except HyperGPUError as error:
                faults.append(f"the run could not go on: {error}")
            else:
                rows = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
                final = values if world.failure else _values_of(out, initial)
                faults = [world.failure] if world.failure else []
                faults += faults_of(
                    world.history, rows, ROUNDS, values, final, momentum=world.momentum, everyone=world.awaited
                )
                faults += world.witness.faults + ledger_faults(out, ROUNDS)
        return Outcome(seed, faults, world.crashes, len(world.history.told), world.settings)
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        shutil.rmtree(directory)


def _values_of(out: Path, coordinator: Coordinator) -> Any:
    tensors, _ = read_tensors(out / "model.safetensors")
    saved = coordinator.engine._dependencies.files._saved
    return saved.values(tensors, {})
