"""Rehearsals of a run that is itself in virtual time."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Final

from hypergpu.common.errors import HyperGPUError
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.coordinator.core.adaptation.copies import packed
from hypergpu.coordinator.core.adaptation.orchestrator import AdaptiveOrchestrator
from hypergpu.coordinator.core.rehearsal import RehearsalRequest, RehearsalResult, Worth, WorthSource
from hypergpu.simulation.convergence import Convergence
from hypergpu.simulation.fork.state import read_state
from hypergpu.simulation.rehearsal.forecasts import Rehearsal
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario

_START_SECONDS: Final = 1.5
"""CPU time of a real rehearsal until it begins: the start of its process."""
_NODE_ROUND_SECONDS: Final = 0.0006
"""CPU time of a node's round in a rehearsal, measured on small models: the same on each machine, so that runs are."""
_FORK_RUNS: Final = 24
"""Runs of the window that fit the links of a fork."""


def simulate_with_rehearsals(scenario: Scenario, out: Path | None = None, **options: Any) -> Outcome:
    """Run a scenario as `simulate` does; with policy `rehearsed`, carry its rehearsals out.

    The result of a rehearsal arrives after the time that it would have taken. No run of a rehearsal has rehearsals.

    Raises:
        InvalidInput: the task or the events do not hold.
    """
    if scenario.config.orchestrator.policy is not AdaptationPolicy.REHEARSED:
        return simulate(scenario, out, **options)
    rehearse = partial(rehearsed, curve=scenario.learning_curve() if scenario.learning == "model" else None)
    if out is not None:
        return simulate(scenario, out, rehearse=rehearse, **options)
    with tempfile.TemporaryDirectory(prefix="hypergpu-") as directory:  # a fork reads the files of the run
        return simulate(scenario, Path(directory) / "run", rehearse=rehearse, **options)


def rehearsed(
    run_dir: Path,
    orchestrator: AdaptiveOrchestrator,
    request: RehearsalRequest,
    *,
    curve: Convergence | None = None,
) -> RehearsalResult:
    """Return the result of a rehearsal from the state of the run in a directory.

    Args:
        run_dir: directory of the run.
        orchestrator: its adaptation, which is left alone.
        request: what to rehearse.
        curve: the curve by which the run learns, if it is a modelled one.
    """
    try:
        state, worth = read_state(run_dir, request.window, request.round), worth_of(request, curve)
        rehearsal = Rehearsal(state, packed(orchestrator), request, worth)
        found = rehearsal.forecasts()
    except HyperGPUError as error:
        return RehearsalResult(request.number, _START_SECONDS, fault=str(error))
    rounds = _FORK_RUNS * len(state.rows) + rehearsal.runs * request.rounds
    return RehearsalResult(
        request.number, _START_SECONDS + _NODE_ROUND_SECONDS * rounds * len(state.nodes), worth, found
    )


def worth_of(request: RehearsalRequest, curve: Convergence | None) -> Worth:
    """Return the figures by which rounds are valued: those of the run's updates, else of the curve, if there is one."""
    if curve is None or request.worth.source is WorthSource.UPDATE_NORMS:
        return request.worth
    return Worth(curve.noise_scale, curve.drift_steps or float("inf"), WorthSource.LEARNING_CURVE)
