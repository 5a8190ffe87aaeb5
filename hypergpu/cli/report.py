"""`hypergpu report`: render a run as one page."""

from pathlib import Path
from typing import Annotated

import typer

from hypergpu.common import strict_json
from hypergpu.common.latest import LATEST, RUNS, find_run
from hypergpu.common.options import AsJson
from hypergpu.console import say
from hypergpu.report import write_report


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run directory; by default the newest.")] = RUNS
    / LATEST,
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Run to compare with, such as one without adaptation.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write; by default RUN_DIR/report.html.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Render the report of a run, finished or not, as one self-contained HTML page.

    Example: hypergpu report runs/first --baseline runs/fixed --out first.html
    """
    written = write_report(find_run(run_dir), out=out, baseline=baseline and find_run(baseline))
    say(strict_json.dumps(written.to_dict(), indent=2) if as_json else written.path)
