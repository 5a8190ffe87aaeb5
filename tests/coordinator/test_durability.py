"""A coordinator that dies: nothing that it told is undone. A copy of the run's directory is what it would leave."""

import asyncio
import errno
import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import CannotResume
from hypergpu.coordinator.app import Coordinator, Options
from hypergpu.coordinator.checkpoints import read_tensors
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.session import Pull, Register
from hypergpu.coordinator.failpoints import Failpoints, Fault, Point
from hypergpu.coordinator.resuming import find
from hypergpu.coordinator.run_records import RunEvent
from hypergpu.coordinator.storage import Buffer, Storage
from hypergpu.tasks import Task
from tests.coordinator.test_services import running, toy_task
from tests.patience import until_async
from tests.uploads import upload_of

PLAIN = {"rounds": 9, "local_steps": 2, "batch_size": 2, "learning_rate": 0.25, "server_momentum": 0.5}


def config(policy: str = "none", every: str | int = "2 %", **training: Any) -> SystemConfig:
    tree = {
        "training": {**PLAIN, **training},
        "server": {"listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0", "linger_seconds": 0.0},
        "orchestrator": {"policy": policy},
        "contribution": {"measured_share": 0},  # whose draws are secret
        "checkpoint": {"every": every},
    }
    return SystemConfig.model_validate(tree)


def update_of(number: int, size: int) -> Any:
    return np.random.default_rng(number).normal(scale=0.25, size=size).astype(np.float32)


class Copied(Storage):
    """A disk that can be copied between two steps of its writers, as a process that dies there would leave it."""

    def __init__(self, failpoints: Failpoints | None = None) -> None:
        super().__init__(failpoints)
        self._lock = threading.RLock()

    def append(self, descriptor: int, parts: Sequence[Buffer], point: Point) -> None:
        with self._lock:
            super().append(descriptor, parts, point)

    def replace_files(self, writes: Mapping[Path, Callable[[Path], Any]]) -> None:
        with self._lock:
            super().replace_files(writes)

    def remove(self, file: Path, point: Point) -> None:
        with self._lock:
            super().remove(file, point)

    def copy(self, out: Path, to: Path) -> Path:
        with self._lock:
            return Path(shutil.copytree(out, to, ignore=shutil.ignore_patterns("*.partial", ".tmp*", ".lock")))


class Trained:
    """A coordinator without a network, and one node that trains."""

    def __init__(self, out: Path, *, storage: Copied | None = None, resume: bool = False, **settings: Any) -> None:
        self.storage = storage or Copied()
        options = Options(out, resume=resume, storage=self.storage, force=settings.pop("force", False))
        self.coordinator = Coordinator(config(**settings), self.task, options)
        self.engine = self.coordinator.engine
        self.told: list[RunEvent] = []

    @property
    def task(self) -> Task:
        return toy_task()

    async def begin(self, told: Callable[[RunEvent], None] = lambda _: None) -> None:
        def tell(event: RunEvent) -> None:
            self.told.append(event)
            told(event)

        self.engine.feed.publish = tell  # type: ignore[method-assign]
        await self.coordinator._begin()
        leases = self.engine.session.leases
        assert leases is not None
        self.engine.ask(Register("a", "1", 0, {}, self.engine.identity, lease=leases.secret("a", "1")))

    async def order(self) -> ev.WorkAssigned | ev.RunOver | None:
        return await self.engine.next_order(Pull("a", self.engine.run_id), 10.0)

    async def train(self, rounds: int) -> None:
        for _ in range(rounds):
            order = await self.order()
            assert isinstance(order, ev.WorkAssigned)
            update = update_of(order.round, len(self.engine.model.values))
            event = ev.UpdateArrived("a", order.round, order.attempt, 4, loss=0.5, compute_seconds=0.1, norm=1.0)
            self.engine.accept_update(event, upload_of(update))

    async def closed(self, number: int) -> None:
        async def is_told() -> bool:
            return any(event.kind == "round_closed" and event.round == number for event in self.told)

        await until_async(is_told, f"round {number}", every=0.002)

    def copy(self, to: Path) -> Path:
        return self.storage.copy(self.coordinator.run_dir.path, to)

    async def close(self) -> None:
        if not self.engine.machine.finished:
            self.engine.dispatch(ev.Stop("test over"))
        await self.engine.finished.wait()
        await self.engine.close()


