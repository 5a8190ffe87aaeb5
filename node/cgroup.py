"""Limits of a container: those of the process's control group and of its ancestors."""

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path, PurePosixPath

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_UNLIMITED_BYTES = 1 << 60
"""Version 1 reports a limit near 2⁶³ if there is none."""


def memory_limit_bytes(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> int | None:
    """Return the memory limit of the process; None without a limit.

    Args:
        root: mount point of the control groups.
        membership: the process's `/proc/PID/cgroup`.
    """
    limits = []
    for directory, version in _groups(root, membership, "memory"):
        text = _read(directory / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if text.isdigit() and int(text) < _UNLIMITED_BYTES:
            limits.append(int(text))
    return min(limits, default=None)


def cpu_limit(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> float | None:
    """Return the CPU limit of the process, in CPUs; None without a limit.

    Args:
        root: mount point of the control groups.
        membership: the process's `/proc/PID/cgroup`.
    """
    limits = []
    for directory, version in _groups(root, membership, "cpu"):
        if version == 2:
            quota, _, period = _read(directory / "cpu.max").partition(" ")
        else:
            quota, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # "max" and -1 are no limit
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def usable_cpus() -> int:
    """Return the number of CPUs that the process can keep busy: the minimum of its affinity and its limit."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit()
    return cpus if limit is None else max(1, min(cpus, ceil(limit)))


def _groups(root: Path, membership: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the control group of the process and its ancestors, each with its version.

    In a container with its own namespace the group is the root; otherwise its path is in `/proc/self/cgroup`.
    """
    for line in _read(membership).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield from ((directory, 2) for directory in _upwards(root, path))
            yield from ((directory, 2) for directory in _upwards(root / "unified", path))
        elif controller in controllers.split(","):
            for mount in (controller, controllers):
                yield from ((directory, 1) for directory in _upwards(root / mount, path))
    yield root, 2
    yield root / controller, 1


def _upwards(root: Path, path: str) -> Iterator[Path]:
    inner = PurePosixPath(path.lstrip("/"))
    if ".." not in inner.parts:
        yield from (root / each for each in (inner, *inner.parents))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
