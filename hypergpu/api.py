"""The Python API: train with local processes, simulate a scenario, compare policies.

`from hypergpu import run, simulate, compare` reaches it.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hypergpu.common import strict_json, task_names
from hypergpu.common.config import SystemConfig
from hypergpu.common.config.loading import load_config
from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.common.latest import RUNS, point_latest
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.dashboard import History, Snapshot
from hypergpu.demo import demo_nodes
from hypergpu.local_cluster import LocalNode
from hypergpu.local_run import Progress, run_local
from hypergpu.node.cgroup import usable_cpus
from hypergpu.results import RunResult
from hypergpu.run_apart import run_apart
from hypergpu.simulation.compare import compare as compare_scenario
from hypergpu.simulation.comparison import Comparison
from hypergpu.simulation.rehearsal.inline import simulate_with_rehearsals
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.scenario_file import load_scenario, scenario_from
from hypergpu.simulation.variants import BASELINE

if TYPE_CHECKING:
    from hypergpu.tasks import Task

Tell = Callable[[int, int], None]
"""Callback of progress: what is done, and the total."""
BASELINES = (BASELINE, "first-80")
"""Fixed settings that a comparison is against unless others are named."""


def run(
    task: "str | Callable[[], Task]",
    *,
    nodes: int | Sequence[LocalNode] = 5,
    policy: AdaptationPolicy | str | None = None,
    rounds: int = 25,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: Tell = lambda *_: None,
) -> RunResult:
    """Train a task with local processes: a coordinator, a network proxy, and nodes behind it.

    It works in a script and in a notebook. Ctrl-C ends all processes; the run so far is kept in `out`.

    Args:
        task: a shipped task, as in "digits"; your own as "package.module:factory"; or the factory itself, which must be
            a function of a module, since other processes import it.
        nodes: number of nodes, with the GPUs and links of the demo; or the nodes themselves.
        policy: adaptation policy; that of the configuration by default.
        rounds: rounds to train.
        seed: seed of parameters, samples and network.
        settings: further settings by key, as in {"training.learning_rate": 0.1}.
        out: run directory; by default runs/TIME.
        progress: called twice a second, in another thread, with the rounds that are done and all rounds.

    Raises:
        InvalidInput: a task, setting or node that can never work.
        HyperGPUError: a process did not start, or the coordinator died; the message names its log.
    """
    if not 1 <= rounds <= LARGEST_COUNT:
        raise InvalidInput(f"rounds is {rounds}; expected 1 to {LARGEST_COUNT}")
    name, search = (_known(task), None) if isinstance(task, str) else _importable(task)
    own = {"training.task": name, "training.rounds": rounds, "training.seed": seed, "orchestrator.policy": policy}
    given = {key: _text(value) for key, value in {**(settings or {}), **own}.items() if value is not None}
    load_config(SystemConfig, overrides=[f"{key}={value}" for key, value in given.items()])
    run_dir = Path(out) if out is not None else RUNS / time.strftime("%Y-%m-%d-%H%M%S")

    def look(snapshot: Snapshot, _: History) -> None:
        progress(max(snapshot.status.round - 1, 0), rounds)

    run_apart(
        partial(run_local, run_dir, _nodes(nodes), given, Progress(snapshot=look), seed=seed, import_from=search),
    )
    progress(rounds, rounds)
    return RunResult.of(run_dir)


def simulate(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    *,
    policy: AdaptationPolicy | str | None = None,
    seed: int | None = None,
    rounds: int | None = None,
    learning: Literal["real", "model"] | None = None,
    out: str | Path | None = None,
    progress: Tell = lambda *_: None,
) -> RunResult:
    """Run a scenario in virtual time, in this process: the same scenario and seed give the same result.

    Args:
        scenario: name of a shipped scenario, a YAML file, its content as a mapping, or a `Scenario`.
        policy: adaptation policy, instead of the scenario's.
        seed: seed, instead of the scenario's.
        rounds: rounds to train, instead of the scenario's.
        learning: "real" computes gradients, "model" takes a model of convergence.
        out: run directory; by default the run is not kept.
        progress: called with the rounds that are done and all rounds.

    Raises:
        ConfigError: a scenario that cannot be read, or a value that cannot be.
    """
    wanted = scenario_of(scenario, policy=policy, seed=seed, rounds=rounds, learning=learning)
    total = wanted.config.training.rounds
    tell = partial(_tell_begun, progress, total)
    if out is not None:
        outcome = simulate_with_rehearsals(wanted, Path(out), progress=tell)
        point_latest(Path(out))
        return replace(RunResult.of(out), given_up=outcome.given_up)
    with tempfile.TemporaryDirectory(prefix="hypergpu-") as directory:
        run_dir = Path(directory) / wanted.name
        outcome = simulate_with_rehearsals(wanted, run_dir, progress=tell)
        return replace(RunResult.of(run_dir), run_dir=None, given_up=outcome.given_up)


def compare(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    policies: Sequence[str] | None = None,
    *,
    baselines: Sequence[str] = BASELINES,
    strategies: Sequence[str] = (),
    oracle: bool = False,
    seeds: int = 10,
    rounds: int | None = None,
    jobs: int | None = None,
    progress: Tell = lambda *_: None,
) -> Comparison:
    """Compare policies with fixed settings, in paired runs of a scenario in virtual time.

    Args:
        scenario: as `simulate` takes it.
        policies: policies, or fixed settings as in "diloco:H=100"; by default the policy of the scenario.
        baselines: fixed settings to compare with: "none", "first-80", "static:H=40,batch=64,close=80", …
        strategies: BATCH/SELECTION, or one of both, to try each policy with.
        oracle: search for the best fixed setting, on other seeds, and compare with it too.
        seeds: runs of each; the runs of one seed form a pair.
        rounds: rounds to train, instead of the scenario's.
        jobs: processes to run them in; by default one for each CPU.
        progress: called with the runs that are done and all runs.

    Raises:
        ConfigError: a scenario that cannot be read, or a value that cannot be.
        InvalidInput: an unknown policy or setting, or nothing to compare.
    """
    if seeds < 1:
        raise InvalidInput(f"seeds is {seeds}; expected 1 or more")
    wanted = scenario_of(scenario, rounds=rounds)
    named = [policies] if isinstance(policies, str) else policies
    return compare_scenario(
        wanted,
        [str(each) for each in named] if named is not None else [_policy_of(wanted)],
        strategies,
        baselines=[baselines] if isinstance(baselines, str) else baselines,
        oracle=oracle,
        seeds=seeds,
        jobs=jobs or usable_cpus(),
        progress=progress,
    )


def scenario_of(scenario: str | Path | Mapping[str, Any] | Scenario, **changes: Any) -> Scenario:
    """Return a scenario from its name, its file or its content, with values at the top changed; None changes nothing.

    Raises:
        ConfigError: it cannot be read, or does not hold.
    """
    if isinstance(scenario, Scenario):
        found = scenario
    elif isinstance(scenario, Mapping):
        found = scenario_from(scenario)
    else:
        found = load_scenario(scenario)
    given = {key: value for key, value in changes.items() if value is not None}
    return found.changed(**given) if given else found


def _policy_of(scenario: Scenario) -> str:
    """Return the policy to compare by default: the scenario's own, or `reactive` if that is the baseline."""
    own = str(scenario.config.orchestrator.policy)
    return own if own != BASELINE else str(AdaptationPolicy.REACTIVE)