def model_state(trained: Trained) -> dict[str, Any]:
    model = trained.engine.model
    kept = model.values if model.kept is None else model.kept
    optimizer = {name: part.copy() for name, part in model.optimizer_state().items()}
    return {"values": model.values.copy(), "kept": kept.copy(), **optimizer}


def require_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


async def undisturbed(out: Path, rounds: int, **settings: Any) -> dict[str, Any]:
    """State of the model after as many rounds without any crash."""
    trained = Trained(out, **settings)
    await trained.begin()
    await trained.train(rounds)
    await trained.closed(rounds)
    await trained.order()  # what follows on the round is carried out
    await asyncio.wrap_future(trained.engine._dependencies.compute.submit(lambda: None))
    state = model_state(trained)
    await trained.close()
    return state


def again(out: Path, **settings: Any) -> Trained:
    trained = Trained(out, resume=True, **settings)
    trained.coordinator.run_dir.close()
    return trained


@pytest.mark.parametrize(("policy", "every"), [("none", "2 %"), ("reactive", 3), ("none", "1000 seconds")])
async def test_a_directory_as_it_is_when_a_round_is_told_has_the_round(tmp_path: Path, policy: str, every: str) -> None:
    copies: dict[int, Path] = {}
    settings: dict[str, Any] = {"policy": policy, "every": every}

    def told(event: RunEvent) -> None:
        if event.kind == "round_closed":
            copies[event.round] = trained.copy(tmp_path / f"copy-{event.round}")

    trained = Trained(tmp_path / "run", **settings)
    await trained.begin(told)
    await trained.train(6)
    await trained.closed(6)
    await trained.close()
    assert sorted(copies) == [1, 2, 3, 4, 5, 6]
    for number, copy in copies.items():
        resumed = again(copy, **settings)
        assert resumed.engine.machine.round == number + 1
        member = resumed.engine.machine.members.require("a")
        assert (member.last_accepted, member.rounds_contributed) == (number, number)
    through = await undisturbed(tmp_path / "through", 6, **settings)
    require_equal(model_state(again(copies[6], **settings)), through)


async def test_a_run_that_dies_after_each_round_ends_with_the_same_weights_and_one_line_each(tmp_path: Path) -> None:
    out = tmp_path / "run-0"
    for number in range(1, 9):
        trained = Trained(out, resume=number > 1)
        await trained.begin()
        await trained.train(1)
        await trained.closed(number)
        out = trained.copy(tmp_path / f"run-{number}")
        await trained.close()
    last = Trained(out, resume=True)
    await last.begin()
    require_equal(model_state(last), await undisturbed(tmp_path / "through", 8))
    await last.close()
    rows = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(1, 9))


