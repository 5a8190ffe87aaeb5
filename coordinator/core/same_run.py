"""Check whether a run may resume with a configuration that differs from the one it started with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Change(StrEnum):
    """Effect of a changed setting on a resumed run."""

    FREE = "free"
    """Allowed without notice: changes when rounds begin and end, or how often files are written."""
    FORCED = "forced"
    """Allowed if the user confirms it: changes how the rest of the run trains."""
    REFUSED = "refused"
    """Never allowed: defines a different run."""


_FREE = frozenset(
    {
        "rounds",
        "min_nodes",
        "quorum",
        "close_share",
        "mode",
        "max_staleness",
        "buffer_size",
        "deadline_mads",
        "evaluate_every",
        "target_accuracy",
        "patience",
        "initial_model",  # a resumed run has its checkpoint
        "recipe",  # the settings that it stands for are compared themselves
    }
)
_REFUSED = frozenset({"task", "seed"})
_OF_OPTIMIZER = frozenset({"fragments", "local_steps", "server_optimizer", "server_momentum", "server_nesterov"})
"""Settings that determine the meaning of the optimizer's state; if one changes, the optimizer restarts."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting, or a property of the model or data, that changed."""

    key: str
    before: object
    now: object
    change: Change

    def __str__(self) -> str:
        return f"{self.key} was {_shown(self.before)} and is {_shown(self.now)}"


def change_of(setting: str) -> Change:
    """Return the effect of a changed setting of `training`; an unknown setting is FORCED."""
    if setting in _REFUSED:
        return Change.REFUSED
    return Change.FREE if setting in _FREE else Change.FORCED


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[Difference]:
    """Return the settings of `training` that differ and are not FREE, sorted by name.

    Args:
        before: Settings in the checkpoint. A setting that is missing there counts as changed.
        now: Settings in the configuration.
    """
    return [
        Difference(f"training.{name}", before.get(name, MISSING), now.get(name, MISSING), change_of(name))
        for name in sorted(before.keys() | now.keys())
        if change_of(name) is not Change.FREE and before.get(name, MISSING) != now.get(name, MISSING)
    ]


def keeps_optimizer(changed: Iterable[Difference]) -> bool:
    """Return whether the optimizer's state remains valid after these changes."""
    return not any(difference.key.removeprefix("training.") in _OF_OPTIMIZER for difference in changed)


class _Missing:
    def __repr__(self) -> str:
        return "not recorded"


MISSING = _Missing()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
