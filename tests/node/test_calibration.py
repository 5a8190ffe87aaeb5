import errno
import fcntl
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

from hypergpu.common.step_times import StepTimes
from hypergpu.node import calibration
from hypergpu.node.calibration import cache_directories, measure, shared, step_times
from hypergpu.node.trainer import Timing, Trainer
from hypergpu.tasks import Task
from hypergpu.tasks.samples import count

KEY = {"machine": "here", "task": "small"}
FOUND, OTHER = StepTimes(0.01, 0.001), StepTimes(0.5, 0.25)
NOW = 1_000_000.0


def take(directory: Path, times: StepTimes, key: Any = KEY, now: float = NOW) -> StepTimes:
    return shared(key, lambda: times, directories=lambda: iter([directory]), now=lambda: now)


def never() -> StepTimes:
    raise AssertionError("another node has measured")


def stored(directory: Path) -> Path:
    (file,) = directory.glob("*.json")
    return file


# ------------------------------------------------------------ measuring


class Machine:
    """A machine on which a step takes 10 ms and 1 ms per sample, and whose passes are disturbed in turn."""

    def __init__(self, per_sample: float = 0.001, disturbed: float = 1.0, core_share: float = 1.0) -> None:
        self.per_sample, self.disturbed, self.core_share = per_sample, disturbed, core_share
        self.batches: list[int] = []

    def __call__(self, samples: int) -> Timing:
        self.batches.append(samples)
        quiet = len(self.batches) % 3 == 0
        cpu = (0.01 + self.per_sample * samples) * (1 if quiet else self.disturbed)
        return Timing(cpu, cpu / self.core_share)


@pytest.mark.parametrize("disturbed", [1.0, 1.3, 40.0])
def test_disturbed_passes_change_no_measurement(disturbed: float) -> None:
    found = measure(Machine(disturbed=disturbed), 1000)
    assert (found.seconds_per_step, found.seconds_per_sample) == pytest.approx((0.01, 0.001))


@pytest.mark.parametrize(("core_share", "warned"), [(0.49, True), (0.5, False)])
def test_the_share_of_a_core_changes_no_measurement_and_tells_a_busy_machine(core_share: float, warned: bool) -> None:
    with capture_logs() as logs:
        found = measure(Machine(core_share=core_share), 1000)
    assert (found.seconds_per_step, found.seconds_per_sample) == pytest.approx((0.01, 0.001))
    assert [each["core_share"] for each in logs if each["log_level"] == "warning"] == ([core_share] if warned else [])


def test_a_batch_of_a_tiny_model_grows_until_its_samples_count() -> None:
    machine = Machine(per_sample=0.0001)
    found = measure(machine, 1000)
    assert set(machine.batches) == {2, 16, 64, 256}
    assert found.seconds_per_sample == pytest.approx(0.0001)


@pytest.mark.parametrize(("most", "batches"), [(1, {1}), (2, {2}), (10, {2, 10}), (20, {2, 16, 20})])
def test_no_batch_is_larger_than_the_data(most: int, batches: set[int]) -> None:
    machine = Machine(per_sample=0.00001)
    assert measure(machine, most).seconds_per_sample > 0
    assert set(machine.batches) == batches


def test_the_first_pass_does_not_count_and_long_passes_are_few() -> None:
    machine = Machine(per_sample=1.0)
    measure(machine, 1000)
    assert machine.batches == [2, 2, 2, 2, 16, 16, 16]


def test_short_passes_are_many() -> None:
    batches: list[int] = []

    def time_step(samples: int) -> Timing:
        batches.append(samples)
        return Timing(samples / 1e6, samples / 1e6)

    measure(time_step, 16)
    assert batches == [2] * 16 + [16] * 15


def test_timings_that_hang_not_together_are_told() -> None:
    with capture_logs() as logs:
        measure(lambda samples: Timing(1.0 / samples, 1.0 / samples), 16)
    assert logs[0]["log_level"] == "warning"
    names = ("small_batch", "small_batch_seconds", "large_batch", "large_batch_seconds")
    assert [logs[0][name] for name in names] == [2, 1 / 2, 16, 1 / 16]


def test_a_clock_of_ticks_is_no_measure_of_a_short_pass() -> None:
    assert [Timing(0.0, 0.003).seconds, Timing(0.01, 0.003).seconds, Timing(0.002, 0.003).seconds] == [
        *(0.003, 0.003, 0.002)
    ]


