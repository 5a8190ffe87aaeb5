"""Result of a run, real or simulated, with its records as flat rows for pandas and the like."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hypergpu.common.metric import LOSS, MetricSpec
from hypergpu.report.model import Event, NodeRound, Round, Run
from hypergpu.report.run import read_run

Row = dict[str, float | int | str | bool | None]
"""Row of a table: every value is a number, a text or None."""


@dataclass(frozen=True, repr=False)
class RunResult:
    """Result of a run. Times are seconds since its first round began, virtual ones in a simulation."""

    record: Run
    """Everything that the files of the run say."""
    run_dir: Path | None = None
    """Directory of the run; None if it was not kept."""
    given_up: str = ""
    """Reason for which a simulated run was ended without progress; empty if it came to its end."""

    @classmethod
    def of(cls, run_dir: str | Path) -> "RunResult":
        """Return the result in the directory of a run.

        Raises:
            InvalidInput: the directory holds no run.
        """
        return cls(read_run(Path(run_dir)), Path(run_dir))

    @property
    def state(self) -> str:
        """Final state: completed, stopped, interrupted or unfinished."""
        return self.record.state

    @property
    def policy(self) -> str:
        """Adaptation policy."""
        return self.record.policy

    @property
    def rounds(self) -> int:
        """Number of closed rounds."""
        return len(self.record.rounds)

    @property
    def seconds(self) -> float:
        """Time from the beginning of the first round to the end of the last."""
        return self.record.course.seconds

    @property
    def metric(self) -> MetricSpec:
        """Main metric: its name and direction."""
        return self.record.metric

    @property
    def final_loss(self) -> float | None:
        """Loss of the final model on held-out data."""
        return self.record.final[0]

    @property
    def final_metric(self) -> float | None:
        """Metric of the final model on held-out data; None if it is undefined."""
        return self.record.final[1]

    @property
    def best_metric(self) -> float | None:
        """Best value of the metric after any round."""
        return self.record.course.best(self.metric)

    @property
    def target(self) -> float | None:
        """Value of the metric whose time is measured; None if the run has none."""
        return self.record.target

    @property
    def time_to_target_seconds(self) -> float | None:
        """Time until the target was first reached; None if it never was."""
        return None if self.target is None else self.record.course.time_to(self.metric, self.target)

    @property
    def model_file(self) -> Path | None:
        """File of the final model, in the format safetensors; None if there is none, as in a simulation."""
        file = None if self.run_dir is None else self.run_dir / "model.safetensors"
        return file if file is not None and file.is_file() else None

    def round_rows(self) -> list[Row]:
        """Return a row for each closed round: times, loss, metrics, samples, numbers of nodes, and bytes."""
        return [_round_row(each, self.metric) for each in self.record.rounds]

    def node_round_rows(self) -> list[Row]:
        """Return a row for each node in each round that it was selected for."""
        return [_node_round_row(closed, node) for closed in self.record.rounds for node in closed.nodes]

    def node_rows(self) -> list[Row]:
        """Return a row for each node, with its state at the end."""
        return [dict(each) for each in self.record.nodes]

    def event_rows(self) -> list[Row]:
        """Return a row for each event and decision, with its reason; its figures are columns `figures.NAME`."""
        return [_event_row(each) for each in self.record.events]

    def __repr__(self) -> str:
        kept = "" if self.run_dir is None else f", run_dir={str(self.run_dir)!r}"
        return (
            f"RunResult(state={self.state!r}, rounds={self.rounds}, seconds={self.seconds:.4g}, "
            f"{self.metric.name}={self.metric.text(self.final_metric)!r}{kept})"
        )


def _round_row(closed: Round, metric: MetricSpec) -> Row:
    row: Row = {
        "round": closed.number,
        "ended_seconds": closed.ended_at,
        "seconds": closed.seconds,
        "reason": closed.reason,
        "loss": closed.loss,
    }
    if metric != LOSS:
        row[metric.name] = closed.metric
    return row | {
        "train_loss": closed.train_loss,
        **closed.others,
        "samples": _whole(closed.samples),
        "contributors": sum(node.success for node in closed.nodes),
        "missing": sum(not node.success for node in closed.nodes),
        "bytes_down": sum(each.down for each in closed.traffic.values()),
        "bytes_up": sum(each.up for each in closed.traffic.values()),
    }


def _node_round_row(closed: Round, node: NodeRound) -> Row:
    traffic = closed.traffic.get(node.node)
    return {
        "round": closed.number,
        "node_id": node.node,
        "contributed": node.success,
        "batch_size": _whole(node.batch_size),
        "compute_seconds": node.compute_seconds,
        "waiting_seconds": node.waiting_seconds,
        "upload_seconds": node.upload_seconds,
        "codecs": node.codecs,
        "noise": node.noise,
        "bytes_down": traffic.down if traffic else 0,
        "bytes_up": traffic.up if traffic else 0,
    }


def _whole(value: float | None) -> float | None:
    """Return a count as a whole number."""
    return int(value) if value is not None and value.is_integer() else value


def _event_row(event: Event) -> Row:
    return dict(_event_cells(event))


def _event_cells(event: Event) -> Iterator[tuple[str, float | int | str | bool | None]]:
    yield from (("seconds", event.at), ("round", event.round), ("kind", event.kind), ("text", event.text))
    yield from (("is_decision", event.is_decision), ("subject", event.subject), ("reason", event.reason))
    yield from ((f"figures.{name}", value) for name, value in event.figures.items())
