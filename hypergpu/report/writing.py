"""From run directories to a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InvalidInput
from hypergpu.report.headline import compare, figures
from hypergpu.report.model import Run
from hypergpu.report.page import page
from hypergpu.report.run import read_run


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was written."""

    path: Path
    run: Run
    baseline: Run | None

    def record(self) -> dict[str, Any]:
        """Its headline as a JSON object."""
        return {
            "report": str(self.path),
            "run": self.run.name,
            "state": self.run.state,
            **figures(self.run),
            "baseline": None if self.baseline is None else {"run": self.baseline.name, **figures(self.baseline)},
            "comparison": None if self.baseline is None else compare(self.run, self.baseline).record(),
            "notes": list(self.run.notes),
        }


def write_report(run_dir: Path, *, out: Path | None = None, baseline: Path | None = None) -> Report:
    """Write the report of a run, next to its records unless `out` says otherwise.

    Raises:
        InvalidInput: a directory that holds no run, or a file that cannot be written.
    """
    run = read_run(run_dir)
    before = read_run(baseline) if baseline is not None else None
    path = out or run_dir / "report.html"
    try:
        path.write_text(page(run, before), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}; choose another place with --out") from error
    return Report(path, run, before)
