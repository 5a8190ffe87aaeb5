"""Whether a run may go on under a configuration that is not the one it was begun with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Change(StrEnum):
    """What a change of a setting means for a run that goes on."""

    FREE = "free"
    """When rounds begin and end, how often something is written."""
    FORCED = "forced"
    """The training goes on another way than it began: the user has to say so."""
    REFUSED = "refused"
    """It would be another run under the name of this one."""


_FREE = frozenset(
    {
        "rounds",
        "min_nodes",
        "quorum",
        "deadline_mads",
        "evaluate_every",
        "checkpoint_every",
        "target_accuracy",
    }
)
_REFUSED = frozenset({"task", "seed"})
_OF_OPTIMIZER = frozenset({"local_steps", "server_optimizer", "server_momentum"})
"""With these the optimizer's state means something else: it starts afresh."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting, or a figure of model or data, that is not what it was."""

    key: str
    before: object
    now: object
    change: Change

    def __str__(self) -> str:
        return f"{self.key} was {_shown(self.before)} and is {_shown(self.now)}"


def change_of(setting: str) -> Change:
    """Return what a change of a setting of `training` means; a setting that is not known here has to be forced."""
    if setting in _REFUSED:
        return Change.REFUSED
    return Change.FREE if setting in _FREE else Change.FORCED


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[Difference]:
    """Return the settings of `training` that differ and may not be changed without a word, by name.

    Args:
        before: as the checkpoint has them; what is missing there differs.
        now: as they are configured.
    """
    return [
        Difference(f"training.{name}", before.get(name, MISSING), now.get(name, MISSING), change_of(name))
        for name in sorted(before.keys() | now.keys())
        if change_of(name) is not Change.FREE and before.get(name, MISSING) != now.get(name, MISSING)
    ]


def keeps_optimizer(changed: Iterable[Difference]) -> bool:
    """Return whether the optimizer's state still holds after these changes."""
    return not any(difference.key.removeprefix("training.") in _OF_OPTIMIZER for difference in changed)


class _Missing:
    def __repr__(self) -> str:
        return "not recorded"


MISSING = _Missing()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
