"""MLflow: a run in an experiment of a tracking server or a database."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from hypergpu.outlets.outlet import Beginning, Ending, Round

for _name, _value in {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # a server that is gone is tried again with the next delivery
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow.entities import Metric, Param, RunTag  # noqa: E402  (it reads the variables)
from mlflow.tracking import MlflowClient  # noqa: E402

EXPERIMENT: Final = "hypergpu"
"""Experiment of all runs; MLflow's own variable MLFLOW_EXPERIMENT_NAME names another."""
_MARK: Final = "round"
"""Metric whose newest value is the last round that is held whole: it is written last."""
_FOREIGN: Final = re.compile(r"[^\w\-. :/]", re.ASCII)
_LONGEST_NAME: Final = 250
_LONGEST_VALUE: Final = 500
_MOST_METRICS: Final = 1000
_MOST_PARAMS: Final = 100
_STATUS: Final = {"completed": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}

Item = TypeVar("Item")


class MlflowOutlet:
    """A run in an experiment.

    Args:
        target: Tracking URI, such as `http://mlflow:5000` or `sqlite:///mlflow.db`.
    """

    def __init__(self, target: str) -> None:
        self._client = MlflowClient(target)
        self._id = ""
        self._started_at = 0.0

    def open(self, run: Beginning) -> tuple[str, int]:
        """Begin a run, or go on with the one that there is, after the last round that it holds."""
        self._started_at = run.started_at
        self._id = run.id or self._new_run(run)
        self._client.update_run(self._id, status="RUNNING")
        held = self._client.get_run(self._id).data.metrics.get(_MARK, 0.0)
        return self._id, int(held)

    def round(self, closed: Round) -> None:
        """Write the figures. MLflow keeps one of two that are equal, so a round that is repeated shows once."""
        at = self._milliseconds(closed.seconds)
        metrics = [Metric(_name_of(name), value, at, closed.number) for name, value in closed.figures.items()]
        for part in _parts([*metrics, Metric(_MARK, closed.number, at, closed.number)], _MOST_METRICS):
            self._client.log_batch(self._id, metrics=part)

    def flush(self) -> None:
        """Do nothing: a call returns when its data is stored."""

    def end(self, ending: Ending) -> None:
        """Write the final figures as metrics, the records as artifacts, and the state."""
        at = self._milliseconds(ending.figures.get("duration_seconds", 0.0))
        figures = [Metric(_name_of(f"result/{name}"), value, at, 0) for name, value in ending.figures.items()]
        tags = [RunTag("hypergpu.state", ending.state), RunTag("hypergpu.reason", ending.reason)]
        self._client.log_batch(self._id, metrics=figures[:_MOST_METRICS], tags=tags)
        for file in ending.files:
            self._client.log_artifact(self._id, str(file))
        if (status := _STATUS.get(ending.state)) is not None:
            self._client.set_terminated(self._id, status, end_time=at)

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _new_run(self, run: Beginning) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
        at = self._milliseconds(0.0)
        made: str = self._client.create_run(experiment, start_time=at, run_name=run.name).info.run_id
        texts = {_name_of(name): str(value)[:_LONGEST_VALUE] for name, value in run.settings.items()}
        for part in _parts([Param(name, text) for name, text in texts.items()], _MOST_PARAMS):
            self._client.log_batch(made, params=part)
        return made

    def _milliseconds(self, seconds: float) -> int:
        """Return a time of the run as MLflow counts it."""
        return round((self._started_at + seconds) * 1000)


def _name_of(name: str) -> str:
    """Return a name that MLflow takes. What it does not take, as a node may have in its name, becomes `_`."""
    return _FOREIGN.sub("_", name)[:_LONGEST_NAME]


def _parts(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    for at in range(0, len(items), most):
        yield items[at : at + most]
