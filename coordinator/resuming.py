"""Resuming a run: finds the newest valid checkpoint and the logged rounds after it, and checks that they are of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.errors import CannotResume, CorruptData
from hypergpu.common.metric import MetricSpec
from hypergpu.common.tensors import Flat
from hypergpu.coordinator import round_log
from hypergpu.coordinator.checkpoints import Checkpoint, Checkpoints, Tensors, checksum
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.rounds.events import FinishReason
from hypergpu.coordinator.core.same_run import Change, Difference, differences, keeps_optimizer
from hypergpu.coordinator.core.score import Score
from hypergpu.coordinator.model_files import apart_of, kept_of, optimizer_of, score_of
from hypergpu.coordinator.round_log import Contents, LoggedRound, checksum_of
from hypergpu.coordinator.saved_state import Identity, SavedState, parse_record, parse_state
from hypergpu.tasks import Task
from hypergpu.tasks.fingerprint import fingerprint
from hypergpu.tasks.samples import count
from hypergpu.tasks.saved import SavedModel

_MOST_TENSORS = 8
"""Largest number of tensors named in a message; settings are all named."""

log = structlog.get_logger()


def identity_of(task: Task, saved: SavedModel, parameter_count: int, *, is_local: bool = False) -> Identity:
    """Return the identity of a run with a newly made model; `is_local`: each node holds its own training data."""
    untrained = checksum(_untrained(saved), {})
    samples, data = 0 if is_local else count(task.train), fingerprint(task, is_local=is_local)
    return Identity(samples, data, saved.travelling, parameter_count, untrained)


@dataclass(frozen=True)
class Found:
    """Origin of a resumed run: a checkpoint, and the rounds in the log that follow on it."""

    checkpoint: Checkpoint | None
    """Newest intact checkpoint; None if the log begins with the first round."""
    state: SavedState
    """State after the last of the rounds."""
    is_evaluated: bool
    """The figures in the state are those of the model."""
    logged: Sequence[LoggedRound] = ()
    """Rounds after the checkpoint, without a gap."""
    log: Contents = field(default_factory=Contents)
    """All that is in the log."""
    damaged: Sequence[str] = ()
    """Newer checkpoints that cannot be used, and rounds that are given up, with the reasons."""

    @property
    def base(self) -> int:
        """Last round in the checkpoint; 0 if there is none."""
        return self.checkpoint.round if self.checkpoint is not None else 0

    @property
    def round(self) -> int:
        """Last round that is done."""
        return self.base + len(self.logged)

    @property
    def source(self) -> str:
        """Origin of the run in words."""
        rounds = f"{len(self.logged)} logged round{'s' * (len(self.logged) > 1)}"
        if self.checkpoint is None:
            return f"the initial model and {rounds}, up to round {self.round}"
        return f"the checkpoint of round {self.base}" + (
            f" and {rounds}, up to round {self.round}" if self.logged else ""
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines of rounds.jsonl that the log holds."""
        rows = (each.record().get("row") for each in self.log.rounds if each.number <= self.round)
        return [row for row in rows if isinstance(row, dict)]

    def is_complete(self, config: TrainingConfig, metric: MetricSpec) -> bool:
        """Return whether the run is complete: all rounds are done, the target is reached, or nothing improves."""
        if config.is_last(self.round):
            return True
        target = config.target_accuracy
        reached = target is not None and metric.reached(self.state.metric, target)
        if self.state.finished is FinishReason.NO_IMPROVEMENT:
            found = self.state.improvement
            return found is not None and 0 < config.patience <= found.evaluations
        return self.state.finished is FinishReason.TARGET_REACHED and reached


