"""Step times of a task's model on this machine, measured once and shared by all nodes of a user.

Simulated cards are compared with one another, so all nodes of a machine must scale the same measurement. Nodes that
measure at the same time disturb each other, and the order of their cards is lost.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog
import torch

from hypergpu.common import strict_json
from hypergpu.common.errors import InvalidInput
from hypergpu.common.private_files import create_private
from hypergpu.common.step_times import StepTimes
from hypergpu.node.core.compute import fitted
from hypergpu.node.device import cpu_model
from hypergpu.node.trainer import Timing, Trainer
from hypergpu.tasks import inputs as task_inputs
from hypergpu.tasks.samples import count

log = structlog.get_logger()

_FORMAT = 1
_EXPIRES_SECONDS = 86_400
"""Age after which a measurement is repeated: power modes, libraries and models with the same layers change."""
_LOCK_SECONDS = 30.0
"""Longest wait for another process: longer than a measurement, short enough for a user at a terminal."""
_POLL_SECONDS = 0.05
_MAX_FILE_BYTES = 1 << 16

_SMALL_BATCH = 2  # BatchNorm takes no single sample
_LARGE_BATCH = 16
_MAX_BATCH = 1024
_MAX_BATCH_BYTES = 256 << 20
_GROWTH = 4
_MIN_REPEATS, _MAX_REPEATS = 3, 15
_ENOUGH_SECONDS = 0.2
"""CPU time of the passes over one batch after which more repeats add little."""
_BUSY_SHARE = 0.5
"""Share of a core below which the machine counts as busy."""

_pinned = threading.Lock()
"""Torch's number of threads is global: nodes in threads of one process measure one after the other."""


def step_times(trainer: Trainer, sample_bytes: float) -> StepTimes:
    """Return the step times of a model on one core of this machine, as stored by another node or else measured now.

    Args:
        trainer: on the CPU.
        sample_bytes: memory that one sample takes in training.

    Raises:
        InvalidInput, NonFiniteUpdate, OutOfMemory: see `Trainer.gradient`.
    """
    return shared(_key(trainer, sample_bytes), lambda: _measured(trainer, sample_bytes))


def measure(time_step: Callable[[int], Timing], most_samples: int) -> StepTimes:
    """Return the step times, from the fastest passes over a small and a large batch.

    The large batch grows until it takes twice as long as the small one; otherwise the cost of a sample of a tiny model
    would be lost in the fixed cost of a step.

    Args:
        time_step: times one pass over a number of samples.
        most_samples: largest batch.
    """
    passes: list[Timing] = []

    def fastest(samples: int) -> float:
        times: list[Timing] = []
        while len(times) < _MIN_REPEATS or (
            len(times) < _MAX_REPEATS and sum(each.seconds for each in times) < _ENOUGH_SECONDS
        ):
            times.append(time_step(samples))
        passes.extend(times)
        return min(each.seconds for each in times)

    few, many = min(_SMALL_BATCH, most_samples), min(_LARGE_BATCH, most_samples)
    time_step(few)  # libraries load and specialise code on the first pass
    small, large = fastest(few), fastest(many)
    while large < 2 * small and many < most_samples:
        many = min(many * _GROWTH, most_samples)
        large = fastest(many)
    times, plausible = fitted(few, small, many, large)
    wall = sum(each.wall_seconds for each in passes)
    share = min(1.0, sum(each.seconds for each in passes) / wall) if wall > 0 else 1.0
    _report(times, few=(few, small), many=(many, large), plausible=plausible, core_share=share)
    return times


