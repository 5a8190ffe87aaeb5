"""Export of a run's model as one file, for plain PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from hypergpu.common.errors import CorruptData, InvalidInput, NotFound
from hypergpu.coordinator.checkpoints import Checkpoints, Tensors, read_tensors
from hypergpu.coordinator.core.score import Score
from hypergpu.coordinator.files import replace_file
from hypergpu.coordinator.model_files import metric_key, score_of
from hypergpu.coordinator.run_dir import BEST_MODEL, CHECKPOINTS, LAST_MODEL

BEST, LAST = "best", "last"
_SUFFIX = ".safetensors"
_MOST_DIGITS = 18
_BEYOND_ANY_ROUND = 1 << 62


@dataclass(frozen=True)
class Exported:
    """Description of an exported model."""

    path: Path
    round: int
    score: Score | None
    """Score on held-out data; None if its round was not evaluated."""
    tensors: int
    parameters: int
    """Number of values in all tensors."""
    skipped: tuple[str, ...]
    """Newer files that could not be read, with the reasons."""

    def to_dict(self) -> dict[str, object]:
        """Return the description as a JSON object."""
        return {
            "path": str(self.path),
            "round": self.round,
            "loss": self.score.loss if self.score else None,
            **({self.score.spec.name: self.score.metric} if self.score else {}),
            "metric": self.score.spec.model_dump() if self.score else None,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "skipped": list(self.skipped),
        }


@dataclass(frozen=True)
class _Model:
    """Model file that was read and is intact."""

    round: int
    tensors: Tensors
    metadata: Mapping[str, str]


def export_model(run_dir: Path, which: str, out: Path) -> Exported:
    """Write the whole `state_dict` of a run's model to `out`.

    Args:
        run_dir: a run, finished or not.
        which: `best`, the model of the round that evaluated best; `last`, the newest; or the number of a round.
        out: the file to write; its name ends in `.safetensors`.

    Raises:
        InvalidInput: `run_dir`, `which` or `out` is not valid, or `out` cannot be written.
        NotFound: the run keeps no such model; the message says which it keeps.
        CorruptData: every file that may hold the model is damaged.
    """
    if out.suffix != _SUFFIX:
        raise InvalidInput(f"cannot export to {out}: choose a file name that ends in {_SUFFIX}")
    if not run_dir.is_dir():
        raise InvalidInput(f"{run_dir} is not a directory; give the directory of a run")
    number = _round_number(which)
    damaged: list[str] = []
    for file in _files(run_dir, which, number):
        try:
            model = _read(file)
        except CorruptData as error:
            damaged.append(str(error))
            continue
        if number is None or model.round == number:
            return _write(model, out, tuple(damaged))
    if damaged:
        raise CorruptData(f"the model of {run_dir} cannot be exported: {'; '.join(damaged)}. {_kept(run_dir)}")
    raise NotFound(f"{run_dir} keeps no model of {'round ' if number else 'the '}{which}. {_kept(run_dir)}")


def _round_number(which: str) -> int | None:
    if which in (BEST, LAST):
        return None
    if not (which.isascii() and which.isdigit() and len(which) <= _MOST_DIGITS and int(which)):
        raise InvalidInput(f"--round {which[:40]!r}: give {BEST}, {LAST} or the number of a round")
    return int(which)


def _files(run_dir: Path, which: str, number: int | None) -> list[Path]:
    """Return the files that may hold the model, best candidate first."""
    checkpoints = Checkpoints(run_dir / CHECKPOINTS)
    last, best = run_dir / LAST_MODEL, run_dir / BEST_MODEL
    if which == BEST:
        files = [best]
    elif number is not None:
        files = [checkpoints.model_file(number), last, best]
    else:
        kept = {checkpoints.model_file(each): each for each in checkpoints.rounds()}
        kept[last] = _round_of_last(last)
        files = sorted(kept, key=lambda file: kept[file], reverse=True)
    return [file for file in files if file.exists()]


def _round_of_last(file: Path) -> int:
    """Return the round of the last model; a damaged one counts as the newest, so that its damage is reported."""
    try:
        return _read(file).round if file.exists() else 0
    except CorruptData:
        return _BEYOND_ANY_ROUND


def _read(file: Path) -> _Model:
    tensors, metadata = read_tensors(file)
    number = metadata.get("round", "")
    if not (number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS):
        raise CorruptData(f"{file.name} does not say which round it is of")
    return _Model(int(number), tensors, metadata)


def _write(model: _Model, out: Path, skipped: tuple[str, ...]) -> Exported:
    score = score_of(model.metadata)
    names = ("task", "round", "loss", "metric", *((metric_key(score.spec),) if score else ()))
    told = {name: model.metadata[name] for name in names if name in model.metadata}
    try:
        replace_file(out, lambda partial: save_file(dict(model.tensors), partial, {"format": "pt", **told}))
    except (SafetensorError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InvalidInput(f"cannot write {out}: {reason}; choose another file with --out") from error
    parameters = sum(tensor.numel() for tensor in model.tensors.values())
    return Exported(out, model.round, score, len(model.tensors), parameters, skipped)


def _kept(run_dir: Path) -> str:
    rounds = ", ".join(map(str, Checkpoints(run_dir / CHECKPOINTS).rounds()))
    named = [name for name, file in ((BEST, BEST_MODEL), (LAST, LAST_MODEL)) if (run_dir / file).exists()]
    kept = [f"the models of rounds {rounds}"] if rounds else []
    kept += [f"--round {name}" for name in named]
    return f"It keeps {', '.join(kept)}" if kept else "It keeps no model: the run has to reach its first checkpoint"
