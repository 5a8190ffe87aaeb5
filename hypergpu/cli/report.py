"""`hypergpu report`: a run as one page."""

from pathlib import Path
from typing import Annotated

import typer

from hypergpu.cli.running import AsJson
from hypergpu.common import strict_json
from hypergpu.common.latest import LATEST, RUNS, find_run
from hypergpu.report import write_report
from hypergpu.show import say


def report(
    run_dir: Annotated[
        Path, typer.Argument(metavar="[RUN_DIR]", help="Where the run is kept; the newest by default.")
    ] = RUNS / LATEST,
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="A run to compare it with, such as one without adaptation.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="RUN_DIR/report.html by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of a run, finished or not: one HTML page that needs nothing else.

    Example: hypergpu report runs/first --baseline runs/fixed --out first.html
    """
    written = write_report(find_run(run_dir), out=out, baseline=baseline and find_run(baseline))
    say(strict_json.dumps(written.record(), indent=2) if as_json else written.path)
