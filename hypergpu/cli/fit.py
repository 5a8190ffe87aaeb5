"""`hypergpu fit`: fit a convergence model to a task."""

from typing import Annotated

import typer
import yaml
from rich.text import Text

from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.metric import ACCURACY, LOSS
from hypergpu.common.options import AsJson, Seed
from hypergpu.common.task_names import choices
from hypergpu.console import PlainConsole, print_json, say


def fit(
    task: Annotated[str, typer.Argument(metavar="TASK", help=f"Task: {choices()}.")] = "digits",
    *,
    rounds: Annotated[
        int, typer.Option(min=5, max=LARGEST_COUNT, metavar="N", help="Rounds of each of the six runs.")
    ] = 60,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit a convergence model to real runs of a task, and print it as YAML for a scenario with `learning: model`.

    Example: hypergpu fit digits --rounds 60
    """
    from hypergpu.simulation.fit import fit as fit_runs  # noqa: PLC0415 - torch takes seconds to import

    with PlainConsole(stderr=True).status(Text(f"loading {task}")) as status:
        fitted = fit_runs(task, rounds, seed, status.update)
    known = {name: value for name, value in fitted.model if value is not None}
    constants = {name: float(f"{value:.4g}") for name, value in known.items()}
    constants |= {"model_bytes": fitted.model.model_bytes}
    metric = fitted.metric.model_dump()
    if as_json:
        errors = {"loss_error": fitted.loss_error, f"{fitted.metric.name}_error": fitted.metric_error}
        print_json({"task": task, "metric": metric, "convergence": constants, **errors})
        return
    say(f"# task {task}, {rounds} rounds of each run; root mean square error: ", end="")
    beside = "" if fitted.metric_error is None else f", {fitted.metric_error:.4g} of {fitted.metric.name}"
    say(f"{fitted.loss_error:.3f} of log loss{beside}")
    tree = {"convergence": constants} | ({} if fitted.metric in (ACCURACY, LOSS) else {"metric": metric})
    say(yaml.safe_dump(tree, sort_keys=False), end="")