def find(directory: Path, *, force: bool = False) -> Found | None:
    """Return the newest intact checkpoint and the rounds that follow on it; None if no round was closed yet.

    `force` gives up rounds behind damage in the log.

    Raises:
        CannotResume: there are checkpoints, and none of them can be used; each is named with the reason. Or the log is
            damaged, and rounds that were told would be undone.
    """
    try:
        base, damaged = _newest(directory)
        contents = round_log.read(directory)
        logged = contents.after(base.checkpoint.round if base is not None and base.checkpoint is not None else 0)
    except OSError as error:
        raise CannotResume(f"cannot read the checkpoints in {directory}: {error.strerror}") from error
    if base is None and not logged:
        if damaged:
            raise CannotResume(
                f"no checkpoint in {directory} can be used: {'; '.join(damaged)}. Restore one from a backup, or start "
                "without --resume: this run is then kept under earlier/"
            )
        if not contents.rounds:
            return None
    number = base.round if base is not None else 0
    lost = contents.lost_after(number)
    if lost and not force:
        raise CannotResume(
            f"the log of rounds in {directory} is damaged: {lost}. Restore it from a backup, or give up the rounds "
            f"after round {number + len(logged)} with --force"
        )
    given_up = [*damaged, *([f"{lost}: the rounds after {number + len(logged)} are given up"] if lost else [])]
    for each in given_up:
        log.warning("a part of the run is damaged", directory=str(directory), reason=each)
    return _with_log(base, logged, contents, given_up)


def _newest(directory: Path) -> tuple[Found | None, list[str]]:
    """Return the newest intact checkpoint, and the newer ones that are damaged."""
    checkpoints = Checkpoints(directory)
    damaged: list[str] = []
    for number in checkpoints.rounds():
        try:
            return _whole(checkpoints.read(number)), damaged
        except CorruptData as error:
            damaged.append(f"{checkpoints.model_file(number).name}: {error}")
    return None, damaged


def _with_log(base: Found | None, logged: Sequence[LoggedRound], log: Contents, damaged: Sequence[str]) -> Found | None:
    if not logged:
        return None if base is None else replace(base, log=log, damaged=damaged)
    checkpoint = base.checkpoint if base is not None else None
    try:
        last = logged[-1].record()
        state = parse_state(last.get("state") or {})
    except CorruptData as error:
        raise CannotResume(f"the log of rounds cannot be used: {error}") from error
    return Found(checkpoint, state, last.get("evaluated") is True, logged, log, damaged)


def set_aside_after(directory: Path, number: int) -> None:
    """Rename damaged checkpoints of later rounds, before a run resumes from `number`.

    Raises:
        CannotResume: they cannot be renamed.
    """
    try:
        Checkpoints(directory).set_aside_after(number)
    except OSError as error:
        raise CannotResume(f"cannot rename the damaged checkpoints in {directory}: {error.strerror}") from error


def require_same_run(
    found: Found, config: TrainingConfig, identity: Identity, saved: SavedModel, *, force: bool
) -> list[Difference]:
    """Check that a checkpoint belongs to this run, and return the differences that `force` allows.

    Raises:
        CannotResume: something differs that may not, or that has to be forced; the message names it all.
    """
    changed = differences(found.state.configuration, config.model_dump(mode="json"))
    changed += _identity_differences(found.state, identity)
    tensors = [] if found.checkpoint is None else list(_tensor_differences(found.checkpoint.model, saved))
    changed += tensors[:_MOST_TENSORS]
    refused = [difference for difference in changed if difference.change is Change.REFUSED]
    if not changed or (force and not refused):
        return changed
    named = "; ".join(str(difference) for difference in changed)
    more = f"; and {len(tensors) - _MOST_TENSORS} more tensors" if len(tensors) > _MOST_TENSORS else ""
    raise CannotResume(f"{found.source}, is of another configuration: {named}{more}. {_advice(refused, force)}")


Evaluated = Callable[[Score, Flat], None]
"""Receiver of the evaluation of each round that is replayed, with the model's values."""


