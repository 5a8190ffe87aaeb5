"""Ways to run a scenario: adaptation policies, and the fixed settings that they are measured against."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Final

from hypergpu.common.config import ConfigSection, SystemConfig, TrainingConfig
from hypergpu.common.config.compression import CompressionConfig
from hypergpu.common.config.loading import parse
from hypergpu.common.config.recipes import RECIPES
from hypergpu.common.config.transfers import TransfersConfig
from hypergpu.common.connections import MAX_CONNECTIONS
from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.common.fragments import MAX_FRAGMENTS
from hypergpu.common.local_optimizer import ADAMW, MUON
from hypergpu.common.strategies import AdaptationPolicy, BatchSizeStrategy, CompressionStrategy, SelectionStrategy
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.simulation.scenario import Scenario

BASELINE: Final = str(AdaptationPolicy.NONE)
_POLICIES: Final = [str(policy) for policy in AdaptationPolicy]
_BATCH_STRATEGIES: Final = [str(strategy) for strategy in BatchSizeStrategy]
_SELECTION_STRATEGIES: Final = [str(strategy) for strategy in SelectionStrategy]
_RATES: Final = {each.name: each.learning_rate for each in (ADAMW, MUON)}
"""Learning rates of a fixed setting by optimizer, where the scenario's own is that of another."""
_PLAIN: Final = {
    name: field.default
    for name, field in TrainingConfig.model_fields.items()
    if name.startswith(("local_", "server_")) and name != "local_steps"
} | {"local_optimizer": "sgd", "proximal": 0.0}
"""Settings of plain SGD on nodes and server."""
OPTIMIZERS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "sgd": _PLAIN,
        "muon": _PLAIN | {"local_optimizer": "muon"},
        "nesterov": _PLAIN | {"server_momentum": 0.9, "server_nesterov": True},
    }
    | {name: _PLAIN | {key: value for key, value in RECIPES[name].items() if key in _PLAIN} for name in RECIPES}
)
"""Settings of `training` for each optimiser of a static setting: of the nodes and of the server."""
CODECS: Final[Mapping[str, TransferCodecs]] = MappingProxyType(
    {
        "none": TransferCodecs(),
        "bf16": TransferCodecs("bf16", "bf16"),
        "int8": TransferCodecs("int8", "int8"),
        "int4": TransferCodecs("int4", "int8"),
        "topk": TransferCodecs("topk", "int8"),
    }
)
"""Codecs of both directions by that of updates: parameters travel in the one with the fewest bytes up to it."""


@dataclass(frozen=True, slots=True)
class Static:
    """A setting that stays the same for the whole run; None leaves the scenario's own."""

    local_steps: int | None = None
    batch_size: int | None = None
    rate: float = 1.0
    """Factor of the learning rate."""
    close_percent: float | None = None
    """A round closes when so many of its nodes have answered."""
    optimizer: str | None = None
    """Name in `OPTIMIZERS`."""
    local_state: str | None = None
    """State of the nodes' optimizers between rounds."""
    codec: str | None = None
    """Name in `CODECS`, of both directions."""
    connections: int | None = None
    """Connections that a transfer shares, in each direction."""
    fragments: int | None = None
    """Parts of the model, of which each round synchronises one."""
    overlap: bool | None = None
    """True if nodes train while their fragments travel."""
    mode: str | None = None
    """Mode of the rounds: `sync`, `late` or `buffered`."""

    def sections(self, config: SystemConfig) -> dict[str, ConfigSection]:
        """Return the sections of the configuration that this setting changes.

        Raises:
            ConfigError: values that do not go together.
        """
        found: dict[str, ConfigSection] = {"training": self.apply(config.training)}
        if self.codec is not None:
            codecs = CODECS[self.codec]
            found["compression"] = CompressionConfig(
                strategy=CompressionStrategy.FIXED,
                update_codec=codecs.update,
                parameters_codec=codecs.parameters,
                max_noise=config.compression.max_noise,
            )
        if self.connections is not None:
            found["transfers"] = TransfersConfig(connections=self.connections)
        return found

    def apply(self, training: TrainingConfig) -> TrainingConfig:
        """Return the configuration of this setting.

        Raises:
            ConfigError: values that do not go together.
        """
        update: dict[str, Any] = dict(OPTIMIZERS[self.optimizer]) if self.optimizer else {}
        before = training.first_optimizer.name
        after = update.get("local_optimizer", before)
        rate = training.learning_rate
        if before != after:
            rate = _RATES.get(after, TrainingConfig().learning_rate)
        update["learning_rate"] = rate * self.rate
        if self.local_steps is not None:
            update["local_steps"] = self.local_steps
        if self.batch_size is not None:
            update["batch_size"] = self.batch_size
        given = {
            "local_state": self.local_state,
            "fragments": self.fragments,
            "overlap": self.overlap,
            "mode": self.mode,
        }
        update |= {name: value for name, value in given.items() if value is not None}
        if self.close_percent is not None:
            update["close_share"] = self.close_percent / 100
        return parse(TrainingConfig, training.model_dump() | update, where=str(self))

    def __str__(self) -> str:
        shown = [
            f"{key}={_shown(value)}"
            for key, option in _OPTIONS.items()
            if (value := getattr(self, option.field)) != option.default
        ]
        return "static:" + ",".join(shown) if shown else "static"


