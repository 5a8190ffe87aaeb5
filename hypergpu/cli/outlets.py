"""`hypergpu outlets`: deliver a run to TensorBoard and the like."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.common.config import OutletsConfig
from hypergpu.common.config.loading import parse
from hypergpu.common.errors import HyperGPUError, InvalidInput, StorageError
from hypergpu.common.extras import require_extra
from hypergpu.common.latest import find_run
from hypergpu.console import say
from hypergpu.coordinator.run_dir import ROUNDS


def outlets(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run directory.")],
    *,
    tensorboard: Annotated[
        str, typer.Option(metavar="DIR|true", help="TensorBoard: directory of runs, or true for one in RUN_DIR.")
    ] = "",
    mlflow: Annotated[str, typer.Option(metavar="URI", help="MLflow: tracking URI, such as sqlite:///mlflow.db.")] = "",
    wandb: Annotated[str, typer.Option(metavar="offline|online", help="Weights & Biases, online or in RUN_DIR.")] = "",
) -> None:
    """Deliver a run to other programs that show it: one that has ended, a simulated one, or the rest of one.

    Rounds that a program holds already are not written to it again.

    Example: hypergpu outlets runs/first --tensorboard runs/tensorboard
    """
    targets = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}
    chosen = parse(OutletsConfig, targets, "outlets").chosen
    found = find_run(run_dir)
    if not chosen:
        raise InvalidInput("choose an outlet, such as --tensorboard DIR")
    if not (found / ROUNDS).is_file():
        raise InvalidInput(f"{found} holds no run: there is no {ROUNDS} in it")
    for module in chosen:
        require_extra(module)
    _deliver(found, chosen)


def _deliver(run_dir: Path, chosen: Mapping[str, str]) -> None:
    from hypergpu.outlets.delivery import Delivery, fault_of, maker_of  # noqa: PLC0415  (the libraries are slow)

    for name, target in chosen.items():
        with closing(Delivery(run_dir, name, target, maker_of(name))) as delivery:
            try:
                delivery.end()
            except HyperGPUError:
                raise
            except Exception as error:
                raise StorageError(f"{name} does not take the run: {fault_of(error)}") from error
            place = delivery.place
            assert place is not None
            say(f"{name}: {place.round} rounds of {run_dir} in {place.id}")
