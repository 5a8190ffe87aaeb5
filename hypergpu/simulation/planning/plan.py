"""Plan of a run: the simulated time, traffic and money to the target, by the setting that suits the links best.

The run itself is simulated, by the policy that would decide in it and by fixed settings.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypergpu.common.errors import InvalidInput
from hypergpu.simulation.compare import Runner
from hypergpu.simulation.planning.request import Request, scenario_of
from hypergpu.simulation.planning.settings import Setting, references, settings, spread
from hypergpu.simulation.racing import Contender, Costs, Race, Raced, runs_of
from hypergpu.simulation.run import Outcome
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.statistics import SMALLEST, Estimate, geometric_mean_of, mean_of

Runs = tuple[Setting, Sequence[Outcome]]


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one setting: means over the seeds, with intervals."""

    setting: Setting
    reached: int
    """Runs that reached the target."""
    hours: Estimate
    bytes: float | None
    """Bytes on all links; None if no run reached the target."""
    money: Estimate
    rounds: float | None
    against: Estimate
    """Cost over that of the reference: geometric mean of the pairs in which both reached the target."""
    won: int
    """Pairs in which it cost less than the reference, or in which the reference alone missed the target."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        static = self.setting.static
        return {
            "setting": self.setting.label,
            "policy": self.setting.variant.policy,
            "static": None if static is None else str(static),
            "nodes": list(self.setting.nodes),
            "reached": self.reached,
            "hours": self.hours.to_dict(),
            "bytes": self.bytes,
            "money": self.money.to_dict(),
            "rounds": self.rounds,
            "against_reference": self.against.to_dict(),
            "won_pairs": self.won,
        }


@dataclass(frozen=True)
class Plan:
    """Outcome of planning."""

    request: Request
    scenario: Scenario
    """Scenario of all nodes, as it was simulated."""
    rows: Sequence[Row]
    """Finalists, the best first, and then the references."""
    reference: Row
    """Policy that would decide by default, or without a curve the setting that was given."""
    raced: Raced[Setting]

    @property
    def best(self) -> Row:
        """Setting to take: of those that reached the target in most runs, the one with the least cost."""
        return min(self.rows, key=lambda row: (-row.reached, self._cost(row)))

    def _cost(self, row: Row) -> float:
        mean = (row.money if self.request.by_money else row.hours).mean
        return math.inf if mean is None else mean


def make_plan(
    request: Request,
    *,
    seeds: int = 5,
    candidates: int = 0,
    jobs: int = 1,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Plan:
    """Simulate the settings of a plan; return the best, and how sure that is.

    Args:
        request: nodes, model and what is to be reached.
        seeds: runs of each finalist, which are paired with those of the reference.
        candidates: most fixed settings to try; 0 = all.
        jobs: processes to simulate in.
        progress: called with the number of runs that are done, and of all runs.

    Raises:
        ConfigError: figures of a curve that make no sense.
        InvalidInput: a target that the curve does not reach.
    """
    scenario = scenario_of(request)
    _require_reachable(request, scenario)
    tried = spread(settings(request, scenario), candidates)
    compared_with = list(references(request))
    with Runner(jobs, None, progress) as runner:
        runner.expect(runs_of(len(tried), len(compared_with), seeds))
        raced = Race[Setting](scenario, runner.run, _costs(request)).run(tried, compared_with, seeds)
    rows = [_row(request, runs, raced.references[0]) for runs in (*raced.finalists, *raced.references)]
    return Plan(request, scenario, rows, rows[len(raced.finalists)], raced)


def _require_reachable(request: Request, scenario: Scenario) -> None:
    curve, limit = request.curve, scenario.learning_curve().metric_limit  # an error here names the constant
    if curve is None or limit is None or curve.metric.gain(limit, curve.target) > 0:
        return
    raise InvalidInput(
        f"the curve of {curve.name} ends at {curve.metric.label(limit)} and never reaches "
        f"{curve.metric.text(curve.target)}: take a --target before that"
    )


def _costs(request: Request) -> Costs:
    def time(outcome: Outcome) -> float | None:
        seconds = outcome.time_to_target_seconds
        return None if seconds is None else request.share(outcome) * seconds

    def per_second(candidate: Contender) -> float:
        return request.price_per_hour(candidate.nodes) / 3600 if isinstance(candidate, Setting) else 0.0

    def traffic(outcome: Outcome) -> float:
        return request.price_per_gb * request.share(outcome) * outcome.bytes / 1e9

    return Costs(time, per_second, traffic) if request.by_money else Costs(time)


def _row(request: Request, runs: Runs, reference: Runs) -> Row:
    setting, outcomes = runs
    costs, rate = _costs(request), request.price_per_hour(setting.nodes)
    done = [(outcome, seconds) for outcome in outcomes if (seconds := costs.time(outcome)) is not None]
    hours = [request.scale * seconds / 3600 for _, seconds in done]
    traffic = [request.scale * request.share(outcome) * outcome.bytes for outcome, _ in done]
    rounds = [request.scale * request.share(outcome) * outcome.rounds for outcome, _ in done]
    money = [rate * time + request.price_per_gb * each / 1e9 for time, each in zip(hours, traffic, strict=True)]
    pairs = [
        (costs.of(setting, ours), costs.of(reference[0], theirs))
        for ours, theirs in zip(outcomes, reference[1], strict=True)
    ]
    both = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    alone = sum(ours is not None and theirs is None for ours, theirs in pairs)
    return Row(
        setting,
        len(done),
        mean_of(hours),
        mean_of(traffic).mean,
        mean_of(money),
        mean_of(rounds).mean,
        geometric_mean_of([ours / max(theirs, SMALLEST) for ours, theirs in both]),
        alone + sum(ours < theirs for ours, theirs in both),
    )


def yaml_of(plan: Plan, row: Row) -> dict[str, Any]:
    """Return the settings of a row, as a configuration file has them, beside the configuration that was planned."""
    plain = plan.scenario.config
    chosen = row.setting.of(plan.scenario, plan.request.seed).config
    training = {"local_steps": chosen.training.local_steps, "batch_size": chosen.training.batch_size}
    found: dict[str, Any] = {"orchestrator": {"policy": str(chosen.orchestrator.policy)}, "training": training}
    if chosen.compression != plain.compression:
        found["compression"] = {
            "strategy": str(chosen.compression.strategy),
            "update_codec": chosen.compression.update_codec,
            "parameters_codec": chosen.compression.parameters_codec,
        }
    if chosen.transfers != plain.transfers:
        found["transfers"] = {"connections": chosen.transfers.connections}
    return found
