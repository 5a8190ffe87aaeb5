"""Rehearsal as part of the adaptation: when, which candidates, which one is held, and whether it kept its promise.

The driver carries a rehearsal out (`simulation.rehearsal`). One begins when the plan has settled, and no sooner than
the CPU time of the last one allows. The best candidate is held if its predicted gain in progress per second is above a
margin, and above the spread of the prediction over seeds. Some rounds later, the realised gain is compared with it: if
too little of it came, the setting is given up, and not tried again for a while.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from hypergpu.common.config import SystemConfig
from hypergpu.common.strategies import BatchSizeStrategy, CompressionStrategy
from hypergpu.common.transfer_codecs import NO_CODECS, TransferCodecs
from hypergpu.coordinator.core.adaptation.codecs.noise import PRIOR_NOISE
from hypergpu.coordinator.core.decisions import Figures
from hypergpu.coordinator.core.rehearsal import (
    NOTHING_HELD,
    HeldSetting,
    RehearsalRequest,
    RehearsalResult,
    Worth,
)
from hypergpu.coordinator.core.rounds.adaptation import RoundPlan, RoundReport

ROUND_TRIPS: Final = 6
"""Round trips of a link without which a fork knows little of it."""
ROUNDS_WITHOUT: Final = 40
"""Rounds after which a rehearsal does without them: links may be busy all the time."""
_DUTY: Final = 20.0
"""Time from the start of a rehearsal to that of the next, in CPU times of the first: 5 % of a core."""
_RETRY_SECONDS: Final = 60.0
"""Least time until the next rehearsal after one that failed."""
_WINDOW: Final = 8
"""Rounds that a fork is measured by."""
_AHEAD: Final = 10
"""Rounds that each candidate runs in virtual time."""
_SETTLED: Final = 3
"""Rounds in a row with about the same local steps after which the plan counts as settled."""
_ALIKE: Final = 1.5
"""Ratio of local steps up to which they are about the same."""
_LEAST_ROUNDS_LEFT: Final = 8
"""Rounds that have to be left for a change to pay."""
_TRIAL_ROUNDS: Final = 8
"""Rounds that the realised gain is measured over, after one that the change itself may have disturbed."""
_MARGIN: Final = 0.06
"""Least predicted gain for which a setting is held."""
_SPREADS: Final = 1.0
"""The same, in standard deviations of the gain over seeds."""
_MISSING: Final = 0.4
"""Share of the predicted gain below which it counts as missing."""
_STILL_GOOD: Final = 0.9
"""Ratio to the progress per second before it, below which a setting that has kept its promise is given up."""
_BLOCKED: Final = 2
"""Rehearsals for which a setting that was given up is no candidate."""
_CLOSE_SHARES: Final = (0.6, 0.8, 1.0)
_FEW_NODES: Final = 2
"""Nodes of which each is waited for."""
_CODECS: Final = (NO_CODECS, TransferCodecs("bf16", "bf16"), TransferCodecs("int8", "int8"))


class RehearsalReason(StrEnum):
    """Reason for a decision about a rehearsal."""

    PREDICTED_FASTER = "predicted_faster"
    """A setting made more progress per second in virtual time: it is held from the next round on."""
    NOTHING_FASTER = "nothing_faster"
    """No setting was better by more than the margin and the spread."""
    GAIN_REALISED = "gain_realised"
    GAIN_MISSING = "gain_missing"
    """Too little of the predicted gain came: the setting is given up."""
    PLAN_CHANGED = "plan_changed"
    """The setting is given up because training diverged, or the policy changed."""
    FAILED = "failed"


class RehearsalDecision(NamedTuple):
    """Decision about a rehearsal."""

    reason: RehearsalReason
    figures: Figures
    local_steps: int | None = None
    """Local steps from the next round on; None leaves them as they are."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Round as it was."""

    round: int
    seconds: float
    """Seconds from the end of the round before."""
    is_turn: bool
    """True if the round waited for a node's turn: it tells nothing of a setting."""
    local_steps: int
    samples: int
    nodes: int
    codec_noise: float


