"""Writing the report of a run directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypergpu.common.errors import InvalidInput
from hypergpu.report.against import Against
from hypergpu.report.headline import figures
from hypergpu.report.model import Run
from hypergpu.report.page import page
from hypergpu.report.run import ROUNDS, read_run

SIMULATED = "simulated"
"""Subdirectory of a run for its repetitions in virtual time, one per policy."""
FIXED = "none"
"""Policy of the fixed baseline."""


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was written."""

    path: Path
    run: Run
    against: Against | None

    def to_dict(self) -> dict[str, Any]:
        """Return the headline figures as a JSON object."""
        return {
            "report": str(self.path),
            "run": self.run.name,
            "state": self.run.state,
            **figures(self.run),
            "baseline": None if self.against is None else self.against.to_dict(),
            "comparison": None if self.against is None else self.against.comparison_of(self.run).to_dict(),
            "notes": list(self.run.notes),
        }


def write_report(run_dir: Path, *, out: Path | None = None, baseline: Path | None = None) -> Report:
    """Write the report of a run, by default into its directory.

    Args:
        run_dir: a run, finished or not.
        out: the file.
        baseline: a run to compare it with; the simulated one that a demo left beside its records, if left out.

    Raises:
        InvalidInput: a directory that holds no run, or a file that cannot be written.
    """
    run = read_run(run_dir)
    simulated = run_dir / SIMULATED / FIXED
    if baseline is None and _holds_a_run(simulated):
        baseline = simulated
    against = _against(run, baseline) if baseline is not None else None
    path = out or run_dir / "report.html"
    try:
        path.write_text(page(run, against), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}; choose another place with --out") from error
    return Report(path, run, against)


def _against(run: Run, directory: Path) -> Against:
    baseline = read_run(directory)
    if run.is_simulated or not baseline.is_simulated:
        return Against(baseline)
    # Virtual time is not real time: what the run would have taken in it is what its baseline is held against.
    beside = directory.parent / run.policy if run.policy and "/" not in run.policy else directory
    return Against(baseline, read_run(beside) if beside != directory and _holds_a_run(beside) else None)


def _holds_a_run(directory: Path) -> bool:
    return (directory / ROUNDS).is_file()