class BlockedSync(Copied):
    """A disk that does not sync until it is let go on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.is_asked, self._go_on = asyncio.Event(), asyncio.Event()
        self._loop = loop
        self.blocks = False

    def sync(self, descriptor: int, point: Point) -> None:
        if self.blocks:
            self._loop.call_soon_threadsafe(self.is_asked.set)
            asyncio.run_coroutine_threadsafe(self._go_on.wait(), self._loop).result(30)
        super().sync(descriptor, point)

    def go_on(self) -> None:
        self._go_on.set()


async def test_nobody_is_told_of_a_round_before_it_is_on_the_disk(tmp_path: Path) -> None:
    storage = BlockedSync(asyncio.get_running_loop())
    trained = Trained(tmp_path, storage=storage)
    await trained.begin()
    await trained.train(2)
    await trained.closed(2)
    storage.blocks = True
    await trained.train(1)
    await storage.is_asked.wait()
    seen = len(trained.told)
    waiting = asyncio.create_task(trained.order())
    status = asyncio.create_task(trained.engine.told())
    await trained.engine._records.flush()
    await asyncio.sleep(0)
    assert not waiting.done(), "no order of the next round"
    assert not status.done(), "no status"
    assert len(trained.told) == seen, "no event to watchers"
    rows = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(row)["round"] for row in rows] == [1, 2], "no line on record"
    storage.go_on()
    order = await waiting
    assert isinstance(order, ev.WorkAssigned)
    assert (order.round, order.accepted_round) == (4, 3)
    await status
    kinds = [(event.kind, event.round) for event in trained.told[seen:]]
    assert kinds[0] == ("round_closed", 3)
    await trained.close()


# ---------------------------------------------------------------- damage


async def left_behind(out: Path, rounds: int = 5, **settings: Any) -> Path:
    """The directory that a coordinator leaves that dies after some rounds."""
    trained = Trained(out.with_name(f"{out.name}-whole"), **settings)
    await trained.begin()
    await trained.train(rounds)
    await trained.closed(rounds)
    await trained.engine._background.settle()
    trained.copy(out)
    await trained.close()
    return out


def logs(out: Path) -> list[Path]:
    return sorted((out / "checkpoints").glob("rounds-*.log"))


async def test_a_torn_end_is_cut_off_and_told(tmp_path: Path) -> None:
    out = await left_behind(tmp_path / "run", every=1000)
    (file,) = logs(out)
    file.write_bytes(file.read_bytes()[:-3])
    published = (out / "ledger.checkpoints").read_text().splitlines(keepends=True)
    (out / "ledger.checkpoints").write_text("".join(published[:-1]))  # nobody was told of the last round
    trained = Trained(out, resume=True, every=1000)
    await trained.begin()
    assert trained.engine.machine.round == 5
    texts = {event.kind: event.text for event in trained.told}
    assert texts["log_cut"].startswith("cut off ")
    assert file.name in texts["log_cut"]
    assert texts["resumed"] == "resumed from the initial model and 4 logged rounds, up to round 4"
    await trained.train(1)
    await trained.closed(5)
    await trained.close()
    assert again(out, every=1000).engine.machine.round == 6


async def test_damage_before_the_end_is_refused_unless_it_is_forced(tmp_path: Path) -> None:
    out = await left_behind(tmp_path / "run", every=1000)
    (file,) = logs(out)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CannotResume, match=r"is damaged at byte .* give up the rounds after round \d with --force"):
        again(out)
    assert file.read_bytes() == data, "nothing was changed"
    trained = Trained(out, resume=True, force=True, every=1000)
    await trained.begin()
    assert 1 < trained.engine.machine.round < 5
    assert any(event.kind == "checkpoint_damaged" and "given up" in event.text for event in trained.told)
    await trained.close()


async def test_a_damaged_checkpoint_costs_no_round(tmp_path: Path) -> None:
    out = await left_behind(tmp_path / "run", every=2)
    newest = sorted((out / "checkpoints").glob("round-*.safetensors"))[-1]
    assert newest.name == "round-000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = again(out, every=2)
    assert resumed.engine.machine.round == 6
    assert resumed.coordinator._found is not None
    assert resumed.coordinator._found.source == "the checkpoint of round 2 and 3 logged rounds, up to round 5"


async def test_lines_that_were_not_written_are_taken_from_the_log(tmp_path: Path) -> None:
    out = await left_behind(tmp_path / "run", every=1000)
    before = (out / "rounds.jsonl").read_text().splitlines()
    (out / "rounds.jsonl").write_text("\n".join(before[:2]) + "\n" + before[2][:10])
    trained = Trained(out, resume=True)
    await trained.begin()
    assert (out / "rounds.jsonl").read_text().splitlines() == before
    await trained.close()


@pytest.mark.parametrize("every", [1, 100])
async def test_a_restart_forgives_no_suspect(tmp_path: Path, every: int) -> None:
    run = Trained(tmp_path / "run", every=every)
    await run.begin()
    run.engine.machine.suspicions.restore({"hostile": {"suspended_until": 50, "strikes": 1}}, [2.0])
    await run.train(2)
    await run.closed(2)
    restarted = again(run.copy(tmp_path / "copy"), every=every)
    assert restarted.engine.machine.suspicions.snapshot() == run.engine.machine.suspicions.snapshot()
    assert restarted.engine.machine.suspicions.is_suspended("hostile", 49)
    restarted.coordinator.run_dir.close()
    await run.close()


async def test_a_step_that_leads_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = await left_behind(tmp_path / "run", every=1000)
    monkeypatch.setattr("hypergpu.coordinator.resuming.checksum_of", lambda _: "00000000")
    with pytest.raises(CannotResume, match="the step of round 1 leads to other parameters than before"):
        again(out)


async def test_changed_settings_apply_after_the_logged_rounds(tmp_path: Path) -> None:
    out = await left_behind(tmp_path / "run", every=1000)
    through = await undisturbed(tmp_path / "through", 5)
    trained = Trained(out, resume=True, force=True, server_optimizer="adam", server_momentum=0.0)
    np.testing.assert_array_equal(trained.engine.model.values, through["values"])
    await trained.begin()
    assert find(out / "checkpoints").base == 5, "the next process needs the former settings no more"  # type: ignore[union-attr]
    await trained.train(1)
    await trained.closed(6)
    trained.copy(tmp_path / "copy")
    values = trained.engine.model.values.copy()
    await trained.close()
    later = again(tmp_path / "copy", server_optimizer="adam", server_momentum=0.0)
    np.testing.assert_array_equal(later.engine.model.values, values)


async def test_the_best_model_of_logged_rounds_is_not_lost(tmp_path: Path) -> None:
    out = await left_behind(tmp_path / "run", every=1000)
    assert not (out / "best.safetensors").exists()
    whole = read_tensors(tmp_path / "run-whole" / "best.safetensors")[1]
    trained = Trained(out, resume=True)
    await trained.begin()
    await trained.close()
    assert read_tensors(out / "best.safetensors")[1]["round"] == whole["round"]


async def test_a_run_that_dies_as_it_is_complete_gets_its_results(tmp_path: Path) -> None:
    copied = tmp_path / "copy"

    def told(event: RunEvent) -> None:
        if event.kind == "completed" and not copied.exists():
            trained.copy(copied)

    trained = Trained(tmp_path / "run", rounds=3)
    await trained.begin(told)
    await trained.train(3)
    await trained.closed(3)
    await trained.close()
    assert not (copied / "model.safetensors").exists()
    resumed = Trained(copied, rounds=3, resume=True)
    assert await resumed.coordinator.run(lambda *_: None, asyncio.Event()) == 0
    assert read_tensors(copied / "model.safetensors")[1]["round"] == "3"
    assert json.loads((copied / "summary.json").read_text())["rounds"] == 3
    assert [json.loads(line)["round"] for line in (copied / "rounds.jsonl").read_text().splitlines()] == [1, 2, 3]


# ---------------------------------------------------------------- a disk that fails


class FullDisk(Copied):
    """A disk that takes no log or checkpoint while it is full."""

    def __init__(self) -> None:
        super().__init__()
        self.full: set[Point] = set()

    def reach(self, point: Point) -> None:
        if point in self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().reach(point)


@pytest.mark.parametrize("point", [Point.LOG_SYNC, Point.LOG_CREATE, Point.LOG_DIRECTORY])
async def test_a_log_that_fails_is_reported_and_a_checkpoint_makes_up_for_it(tmp_path: Path, point: Point) -> None:
    storage = FullDisk()
    trained = Trained(tmp_path / "run", storage=storage, every=1000)
    await trained.begin()
    if point is Point.LOG_SYNC:
        await trained.train(2)
        await trained.closed(2)
    first = trained.engine.machine.round
    storage.full = {point, Point.CHECKPOINT_WRITE}
    await trained.train(2)
    await trained.closed(first + 1)
    assert any(f"a restart repeats the rounds from {first} on" in each for each in trained.engine.problems)
    storage.full.clear()
    await trained.train(2)
    await trained.closed(first + 3)
    await trained.engine._background.settle()
    await trained.train(1)
    await trained.closed(first + 4)
    await trained.engine._background.settle()
    assert trained.engine.problems == []
    trained.copy(tmp_path / "copy")
    values = trained.engine.model.values.copy()
    await trained.close()
    resumed = again(tmp_path / "copy", every=1000)
    assert resumed.engine.machine.round == first + 5
    np.testing.assert_array_equal(resumed.engine.model.values, values)


@pytest.mark.parametrize("action", ["error", "short"])
@pytest.mark.parametrize("point", [each for each in Point if each is not Point.TOLD])
async def test_no_fault_of_the_disk_ends_a_run(tmp_path: Path, point: Point, action: str) -> None:
    storage = Copied(Failpoints({point: [Fault(action, first=1, last=2)]}))
    trained = Trained(tmp_path, storage=storage, every=1)
    await trained.begin()
    await trained.train(6)
    await trained.closed(6)
    await trained.close()
    assert trained.engine.failure == ""
    assert again(tmp_path).engine.machine.round == 7


async def test_without_a_log_a_restart_repeats_the_rounds_since_the_checkpoint(tmp_path: Path) -> None:
    async with running(tmp_path / "run", training={"rounds": 9}, checkpoint={"log": False, "every": 2}) as run:
        node = run.node("a")
        await node.register()
        for _ in range(3):
            await node.push(await node.work(), np.ones(8, np.float32))
        await node.work()
        await run.coordinator.engine._background.settle()
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
    found = find(tmp_path / "copy" / "checkpoints")
    assert found is not None
    assert found.round == 2
    assert not logs(tmp_path / "copy")