X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def trainer(layers: Callable[[], nn.Module], name: str = "small") -> Trainer:
    return Trainer(Task(model=layers, train=(X, Y), test=(X, Y), name=name), 0)


def test_a_real_model_is_measured_on_one_thread_and_the_setting_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    real = Trainer.time_step

    def time_step(self: Trainer, inputs: torch.Tensor, targets: torch.Tensor) -> Timing:
        threads.append(torch.get_num_threads())
        return real(self, inputs, targets)

    monkeypatch.setattr(Trainer, "time_step", time_step)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = calibration._measured(trainer(lambda: nn.Linear(6, 3)), 100.0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}
    assert 0 < found.seconds_per_sample < 1


def test_models_and_tasks_have_measurements_of_their_own() -> None:
    keys = [
        calibration._key(trainer(lambda: nn.Linear(6, 3)), 100.0),
        calibration._key(trainer(lambda: nn.Linear(6, 3)), 101.0),
        calibration._key(trainer(lambda: nn.Linear(6, 3), "other"), 100.0),
        calibration._key(trainer(lambda: nn.Sequential(nn.Linear(6, 3), nn.ReLU())), 100.0),
        calibration._key(trainer(lambda: nn.Sequential(nn.Linear(6, 3), nn.Tanh())), 100.0),
    ]
    assert len({json.dumps(key) for key in keys}) == len(keys)
    assert calibration._key(trainer(lambda: nn.Linear(6, 3)), 100.0) == keys[0]
    assert keys[0]["samples"] == count(trainer(lambda: nn.Linear(6, 3)).task.train), "as many as there are, up to 1024"


# ------------------------------------------------------------ sharing


def test_the_first_node_measures_and_the_others_take_what_it_found(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "calibration"
    assert take(directory, FOUND) == FOUND
    assert shared(KEY, never, directories=lambda: iter([directory]), now=lambda: NOW + 60) == FOUND
    assert take(directory, OTHER, key=KEY | {"task": "large"}) == OTHER
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("age", "kept"), [(0.0, True), (86_399.0, True), (86_400.0, False), (-1.0, False)])
def test_a_measurement_is_good_for_a_day(tmp_path: Path, age: float, kept: bool) -> None:
    take(tmp_path, FOUND)
    with capture_logs() as logs:
        assert take(tmp_path, OTHER, now=NOW + age) == (FOUND if kept else OTHER)
    assert [each for each in logs if each["log_level"] == "warning"] == []


def test_expired_measurements_are_removed(tmp_path: Path) -> None:
    take(tmp_path, FOUND)
    take(tmp_path, FOUND, key={"task": "another"}, now=NOW + 86_400)
    assert json.loads(stored(tmp_path).read_text())["key"] == {"task": "another"}


def document(**changes: Any) -> bytes:
    good = {"format": 1, "key": KEY, "times": {"seconds_per_step": 0.5, "seconds_per_sample": 0.25}}
    return json.dumps(good | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[" * 50_000,
        b"[]",
        b" " * (1 << 16) + document(),
        document(format=2),
        document(key={"task": "small"}),
        document(times=None),
        document(times=[0.5, 0.25]),
        document(times={"seconds_per_step": 0.5}),
        document(times={"seconds_per_step": "0.5", "seconds_per_sample": 0.25}),
        document(times={"seconds_per_step": True, "seconds_per_sample": 0.25}),
        document(times={"seconds_per_step": float("nan"), "seconds_per_sample": 0.25}),
        document(times={"seconds_per_step": 0.5, "seconds_per_sample": 0}),
        document(times={"seconds_per_step": 0.5, "seconds_per_sample": -0.25}),
        document(times={"seconds_per_step": 0.5, "seconds_per_sample": 10**400}),
        b'{"format":1,"times":{}}',
        b'{"format":' + b"1" * 5000 + b"}",
    ],
)
def test_a_damaged_or_foreign_file_is_measured_again_and_mended(tmp_path: Path, content: bytes) -> None:
    take(tmp_path, OTHER)
    file = stored(tmp_path)
    file.write_bytes(content)
    os.utime(file, (NOW, NOW))
    with capture_logs() as logs:
        assert take(tmp_path, FOUND) == FOUND
    assert [each["log_level"] for each in logs] == ["warning"]
    assert shared(KEY, never, directories=lambda: iter([tmp_path]), now=lambda: NOW) == FOUND