FRAGMENTS: Final = (None, 4)
"""Numbers of fragments that a search tries, which overlap; None is the scenario's own setting."""


def with_fragments(setting: Static, count: int | None) -> Static:
    """Return a setting with so many fragments that overlap; None leaves the scenario's own."""
    return setting if count is None else replace(setting, fragments=count, overlap=True)


@dataclass(frozen=True, slots=True)
class _Option:
    """A key of a static setting, as in `H=40`."""

    field: str
    read: Callable[[str], Any]
    wanted: str

    @property
    def default(self) -> Any:
        """Default of the field."""
        return next(field.default for field in fields(Static) if field.name == self.field)


def _shown(value: float | bool | str) -> str:
    """Return a value as it is given."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _factor(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError
    return value


def _percent(text: str) -> float:
    if (value := _factor(text)) > 100:
        raise ValueError
    return value


def _optimizer(text: str) -> str:
    if text not in OPTIMIZERS:
        raise UnknownName("optimizer", text, list(OPTIMIZERS))
    return text


def _codec(text: str) -> str:
    if text not in CODECS:
        raise UnknownName("codec", text, list(CODECS))
    return text


def _connections(text: str) -> int:
    if (value := _count(text)) > MAX_CONNECTIONS:
        raise ValueError
    return value


def _fragments(text: str) -> int:
    if (value := _count(text)) > MAX_FRAGMENTS:
        raise ValueError
    return value


def _one_of(*names: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return read


def _yes_or_no(text: str) -> bool:
    return _one_of("yes", "no")(text) == "yes"


_OPTIONS: Final = {
    "H": _Option("local_steps", _count, "1 or more local steps"),
    "batch": _Option("batch_size", _count, "1 or more samples"),
    "rate": _Option("rate", _factor, "a factor above 0"),
    "close": _Option("close_percent", _percent, "a percentage above 0, up to 100"),
    "optimizer": _Option("optimizer", _optimizer, f"one of {', '.join(OPTIMIZERS)}"),
    "state": _Option("local_state", _one_of("reset", "kept"), "reset or kept"),
    "codec": _Option("codec", _codec, f"one of {', '.join(CODECS)}"),
    "connections": _Option("connections", _connections, f"1 to {MAX_CONNECTIONS} connections"),
    "P": _Option("fragments", _fragments, f"1 to {MAX_FRAGMENTS} fragments"),
    "overlap": _Option("overlap", _yes_or_no, "yes or no"),
    "mode": _Option("mode", _one_of("sync", "late", "buffered"), "sync, late or buffered"),
}
STATIC: Final[Mapping[str, Static]] = MappingProxyType(
    {
        "static": Static(),
        "first-80": Static(local_steps=40, close_percent=80.0),
        "drop-slowest": Static(close_percent=80.0),
        "fedavgm": Static(optimizer="fedavgm"),
        "fedadam": Static(optimizer="fedadam"),
        "diloco": Static(local_steps=40, close_percent=80.0, optimizer="diloco"),
        "muloco": Static(local_steps=40, close_percent=80.0, optimizer="muloco"),
    }
)
"""Fixed settings by name. Each takes options of its own after a colon, as in `diloco:H=100,rate=2`."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a scenario; an empty strategy is the scenario's own."""

    policy: str
    batch: str = ""
    selection: str = ""
    static: Static | None = None
    """Fixed setting, with policy `none`."""
    name: str = ""
    """Name of the fixed setting, as given."""

    @property
    def strategies(self) -> str:
        """Strategies as given on the command line."""
        return "/".join(part for part in (self.batch, self.selection) if part)

    @property
    def label(self) -> str:
        """Name of the variant in tables."""
        return self.name or f"{self.policy} {self.strategies}".strip()

    def of(self, scenario: Scenario, seed: int) -> Scenario:
        """Return the scenario, run this way.

        Raises:
            ConfigError: a fixed setting that does not go with the scenario's configuration.
        """
        config = scenario.config
        update: dict[str, ConfigSection] = {}
        if self.static is not None:
            update |= self.static.sections(config)
        if self.batch:
            update["batch"] = config.batch.model_copy(update={"strategy": self.batch})
        if self.selection:
            update["selector"] = config.selector.model_copy(update={"strategy": self.selection})
        changed = scenario.changed(policy=self.policy, seed=seed, config=config.model_copy(update=update))
        if changed.learning == "model":
            changed.learning_curve()  # an error here names the setting; one in a run would come from another process
        return changed


