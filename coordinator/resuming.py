"""Resuming a run: finds the newest valid checkpoint, and checks that it belongs to this run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import torch
from torch import Tensor

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.errors import CannotResume, CorruptData
from hypergpu.common.metric import MetricSpec
from hypergpu.coordinator.checkpoints import Checkpoint, Checkpoints, Tensors, checksum
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.rounds.events import FinishReason
from hypergpu.coordinator.core.same_run import Change, Difference, differences, keeps_optimizer
from hypergpu.coordinator.core.score import Score
from hypergpu.coordinator.model_files import apart_of, kept_of, optimizer_of, score_of
from hypergpu.coordinator.saved_state import Identity, SavedState, parse_state
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
    """Checkpoint from which a run resumes."""

    checkpoint: Checkpoint
    state: SavedState
    damaged: Sequence[str] = ()
    """Newer checkpoints that cannot be used, with the reasons."""

    @property
    def round(self) -> int:
        """Last round in the checkpoint."""
        return self.checkpoint.round

    @property
    def score(self) -> Score | None:
        """Evaluation of the model in that round; None if it was not evaluated."""
        return score_of(self.checkpoint.metadata)

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


def find(directory: Path) -> Found | None:
    """Return the newest intact checkpoint; None if none was written yet.

    Raises:
        CannotResume: there are checkpoints, and none of them can be used; each is named with the reason.
    """
    checkpoints = Checkpoints(directory)
    damaged: list[str] = []
    try:
        rounds = checkpoints.rounds()
    except OSError as error:
        raise CannotResume(f"cannot read the checkpoints in {directory}: {error.strerror}") from error
    for number in rounds:
        try:
            return replace(_whole(checkpoints.read(number)), damaged=tuple(damaged))
        except CorruptData as error:
            file = checkpoints.model_file(number)
            damaged.append(f"{file.name}: {error}")
            log.warning("this checkpoint is damaged", file=str(file), reason=str(error))
    if damaged:
        raise CannotResume(
            f"no checkpoint in {directory} can be used: {'; '.join(damaged)}. Restore one from a backup, or start "
            "without --resume: this run is then kept under earlier/"
        )
    return None


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
    tensors = list(_tensor_differences(found.checkpoint.model, saved))
    changed += tensors[:_MOST_TENSORS]
    refused = [difference for difference in changed if difference.change is Change.REFUSED]
    if not changed or (force and not refused):
        return changed
    named = "; ".join(str(difference) for difference in changed)
    more = f"; and {len(tensors) - _MOST_TENSORS} more tensors" if len(tensors) > _MOST_TENSORS else ""
    raise CannotResume(
        f"the checkpoint of round {found.round} is of another configuration: {named}{more}. {_advice(refused, force)}"
    )


def restore(model: GlobalModel, found: Found, saved: SavedModel, forced: Sequence[Difference]) -> None:
    """Restore the model from a checkpoint of the same run.

    Raises:
        CannotResume: the tensors are not those of this model or optimizer.
    """
    try:
        values = saved.values(found.checkpoint.model, apart_of(found.checkpoint.server))
        server = found.checkpoint.server
        model.restore(values, optimizer_of(server) if keeps_optimizer(forced) else None, kept_of(server))
    except ValueError as error:
        raise CannotResume(f"the checkpoint of round {found.round} does not fit this model: {error}") from error


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
    return Found(checkpoint, state)


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