def test_the_damaged_files_above_differ_from_a_good_one(tmp_path: Path) -> None:
    take(tmp_path, FOUND)
    stored(tmp_path).write_bytes(document())
    os.utime(stored(tmp_path), (NOW, NOW))
    assert shared(KEY, never, directories=lambda: iter([tmp_path]), now=lambda: NOW) == OTHER


@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    take(tmp_path, OTHER)
    file = stored(tmp_path)
    elsewhere = file.rename(tmp_path / "elsewhere")
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(file),
        "link": lambda: file.symlink_to(elsewhere),
        "directory": file.mkdir,
    }
    make[kind]()
    assert take(tmp_path, FOUND) == FOUND
    assert json.loads(elsewhere.read_text())["times"]["seconds_per_step"] == OTHER.seconds_per_step


def test_a_directory_that_cannot_be_written_to_leaves_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    directories = [tmp_path / "file" / "calibration", tmp_path / "nul\0", tmp_path / "second"]
    with capture_logs() as logs:
        assert shared(KEY, lambda: FOUND, directories=lambda: iter(directories)) == FOUND
        assert shared(KEY, never, directories=lambda: iter(directories)) == FOUND
    assert [each for each in logs if each["log_level"] == "warning"] == []


@pytest.mark.parametrize("kind", ["others may write", "link"])
def test_a_directory_that_others_can_change_is_not_trusted(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "shared"
    take(tmp_path / "shared", OTHER)
    if kind == "link":
        directory = tmp_path / "link"
        directory.symlink_to(tmp_path / "shared")
    else:
        directory.chmod(0o720)
    with capture_logs() as logs:
        assert take(directory, FOUND) == FOUND
    assert "only this user" in logs[0]["reason"]


def test_nowhere_to_store_is_told_and_costs_no_work() -> None:
    with capture_logs() as logs:
        assert shared(KEY, lambda: FOUND, directories=lambda: iter(())) == FOUND
    assert [(each["log_level"], each["reason"]) for each in logs] == [("warning", "there is no cache directory")]


def test_a_full_disk_is_told_and_costs_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "utime", full)
    with capture_logs() as logs:
        assert take(tmp_path, FOUND) == FOUND
    assert "No space left" in logs[0]["reason"]
    assert list(tmp_path.glob("*.json")) == []


def test_a_process_that_holds_the_lock_forever_is_not_waited_for(tmp_path: Path) -> None:
    take(tmp_path, OTHER)
    waits: list[float] = []
    with (tmp_path / ".lock").open() as held, capture_logs() as logs:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = shared(KEY, lambda: FOUND, directories=lambda: iter([tmp_path]), sleep=waits.append)
    assert found == FOUND
    assert sum(waits) == pytest.approx(30.0)
    assert "held the lock" in logs[0]["reason"]


def test_a_node_waits_while_another_measures(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def sleep(_: float) -> None:
            fcntl.flock(held, fcntl.LOCK_UN)

        assert shared(KEY, lambda: FOUND, directories=lambda: iter([tmp_path]), sleep=sleep) == FOUND


def test_a_measurement_that_fails_is_not_stored_and_unlocks(tmp_path: Path) -> None:
    def broken() -> StepTimes:
        raise OSError("the samples are out of reach")

    with pytest.raises(OSError, match="out of reach"):
        shared(KEY, broken, directories=lambda: iter([tmp_path]))
    assert take(tmp_path, FOUND) == FOUND


def test_the_cache_of_the_user_comes_before_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/temporary")
    monkeypatch.setenv("HOME", "/home/ada")
    last = Path(f"/temporary/hypergpu-{os.geteuid()}")
    for given, expected in (("/cache", "/cache"), ("", "/home/ada/.cache"), ("relative", "/home/ada/.cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert list(cache_directories()) == [Path(expected) / "hypergpu" / "calibration", last]


def test_nodes_that_start_at_once_agree(tmp_path: Path) -> None:
    barrier = threading.Barrier(5)

    def node(number: int) -> StepTimes:
        barrier.wait(30)
        return take(tmp_path, StepTimes(number + 1.0, 1.0))

    with ThreadPoolExecutor(5) as pool:
        assert len(set(pool.map(node, range(5)))) == 1


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "hypergpu" / "calibration"


def test_trainers_of_one_task_share_the_cache_of_the_user(cache: Path) -> None:
    first = step_times(trainer(lambda: nn.Linear(6, 3)), 100.0)
    assert json.loads(stored(cache).read_text())["times"]["seconds_per_step"] == first.seconds_per_step
    assert step_times(trainer(lambda: nn.Linear(6, 3)), 100.0) == first
