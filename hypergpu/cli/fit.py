"""`hypergpu fit`: the model of convergence of a task."""

from typing import Annotated

import typer
import yaml
from rich.console import Console

from hypergpu.cli.running import AsJson
from hypergpu.show import print_json


def fit(
    task: Annotated[str, typer.Argument(help="A shipped task, or package.module:factory.")] = "digits",
    *,
    rounds: Annotated[int, typer.Option(min=5, help="Rounds of each of the six runs.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of data and parameters.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Fit the model of convergence to real runs of a task, as YAML for a scenario with `learning: model`."""
    from hypergpu.simulation.fit import fit as fit_runs  # noqa: PLC0415 - torch takes seconds to import

    with Console(stderr=True).status(f"loading {task}") as status:
        model, loss_error, accuracy_error = fit_runs(task, rounds, seed, status.update)
    constants = {name: float(f"{value:.4g}") for name, value in model} | {"model_bytes": model.model_bytes}
    if as_json:
        print_json({"task": task, "convergence": constants, "loss_error": loss_error, "accuracy_error": accuracy_error})
        return
    print(f"# task {task}, {rounds} rounds of each run; root mean square error: ", end="")
    print(f"{loss_error:.3f} of log loss, {accuracy_error:.4f} of accuracy")
    print(yaml.safe_dump({"convergence": constants}, sort_keys=False), end="")