def _tell_begun(progress: Tell, total: int, number: int) -> None:
    progress(number - 1, total)


def _nodes(nodes: int | Sequence[LocalNode]) -> Sequence[LocalNode]:
    found = demo_nodes(nodes) if isinstance(nodes, int) else list(nodes)
    names = [node.node_id for node in found]
    if not names or len(set(names)) < len(names):
        raise InvalidInput(f"nodes is {nodes!r}; expected one or more nodes, each with a name of its own")
    return found


def _text(value: object) -> str:
    """Return a setting as the command line takes it."""
    return str(value) if isinstance(value, str | Path) else strict_json.dumps(value)


def _known(task: str) -> str:
    """Return the name of a task.

    Raises:
        UnknownName: there is none of that name.
    """
    if ":" not in task and task not in (*task_names.SHIPPED, *task_names.installed()):
        raise UnknownName("task", task, task_names.known())
    return task


def _importable(factory: "Callable[[], Task]") -> tuple[str, Path | None]:
    """Return a factory as "package.module:factory", and the directory from which its module is imported.

    Raises:
        InvalidInput: other processes cannot import it.
    """
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", "")
    if not module or not name or "<" in name or "." in name:
        raise InvalidInput(f"task {factory!r} is no function at the top of a module: other processes import it by name")
    if module == "__main__":
        raise InvalidInput(
            f"task {name} is defined in this script or notebook, which other processes cannot import: "
            f"put it in a file, as in my_task.py, and give 'my_task:{name}' (in a notebook, `%%writefile my_task.py`)"
        )
    file = getattr(sys.modules.get(module), "__file__", None)
    root = None if file is None else Path(file).resolve().parents[module.count(".")]
    return f"{module}:{name}", root
