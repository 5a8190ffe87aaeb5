"""`hypergpu export`: write the model of a run for plain PyTorch."""

from pathlib import Path
from typing import Annotated

import typer

from hypergpu.common.command_line import PREFIX
from hypergpu.common.latest import find_run
from hypergpu.common.metric import LOSS
from hypergpu.common.options import AsJson
from hypergpu.common.text import figure
from hypergpu.console import print_json, say


def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run directory.")],
    *,
    which: Annotated[
        str, typer.Option("--round", metavar="ROUND", help="best, last, or the number of a saved round.")
    ] = "best",
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write, ending in .safetensors.")],
    as_json: AsJson = False,
) -> None:
    """Write the trained model of a run, finished or not, to one file: its state_dict, for plain PyTorch.

    Load it with `model.load_state_dict(safetensors.torch.load_file(FILE))`.

    Example: hypergpu export runs/first --round best --out model.safetensors
    """
    from hypergpu.export import export_model  # noqa: PLC0415  (it needs torch)

    exported = export_model(find_run(run_dir), which, out)
    for reason in exported.skipped:
        say(f"{PREFIX}a newer model cannot be read: {reason}", error=True)
    if as_json:
        print_json(exported.to_dict())
        return
    score = exported.score
    measured = "not evaluated"
    if score is not None:
        measured = f"loss {figure(score.loss)}"
        measured += "" if score.spec == LOSS else f", {score.spec.label(score.metric)}"
    say(f"{exported.path}: the model of round {exported.round} ({measured})")