def restore(
    model: GlobalModel,
    found: Found,
    saved: SavedModel,
    forced: Sequence[Difference],
    *,
    metric: MetricSpec,
    evaluated: Evaluated,
) -> None:
    """Restore the model from a checkpoint of the same run, and take the steps of the logged rounds again.

    The model holds what the run began with.

    Raises:
        CannotResume: the tensors are not those of this model or optimizer, or a step does not lead where it led.
    """
    try:
        # The steps were taken with the settings that the run had then.
        before = TrainingConfig.model_validate(found.state.configuration) if found.logged else None
        origin = model if before is None else model.another(before)
        if found.checkpoint is not None:
            server = found.checkpoint.server
            values = saved.values(found.checkpoint.model, apart_of(server))
            keeps = before is not None or keeps_optimizer(forced)
            origin.restore(values, optimizer_of(server) if keeps else None, kept_of(server))
        for each in found.logged:
            _replay(origin, each, metric, evaluated)
        if origin is not model:
            optimizer = origin.optimizer_state() if keeps_optimizer(forced) else None
            model.restore(origin.values, optimizer, origin.kept)
    except (ValueError, CorruptData) as error:
        raise CannotResume(f"{found.source}, does not fit this model: {error}") from error


def _replay(model: GlobalModel, logged: LoggedRound, metric: MetricSpec, evaluated: Evaluated) -> None:
    """Take the step of a logged round again.

    Raises:
        ValueError: the record or the mean is not valid.
        CorruptData: the step leads to other parameters.
    """
    record = parse_record(logged.record())
    mean = logged.mean()
    if record.step is not None:
        if mean is None:
            raise CorruptData(f"the mean of round {logged.number} is missing")
        model.replay(logged.number, mean, record.step)
    if checksum_of(model.values) != record.values:
        raise CorruptData(f"the step of round {logged.number} leads to other parameters than before")
    if record.score is not None and record.score.loss is not None:
        evaluated(Score(logged.number, record.score.loss, record.score.metric, metric), model.values)
    if record.then == "revert":
        model.revert()
    elif record.then == "keep":
        model.keep()


def _whole(checkpoint: Checkpoint) -> Found:
    """Check what does not depend on the model of this run."""
    state = parse_state(checkpoint.state)
    apart = apart_of(checkpoint.server)
    trained = {name: apart.get(name, checkpoint.model.get(name)) for name in state.travelling}
    for name, tensor in (*trained.items(), *checkpoint.server.items()):
        if tensor is None:
            raise CorruptData(f"{name!r} is missing in it")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CorruptData(f"{name!r} holds numbers that are not finite")
    return Found(checkpoint, state, score_of(checkpoint.metadata) is not None)


def _identity_differences(before: SavedState, now: Identity) -> Iterator[Difference]:
    if before.samples != now.samples:
        yield Difference("the number of training samples", before.samples, now.samples, Change.REFUSED)
    if before.data != now.data:
        yield Difference("the fingerprint of the data", before.data, now.data, Change.FORCED)
    if before.travelling != list(now.travelling):
        yield Difference("the list of trained tensors", before.travelling, list(now.travelling), Change.REFUSED)
    if before.parameter_count != now.parameter_count:
        yield Difference(
            "the number of trained parameters", before.parameter_count, now.parameter_count, Change.REFUSED
        )
    if before.untrained != now.untrained:
        yield Difference("the checksum of the untrained tensors", before.untrained, now.untrained, Change.FORCED)


def _tensor_differences(before: Tensors, saved: SavedModel) -> Iterator[Difference]:
    now = saved.initial
    for name in sorted(before.keys() | now.keys()):
        then, today = (_described(tensors.get(name)) for tensors in (before, now))
        if then != today:
            yield Difference(f"the tensor {name!r}", then, today, Change.REFUSED)


def _described(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.")


def _untrained(saved: SavedModel) -> Tensors:
    trained = frozenset(saved.travelling)
    return {name: tensor for name, tensor in saved.initial.items() if name not in trained}


def _advice(refused: Sequence[Difference], force: bool) -> str:
    if not refused:
        return "Resume with the configuration that it was made with, or accept the change with --force"
    advice = "Resume with the configuration that it was made with, or start a new run without --resume"
    named = ", ".join(difference.key for difference in refused)
    return f"{advice}; --force does not allow a change of {named}" if force else advice