def shared(
    key: Mapping[str, Any],
    measure: Callable[[], StepTimes],
    *,
    directories: Callable[[], Iterator[Path]] | None = None,
    sleep: Callable[[float], object] = time.sleep,
    now: Callable[[], float] = time.time,
) -> StepTimes:
    """Return the stored measurement of `key`, or measure and store it while other processes wait.

    If nothing can be stored, measure anyway.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32] + ".json"
    with ExitStack() as stack:
        directory = _locked(stack, directories or cache_directories, sleep)
        if directory is None:
            return measure()
        found = _read(directory / name, key, now())
        if found is not None:
            log.debug("using the step times that another node measured", path=str(directory / name), **asdict(found))
            return found
        times = measure()
        _write(directory, name, key, times, now())
        return times


def cache_directories() -> Iterator[Path]:
    """Yield the directories for measurements: the user's cache, then a directory for temporary files."""
    with contextlib.suppress(RuntimeError):  # no home directory
        base = os.environ.get("XDG_CACHE_HOME", "")
        yield (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "hypergpu" / "calibration"
    with contextlib.suppress(FileNotFoundError):  # no directory for temporary files
        yield Path(tempfile.gettempdir()) / f"hypergpu-{os.geteuid()}"


# ------------------------------------------------------------ measuring


def _measured(trainer: Trainer, sample_bytes: float) -> StepTimes:
    fits = max(_LARGE_BATCH, int(_MAX_BATCH_BYTES / max(1.0, sample_bytes)))
    most = min(count(trainer.task.train), _MAX_BATCH, fits)
    inputs, targets = trainer.samples(range(min(_LARGE_BATCH, most)))

    def time_step(samples: int) -> Timing:
        nonlocal inputs, targets
        if samples > len(inputs):
            inputs, targets = trainer.samples(range(samples))
        return trainer.time_step(inputs[:samples], targets[:samples])

    with _one_thread():
        return measure(time_step, most)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on the calling thread only, so that its CPU time is the time of the work."""
    with _pinned:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _report(
    times: StepTimes, *, few: tuple[int, float], many: tuple[int, float], plausible: bool, core_share: float
) -> None:
    figures = {**asdict(times), "core_share": round(core_share, 3)}
    if not plausible:
        log.warning(
            "a large batch took no longer than a small one: simulated step times hardly depend on the batch size",
            small_batch=few[0],
            small_batch_seconds=few[1],
            large_batch=many[0],
            large_batch_seconds=many[1],
        )
    if core_share < _BUSY_SHARE:
        log.warning("this machine is busy: simulated cards may be slower than they should be", **figures)
    else:
        log.debug("measured the step times of this machine", **figures)


def _key(trainer: Trainer, sample_bytes: float) -> dict[str, Any]:
    """Return all that step times depend on; the memory of a sample distinguishes models with the same layers."""
    inputs, targets = trainer.samples(range(1))
    layers = [f"{type(module).__module__}.{type(module).__qualname__}" for module in trainer.model.module.modules()]
    tensors = [f"{tensor.name} {tensor.shape}" for tensor in trainer.model.manifest.tensors]
    return {
        "machine": _machine(),
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "task": trainer.task.name,
        "model": hashlib.sha256("\n".join([*layers, *tensors]).encode()).hexdigest(),
        "parameters": trainer.model.parameter_count,
        "sample": [f"{part.dtype} {tuple(part.shape[1:])}" for part in (*task_inputs.tensors(inputs), targets)],
        "sample_bytes": sample_bytes,
        "samples": min(count(trainer.task.train), _MAX_BATCH),
        "precision": trainer.precision,
    }


def _machine() -> str:
    """Return an id of this machine, because machines may share a home directory and containers change host names."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return socket.gethostname()


# ------------------------------------------------------------ storing


def _locked(
    stack: ExitStack, directories: Callable[[], Iterator[Path]], sleep: Callable[[float], object]
) -> Path | None:
    """Return the first directory that can be locked; `stack` unlocks it."""
    problems = []
    for directory in directories():
        try:
            descriptor = _open_lock(directory)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            problems.append(f"{directory}: {error}")
            continue
        stack.callback(os.close, descriptor)
        try:
            _wait_for(descriptor, sleep)
        except OSError as error:
            problems.append(f"{directory}: {error}")
            continue
        return directory
    log.warning(
        "this node measures its own step times: simulated cards of several nodes may not be comparable",
        reason="; ".join(problems) or "there is no cache directory",
        fix="set XDG_CACHE_HOME to a directory that this user can write to",
    )
    return None


def _open_lock(directory: Path) -> int:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "not a directory that only this user can write to")
    return os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _wait_for(descriptor: int, sleep: Callable[[float], object]) -> None:
    """Lock an open file.

    Raises:
        TimeoutError: another process holds it for too long; it may be stopped.
        OSError: the file system has no locks.
    """
    for _ in range(round(_LOCK_SECONDS / _POLL_SECONDS)):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sleep(_POLL_SECONDS)
    raise TimeoutError(errno.ETIMEDOUT, f"another process has held the lock for {_LOCK_SECONDS:.0f} seconds")


def _read(file: Path, key: Mapping[str, Any], now: float) -> StepTimes | None:
    """Return the measurement in a file; None if there is none, or it cannot be trusted."""
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise ValueError("not a file of this user")
            if not 0 <= now - found.st_mtime < _EXPIRES_SECONDS:
                return None
            return _parsed(opened.read(_MAX_FILE_BYTES), key)
    except FileNotFoundError:
        return None
    except (OSError, InvalidInput, ValueError, KeyError, OverflowError) as error:
        log.warning("cannot use the stored step times; measuring again", path=str(file), reason=repr(error))
        return None


def _parsed(data: bytes, key: Mapping[str, Any]) -> StepTimes:
    document = strict_json.parse_object(data)
    if document.get("format") != _FORMAT or document.get("key") != key:
        raise ValueError("not a measurement of this model on this machine")
    values = document["times"]
    names = ("seconds_per_step", "seconds_per_sample")
    if not isinstance(values, dict) or not all(type(values.get(name)) in (int, float) for name in names):
        raise ValueError("its times are not numbers")
    return StepTimes(*(float(values[name]) for name in names))


def _write(directory: Path, name: str, key: Mapping[str, Any], times: StepTimes, now: float) -> None:
    """Store a measurement atomically, and remove expired ones. The caller holds the lock."""
    document = json.dumps({"format": _FORMAT, "key": key, "times": asdict(times)})
    new = directory / "new"
    try:
        new.unlink(missing_ok=True)
        create_private(new, document.encode())
        os.utime(new, (now, now))
        new.replace(directory / name)
        for file in directory.glob("*.json"):
            if not 0 <= now - file.lstat().st_mtime < _EXPIRES_SECONDS:
                file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot store step times; each node measures its own", path=str(directory), reason=str(error))