@dataclass(slots=True)
class _Trial:
    """Setting that is held, and what is expected of it."""

    setting: HeldSetting
    before: HeldSetting
    """Setting to return to."""
    steps_before: int
    predicted: float
    rate: float
    """Progress per second before it."""
    worth: Worth
    since: int
    """First round that is measured."""
    judged: bool = False


class Rehearsals:
    """Decides about rehearsals, from the rounds that were measured."""

    def __init__(self, config: SystemConfig) -> None:
        self.held = NOTHING_HELD
        """Setting that is held."""
        self._config = config
        self._rounds: deque[Measured] = deque(maxlen=64)
        self._ended_at: float | None = None
        self._not_before = -math.inf
        self._number = 0
        self._present = NOTHING_HELD
        """Plan of the open round, or of the last one."""
        self._is_turn = False
        """The open round waits for a node's turn."""
        self._pending: tuple[RehearsalRequest, float] | None = None
        """Request without a result, and the time of it."""
        self._trial: _Trial | None = None
        self._blocked: dict[str, int] = {}
        """Settings that were given up, and the number of the rehearsal until which they are no candidates."""

    def begin_round(self, plan: RoundPlan) -> None:
        """Note the plan of a round."""
        share, self._is_turn = self._present.close_share, bool(plan.wait_for)
        if not self._is_turn or share is None:
            share = plan.close_share or self._config.training.close_share
        codecs = set(plan.codecs.values()) or {self._config.compression.codecs}
        self._present = HeldSetting(plan.local_steps, share, codecs.pop() if len(codecs) == 1 else None)

    # ------------------------------------------------------------ after a round

    def observe(self, report: RoundReport, now: float) -> RehearsalDecision | None:
        """Record a round that ended now; return the verdict on a setting on trial, if it is due."""
        used = [each for each in report.contributions if each.success and each.samples]
        ended_at, self._ended_at = self._ended_at, now
        steps = self._present.local_steps
        if ended_at is None or not used or steps is None:
            return None
        noise = sum(each.noise for each in used) / len(used)
        seconds = max(now - ended_at, 1e-9)
        self._rounds.append(Measured(report.round, seconds, self._is_turn, steps, report.samples, len(used), noise))
        return self._verdict()

    def interrupt(self) -> None:
        """Forget when the last round ended: one was abandoned."""
        self._ended_at = None

    def _verdict(self) -> RehearsalDecision | None:
        trial = self._trial
        measured = [each for each in self._usual if trial is not None and each.round >= trial.since]
        if trial is None or len(measured) < _TRIAL_ROUNDS:
            return None
        realised = rate_of(measured[-_TRIAL_ROUNDS:], trial.worth) / max(trial.rate, 1e-12)
        figures: Figures = {
            "setting": str(trial.setting),
            "predicted_gain": trial.predicted - 1.0,
            "realised_gain": realised - 1.0,
            "rounds": _TRIAL_ROUNDS,
        }
        least = _STILL_GOOD if trial.judged else 1.0 + _MISSING * (trial.predicted - 1.0)
        if realised < least:
            if not trial.judged:
                self._blocked[str(trial.setting)] = self._number + _BLOCKED
            self.held, self._trial = trial.before, None
            return RehearsalDecision(RehearsalReason.GAIN_MISSING, figures, trial.steps_before)
        if trial.judged:
            return None
        trial.judged = True
        return RehearsalDecision(RehearsalReason.GAIN_REALISED, figures)

    def request(self, worth: Worth, now: float) -> RehearsalRequest | None:
        """Return the request of a rehearsal that is to begin now, if one is due."""
        if self._pending is not None or now < self._not_before or not self._is_settled:
            return None
        last = self._rounds[-1]
        left = self._config.training.rounds - last.round
        if self._config.training.rounds and left < _LEAST_ROUNDS_LEFT:
            return None
        candidates = self._candidates(last.nodes)
        if not candidates:
            return None
        self._number += 1
        request = RehearsalRequest(
            self._number, last.round, now, self._present, tuple(candidates), worth, _WINDOW, _AHEAD
        )
        self._pending = request, now
        return request

    @property
    def _is_settled(self) -> bool:
        latest = [each.local_steps for each in self._usual[-_SETTLED:]]
        on_trial = self._trial is not None and not self._trial.judged
        return len(latest) == _SETTLED and max(latest) <= _ALIKE * min(latest) and not on_trial

    @property
    def _usual(self) -> list[Measured]:
        """Rounds that did not wait for a node's turn."""
        return [each for each in self._rounds if not each.is_turn]

    def _candidates(self, nodes: int) -> list[HeldSetting]:
        training, present = self._config.training, self._present
        found = [HeldSetting(local_steps=steps) for steps in self._steps(present.local_steps or 1)]
        if training.close_share == 1.0 and training.shards_are_alike and nodes > _FEW_NODES:
            found += [HeldSetting(close_share=share) for share in _CLOSE_SHARES if share != present.close_share]
        if self._config.compression.strategy is CompressionStrategy.ADAPTIVE:
            noise = self._config.compression.max_noise
            others = [each for each in _CODECS if PRIOR_NOISE[each.update] <= noise and each != present.codecs]
            found += [HeldSetting(codecs=each) for each in others]
        blocked = {name for name, until in self._blocked.items() if self._number < until}
        return [each for each in found if str(self.held.with_(each)) not in blocked]

    def _steps(self, present: int) -> Sequence[int]:
        """Return half of the local steps, as many and twice as many, as far as the configuration allows."""
        base, bound = self._config.training.local_steps, self._config.batch.max_local_steps_factor
        if base == 1 or self._config.batch.strategy is not BatchSizeStrategy.GOODPUT:
            return ()
        least, most = max(2, round(base / bound)), max(2, int(base * bound))
        found = {min(max(count, least), most) for count in (round(present / 2), present, 2 * present)}
        return sorted(found - {self.held.local_steps})

    # ------------------------------------------------------------ the result

    def finish(self, result: RehearsalResult, round_number: int) -> RehearsalDecision | None:
        """Hold the best setting of a rehearsal from the next round on, if it pays; return what was decided."""
        if self._pending is None or self._pending[0].number != result.number:
            return None
        (request, began), self._pending = self._pending, None
        pause = _DUTY * result.seconds
        if result.fault:
            self._not_before = began + max(pause, _RETRY_SECONDS)
            return RehearsalDecision(RehearsalReason.FAILED, {"fault": result.fault[:200]})
        self._not_before = began + pause
        worth = result.worth or request.worth
        figures: dict[str, float | int | str] = {
            "candidates": len(request.candidates),
            "cpu_seconds": result.seconds,
            "worth_by": str(worth.source),
        }
        best = result.forecasts[0] if result.forecasts else None
        if best is not None:
            figures |= {
                "setting": str(best.setting),
                "predicted_gain": best.gain - 1.0,
                "spread": best.spread,
            }
        if best is None or best.gain - 1.0 <= max(_MARGIN, _SPREADS * best.spread):
            return RehearsalDecision(RehearsalReason.NOTHING_FASTER, figures)
        steps = request.present.local_steps or 1
        rate = rate_of(self._usual[-_TRIAL_ROUNDS:], worth)
        held = self.held.with_(best.setting)
        self._trial = _Trial(held, self.held, steps, best.gain, rate, worth, round_number + 2)
        self.held = held
        return RehearsalDecision(RehearsalReason.PREDICTED_FASTER, figures, held.local_steps)

    def fork(self, change: HeldSetting) -> None:
        """Hold a changed setting for the rest of a run in virtual time, which has no rehearsals of its own."""
        self.held = self.held.with_(change)
        self._pending = self._trial = None
        self._not_before = math.inf

    def cancel(self) -> RehearsalDecision | None:
        """Hold nothing any more; return the decision if something was held."""
        held, self.held = self.held, NOTHING_HELD
        self._pending = self._trial = None
        if held == NOTHING_HELD:
            return None
        return RehearsalDecision(RehearsalReason.PLAN_CHANGED, {"setting": str(held)})


def rate_of(rounds: Sequence[Measured], worth: Worth) -> float:
    """Return the progress per second of rounds, in full steps."""
    total = sum(worth.of_round(each.local_steps, each.samples, each.nodes, each.codec_noise) for each in rounds)
    return total / max(sum(each.seconds for each in rounds), 1e-9)
