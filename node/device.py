"""Specs and usage of the real machine."""

import os
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from hypergpu.node.cgroup import memory_limit_bytes
from hypergpu.node.core.gpu import GPUSpecs, specs_from

try:
    import pynvml
except ImportError:  # the `gpu` extra; without it the utilisation of a real card is unknown
    pynvml = None

# Float32 operations per cycle and multiprocessor, two per core (CUDA C++ Programming Guide, "Arithmetic instructions").
_PER_CYCLE = {"7.0": 128, "7.5": 128, "8.0": 128, "8.6": 256, "8.9": 256, "9.0": 256, "10.0": 256, "12.0": 256}


MOST_NUMERICS = 256
"""Characters that a coordinator takes of the kind of a machine."""


def detect() -> GPUSpecs:
    """Return the specs of this machine's first CUDA card, or else of its CPU."""
    if not torch.cuda.is_available():
        return GPUSpecs("cpu", _memory_limit(), specs_from("laptop-cpu").tflops, simulated=False)
    properties = torch.cuda.get_device_properties(0)
    capability = f"{properties.major}.{properties.minor}"
    clock_hz = getattr(properties, "clock_rate", 1_500_000) * 1e3
    tflops = properties.multi_processor_count * _PER_CYCLE.get(capability, 256) * clock_hz / 1e12
    return GPUSpecs(properties.name, properties.total_memory, tflops, capability, simulated=False)


def numerics(device: torch.device, precision: str) -> str:
    """Return what the rounding of a training depends on: nodes with the same text compute the same, or nearly.

    The number of threads is part of it, since sums are added in another order.
    """
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return f"torch {torch.__version__}, {kind}, {precision}"[:MOST_NUMERICS]


def cpu_model() -> str:
    """Return the model of the CPU, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else f"{platform.machine()} {platform.processor()}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Utilisation in percent and memory in MiB."""

    gpu_util: float
    memory_mb: float


class UsageMeter:
    """Usage of a real card by NVML, or else this process's share of one CPU and its memory."""

    def __init__(self, specs: GPUSpecs) -> None:
        self._handle = None
        if pynvml is not None and not specs.simulated and specs.compute_capability:
            try:
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
            except pynvml.NVMLError:
                self._handle = None
        self._last = (time.monotonic(), time.process_time())

    def read(self) -> Usage:
        """Return the usage since the last reading."""
        if self._handle is not None:
            rates = pynvml.nvmlDeviceGetUtilizationRates(self._handle)
            return Usage(float(rates.gpu), pynvml.nvmlDeviceGetMemoryInfo(self._handle).used / (1 << 20))
        now = (time.monotonic(), time.process_time())
        wall, busy = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        return Usage(min(100.0, 100 * busy / wall) if wall > 0 else 0.0, _resident_bytes() / (1 << 20))


def _resident_bytes() -> float:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the peak is the best approximation
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory_limit() -> int:
    """Return the memory of the machine, or the limit of the container."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = memory_limit_bytes()
    return physical if limit is None else min(physical, limit)
