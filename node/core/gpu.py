"""Specs of cards: name, memory and throughput."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypergpu.common.errors import InvalidInput, UnknownName, suggest

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class GPUSpecs:
    """A card, real or simulated.

    Raises:
        InvalidInput: memory or throughput is not above 0.
    """

    name: str = "custom"
    memory_bytes: int = 16 * GIB
    tflops: float = 8.1
    """Peak float32 throughput, 10¹² operations per second, without tensor cores."""
    compute_capability: str = ""
    """NVIDIA's architecture number, such as 8.0; empty for a CPU."""
    simulated: bool = True
    """True if compute time and memory are simulated."""

    def __post_init__(self) -> None:
        if not self.memory_bytes > 0 or not (self.tflops > 0 and math.isfinite(self.tflops)):
            raise InvalidInput(
                f"GPU {self.name!r} needs memory and throughput above 0, "
                f"not {self.memory_bytes} bytes and {self.tflops} TFLOPS"
            )

    @property
    def memory_mb(self) -> float:
        """Memory in MiB."""
        return self.memory_bytes / MIB


PRESETS: Mapping[str, GPUSpecs] = {
    specs.name: specs
    for specs in (
        # NVIDIA T4 datasheet, 2019.
        GPUSpecs("T4", 16 * GIB, 8.1, "7.5"),
        # NVIDIA V100 datasheet, 2020: SXM2, 16 GB.
        GPUSpecs("V100", 16 * GIB, 15.7, "7.0"),
        # NVIDIA A100 datasheet, 2021: SXM4, 80 GB.
        GPUSpecs("A100", 80 * GIB, 19.5, "8.0"),
        # NVIDIA H100 datasheet, 2023: SXM5, 80 GB.
        GPUSpecs("H100", 80 * GIB, 66.9, "9.0"),
        # NVIDIA Ampere GA102 whitepaper, 2020.
        GPUSpecs("RTX-3090", 24 * GIB, 35.6, "8.6"),
        # NVIDIA Ada GPU architecture whitepaper, 2022.
        GPUSpecs("RTX-4090", 24 * GIB, 82.6, "8.9"),
        # AMD Ryzen 7 7840U, 2023: 8 cores × 3.3 GHz × 32 float32 operations per cycle (two 256-bit FMA units).
        GPUSpecs("laptop-cpu", 16 * GIB, 0.84),
    )
}
"""Presets by name, with published figures."""

FASTEST_TFLOPS = max(specs.tflops for specs in PRESETS.values())

_UNITS = {"memory_bytes": 1, "memory_mb": MIB, "memory_gb": GIB}
_FIELDS = ("name", "tflops", "compute_capability", "simulated")


def specs_from(value: GPUSpecs | str | Mapping[str, Any]) -> GPUSpecs:
    """Return the specs for the name of a preset (any case, space or hyphen), a mapping, or `GPUSpecs`.

    A mapping may have `name`, `memory_bytes` (or `memory_mb`, `memory_gb`), `tflops`, `compute_capability` and
    `simulated`. Missing values come from the preset of that `name`, or else from a T4.

    Raises:
        UnknownName: an unknown preset.
        InvalidInput: an unknown key, or a value that is not a number.
    """
    if isinstance(value, GPUSpecs):
        return value
    if isinstance(value, str):
        found = _preset(value)
        if found is None:
            raise UnknownName("GPU", value, PRESETS)
        return found
    if not isinstance(value, Mapping):
        raise InvalidInput(
            f"GPU specs must be the name of a preset, a mapping or a GPUSpecs, not a {type(value).__name__}"
        )
    for key in value:
        if key not in _UNITS and key not in _FIELDS:
            raise InvalidInput(f"unknown key {key!r} in GPU specs{suggest(str(key), [*_UNITS, *_FIELDS])}")
    name = str(value.get("name", "custom"))
    base = _preset(name) or GPUSpecs(name)
    try:
        memory = [int(float(value[key]) * unit) for key, unit in _UNITS.items() if key in value]
        return GPUSpecs(
            name=base.name,
            memory_bytes=memory[0] if memory else base.memory_bytes,
            tflops=float(value.get("tflops", base.tflops)),
            compute_capability=_version(value.get("compute_capability", base.compute_capability)),
            simulated=bool(value.get("simulated", True)),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"GPU specs {dict(value)!r}: {error}") from error


def _preset(name: str) -> GPUSpecs | None:
    def plain(text: str) -> str:
        return text.lower().replace(" ", "").replace("-", "").replace("_", "")

    return next((specs for known, specs in PRESETS.items() if plain(known) == plain(name)), None)


def _version(value: object) -> str:
    return ".".join(str(part) for part in value) if isinstance(value, (tuple, list)) else str(value)
