"""Control groups as Linux lays them out, in a directory of the test."""

import os
from pathlib import Path

import pytest

from hypergpu.node import cgroup
from hypergpu.node.cgroup import cpu_limit, memory_limit_bytes, usable_cpus

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/", {"memory.max": str(GIB)}, GIB),  # a container with a namespace of its own
        ("0::/", {"memory.max": "max"}, None),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": str(GIB)}, GIB),  # the limit is above
        ("0::/a/b", {"a/b/memory.max": str(GIB), "a/memory.max": str(2 * GIB)}, GIB),
        ("0::/a/b", {"a/b/memory.max": str(2 * GIB), "a/memory.max": str(GIB)}, GIB),
        ("4:memory:/docker/x", {"memory/memory.limit_in_bytes": str(GIB)}, GIB),  # version 1 in a container
        ("4:memory:/docker/x", {"memory/docker/x/memory.limit_in_bytes": str(GIB)}, GIB),
        ("4:memory:/", {"memory/memory.limit_in_bytes": str((1 << 63) - 4096)}, None),
        ("3:cpu:/\n4:memory:/x\n0::/", {"memory/x/memory.limit_in_bytes": str(GIB)}, GIB),
        ("0::/../../etc", {"memory.max": "max"}, None),
        ("", {}, None),
        ("nonsense", {"memory.max": "12 kB"}, None),
    ],
)
def test_the_memory_of_a_container_is_its_limit(
    tmp_path: Path, membership: str, files: dict[str, str], limit: int | None
) -> None:
    root = write(tmp_path / "cgroup", files)
    own = write(tmp_path, {"self": membership}) / "self"
    assert memory_limit_bytes(root, own) == limit


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path / "no", tmp_path / "none") is None
    assert cpu_limit(tmp_path / "no", tmp_path / "none") is None


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/a", {"a/cpu.max": "max 100000", "cpu.max": "50000 100000"}, 0.5),
        ("2:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, None),
        ("2:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2.0),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "0"}, None),
    ],
)
def test_the_cpus_of_a_container_are_its_quota(
    tmp_path: Path, membership: str, files: dict[str, str], limit: float | None
) -> None:
    root = write(tmp_path / "cgroup", files)
    own = write(tmp_path, {"self": membership}) / "self"
    assert cpu_limit(root, own) == limit


@pytest.mark.parametrize(("limit", "cpus"), [(None, 8), (1.5, 2), (0.2, 1), (64.0, 8)])
def test_whole_cpus_are_counted_up_and_never_beyond_the_machine(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(cgroup, "cpu_limit", lambda: limit)
    assert usable_cpus() == cpus


def test_a_node_on_the_cpu_reports_what_its_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from hypergpu.node import device

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(device, "memory_limit_bytes", lambda: GIB)
    assert device.detect().memory_bytes == GIB
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for more in (None, 1 << 50):
        monkeypatch.setattr(device, "memory_limit_bytes", lambda more=more: more)
        assert device.detect().memory_bytes == physical
