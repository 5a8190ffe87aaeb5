"""Repetition of a real run in virtual time, with its measured compute times: once with its policy, once without."""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hypergpu.common.config import SystemConfig, load_config
from hypergpu.simulation.calibration import calibrate
from hypergpu.simulation.compare import target_of
from hypergpu.simulation.comparison import Comparison, Result, compared
from hypergpu.simulation.compute import read_rounds
from hypergpu.simulation.rehearsal.inline import simulate_with_rehearsals
from hypergpu.simulation.replay import replay
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.variants import BASELINE, Variant


def scenario_of_run(run_dir: Path, links: Mapping[str, str], events: Iterable[Mapping[str, Any]] = ()) -> Scenario:
    """Return the scenario of a run that a coordinator left in `run_dir`.

    Args:
        run_dir: holds the configuration and the rounds.
        links: the profile of each node's link.
        events: what happened to links, as in a scenario file: type, node, round or at_seconds, …

    Raises:
        ConfigError: the directory holds no configuration.
    """
    config = load_config(SystemConfig, run_dir / "config.yaml")
    nodes = [{"id": node, "profile": profile} for node, profile in links.items()]
    # `config` carries the task, rounds and policy; what is given here is what the coordinator did not know.
    # A run without an end is simulated as far as it went.
    rounds = config.training.rounds or max((int(row["round"]) for row in read_rounds(run_dir)), default=1)
    tree = {
        "name": run_dir.name,
        "rounds": rounds,
        "nodes": nodes,
        "seed": config.training.seed,
        "config": config,
        "events": list(events),
        "loss_model": "rpc",  # the proxy's default
    }
    return Scenario.model_validate(tree)


def compare_with_baseline(
    run_dir: Path,
    links: Mapping[str, str],
    events: Iterable[Mapping[str, Any]] = (),
    *,
    target_accuracy: float | None = None,
    out: Path | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Comparison:
    """Compare a real run's policy with the fixed baseline, both in virtual time on its calibrated machine.

    Args:
        run_dir: directory of the real run.
        links: profile of each node's link, by node id.
        events: network events of the run, as `scenario_of_run` takes them.
        target_accuracy: value whose time is measured; by default the task's own, or what of it the run reached.
        out: directory for both simulated runs, each under its policy's name; nothing is kept without it.
        progress: called with the number of simulated rounds and of all rounds.

    Raises:
        InvalidInput: the run finished no round.
    """
    scenario = scenario_of_run(run_dir, links, events)
    calibration = calibrate(run_dir, scenario)
    rows = read_rounds(run_dir)
    own = target_accuracy if target_accuracy is not None else target_of(scenario)
    steps = _Steps(4 * len(rows), progress)  # two replays, then one run by each policy
    with tempfile.TemporaryDirectory(prefix="hypergpu-") as directory:
        handling_seconds, _ = replay(scenario, calibration, rows, Path(directory), progress=steps.round_begins)
    scenario = calibration.of(scenario, handling_seconds).changed(target_accuracy=own)
    results = []
    for variant in (Variant(BASELINE), Variant(scenario.config.orchestrator.policy)):
        kept = out and out / variant.policy
        run = variant.of(scenario, scenario.seed)
        outcome = simulate_with_rehearsals(run, kept, compute=calibration.compute, progress=steps.round_begins)
        results.append(Result(variant, [outcome]))
    steps.done()
    return compared(scenario, [scenario.seed], own, results[:1], results[1:])


class _Steps:
    """Counts the rounds of several simulations as one progress."""

    def __init__(self, total: int, progress: Callable[[int, int], None]) -> None:
        self._total, self._progress, self._begun = total, progress, 0
        progress(0, total)

    def round_begins(self, number: int) -> None:
        """Report that a round of one run begins; the one before is done. An abandoned round begins again."""
        del number
        self._begun += 1
        self._progress(min(self._begun - 1, self._total), self._total)

    def done(self) -> None:
        """Note that all simulations are over."""
        self._progress(self._total, self._total)