def static_variant(text: str) -> Variant:
    """Return a fixed setting from NAME or NAME:KEY=VALUE,….

    Raises:
        UnknownName: an unknown name, key or optimiser.
        InvalidInput: a value out of range, or not of that form.
    """
    name, colon, options = text.partition(":")
    if name not in STATIC:
        raise UnknownName("policy or fixed setting", name, [*_POLICIES, *STATIC])
    given: dict[str, Any] = {}
    for part in options.split(",") if colon else ():
        key, equals, value = part.partition("=")
        if key not in _OPTIONS:
            raise UnknownName(f"option of {name!r}", key, list(_OPTIONS))
        option = _OPTIONS[key]
        if option.field in given:
            raise InvalidInput(f"{text!r} gives {key} twice")
        try:
            given[option.field] = option.read(value)
        except ValueError:
            found = repr(value) if equals else "nothing"
            raise InvalidInput(f"{key} of {text!r} is {found}; expected {option.wanted}") from None
    start = STATIC[name]
    kept = {field.name: getattr(start, field.name) for field in fields(Static)}
    return Variant(BASELINE, static=Static(**kept | given), name=text)


def split_variants(text: str) -> list[str]:
    """Split a list at its commas, except those between the options of a fixed setting."""
    parts = re.split(r",(?![^,:]*=)", text)
    return [part.strip() for part in parts if part.strip()]


def variants_of(names: Sequence[str], strategies: Sequence[str] = ()) -> list[Variant]:
    """Return each policy with each of the strategies, and each fixed setting; the plain baseline is none of them.

    Raises:
        UnknownName: an unknown policy, fixed setting or strategy.
        InvalidInput: two strategies for the same thing, or an invalid option.
    """
    pairs = [_strategies(text) for text in strategies] or [("", "")]
    found: list[Variant] = []
    for name in names:
        if name not in _POLICIES:
            found.append(static_variant(name))
        elif name != BASELINE:
            found += [Variant(name, *pair) for pair in pairs]
    return list(dict.fromkeys(found))


def baselines_of(names: Sequence[str]) -> list[Variant]:
    """Return the fixed settings to compare with; `none` is the scenario's own setting.

    Raises:
        UnknownName: an unknown setting.
        InvalidInput: a policy, no setting at all, or an invalid option.
    """
    for name in names:
        if name in _POLICIES and name != BASELINE:
            raise InvalidInput(f"{name!r} is a policy and adapts: take a fixed setting as baseline, as in first-80")
    found = [Variant(BASELINE) if name == BASELINE else static_variant(name) for name in names]
    if not found:
        raise InvalidInput(f"no baseline to compare with: name one, as in {BASELINE}")
    return list(dict.fromkeys(found))


def _strategies(text: str) -> tuple[str, str]:
    batch = selection = ""
    for name in text.split("/"):
        if name in _BATCH_STRATEGIES and not batch:
            batch = name
        elif name in _SELECTION_STRATEGIES and not selection:
            selection = name
        elif name in (*_BATCH_STRATEGIES, *_SELECTION_STRATEGIES):
            raise InvalidInput(
                f"{text!r} names two strategies for the same thing: give BATCH/SELECTION, or one of both"
            )
        else:
            raise UnknownName("strategy", name, [*_BATCH_STRATEGIES, *_SELECTION_STRATEGIES])
    return batch, selection
