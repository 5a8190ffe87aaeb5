"""Fragments and overlap on transatlantic links, in virtual time: utilisation, bytes, and time to a target.

    python benchmarks/fragments.py --tables links,product --seeds 1
    python benchmarks/fragments.py --tables learning --seeds 1

`links` and `product` run the scenario `transatlantic` with a modelled task of 44 MB, of which 2,000 local steps apart
lose half of their worth. `links` has the policy `none`, an A100 in each node, updates in int4 and parameters in int8:
only the way in which rounds are built differs. `product` has the cards of the scenario and the policy `reactive`, which
chooses batches, local steps and codecs. `learning` has real gradients of a residual perceptron (327 kB, ten layers) by
DiLoCo's optimizers, float32, on the same links, thinned so that its transfers take as long as those of 44 MB; its runs
end at their target. `H` is the local steps of a round: a fragment is merged after P rounds, and with P = 1 the row is
plain DiLoCo. A step of 32 samples takes an A100 20 ms. Utilisation is Σ compute seconds ÷ Σ node seconds over all
rounds, bytes are those until the target. A row is the geometric mean of the seconds to the target, and the mean of all
else, over the seeds.
"""

import argparse
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, geometric_mean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from hypergpu.common.config.loading import parse
from hypergpu.netsim_proxy.link.profiles import find_profile
from hypergpu.node.cgroup import usable_cpus
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.scenario_file import load_scenario
from hypergpu.tasks import Task

MODEL_BYTES = 44_000_000
COMPUTE = {"seconds_per_step": 0.004, "seconds_per_sample": 0.0005}
WIDTH, BLOCKS = 96, 8
VARIANTS = {
    "links": "1/400 1/1600 4/400 4/400/overlap 8/200 8/200/overlap",
    "product": "1/400 1/800 1/1600 4/400 4/400/overlap 8/400 8/400/overlap",
}
LEARNING = (
    "1/50 1/100 1/200 1/400 1/800 4/50 4/50/overlap 4/100 4/100/overlap 4/200/overlap "
    "8/50 8/50/overlap 8/100/overlap 8/200/overlap"
)


class Case(NamedTuple):
    """One run."""

    table: str
    fragments: int
    local_steps: int
    overlap: bool
    codec: str
    seed: int


class Found(NamedTuple):
    """Results of one run."""

    utilisation: float
    megabytes: float
    """Bytes over all links until the target, or to the end."""
    seconds: float | None
    """Until the target was reached."""
    best: float
    rounds: int
    round_seconds: float


def residual() -> Task:
    """Return the digits task with a model of ten layers of nearly equal size."""
    import torch  # noqa: PLC0415  (of the processes that train)
    from torch import nn  # noqa: PLC0415

    from hypergpu.tasks.digits import read_images  # noqa: PLC0415

    class Block(nn.Module):
        """One layer around which its input passes."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Return x + relu(Wx + b)."""
            return x + torch.relu(self.linear(x))

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(64, WIDTH), *(Block() for _ in range(BLOCKS)), nn.Linear(WIDTH, 10))

    train, test = read_images()
    return Task(model=model, train=train, test=test, name="residual", target=0.97)


@cache
def model_bytes() -> int:
    """Return the size of the model of `residual`."""
    return 4 * (64 * WIDTH + WIDTH + BLOCKS * (WIDTH + 1) * WIDTH + 10 * (WIDTH + 1))


def scenario_of(case: Case, rounds: int) -> Scenario:
    """Return the scenario of a run."""
    training: dict[str, Any] = {
        "fragments": case.fragments,
        "overlap": case.overlap,
        "local_steps": case.local_steps,
        "batch_size": 32,
    }
    config: dict[str, Any] = {"training": training, "compression": {"strategy": "adaptive"}}
    base = load_scenario("transatlantic").changed(seed=case.seed)
    tree: dict[str, Any] = base.model_dump(exclude_unset=True, include={"region", "loss_model"})
    tree |= {"name": "fragments", "seed": case.seed, "rounds": rounds, "compute": COMPUTE, "target_accuracy": 0.98}
    nodes = [group.model_dump(exclude_unset=True) for group in base.nodes]
    if case.table != "learning":
        training["learning_rate"] = 0.05
        learns = {
            "learning": "model",
            "task": "digits",
            "convergence": {"model_bytes": MODEL_BYTES, "drift_steps": 2000},
        }
        tree |= {**learns, "policy": "reactive", "nodes": nodes}
        if case.table == "links":
            tree |= {"policy": "none", "nodes": [{**group, "gpu": "A100"} for group in nodes]}
            config["compression"] = {"strategy": "fixed", "update_codec": "int4", "parameters_codec": "int8"}
    else:
        training["recipe"] = "diloco"
        config["compression"] = {"strategy": "none"}
        if case.codec != "none":
            config["compression"] = {"strategy": "fixed", "update_codec": case.codec, "parameters_codec": "int8"}
        thinned = [{**group, "gpu": "A100", "profile": _thin_names(group["profile"])} for group in nodes]
        tree |= {"task": "fragments:residual", "policy": "none", "nodes": thinned, "profiles": _thin_profiles()}
    scenario = parse(Scenario, tree | {"config": config}, where="fragments")
    return scenario.until_target() if case.table == "learning" else scenario


def _thin_names(profile: Any) -> Any:
    return f"thin-{profile}" if isinstance(profile, str) else [f"thin-{each}" for each in profile]


def _thin_profiles() -> dict[str, Any]:
    """Return the profiles of the scenario with bandwidths that are as much smaller as the model is."""

    def thin(name: str) -> dict[str, Any]:
        profile, factor = find_profile(name), model_bytes() / MODEL_BYTES
        directions = {"up": profile.up, "down": profile.down}
        return {"based_on": name} | {
            key: {"bandwidth_mbit": path.bandwidth_mbit * factor} for key, path in directions.items()
        }

    return {f"thin-{name}": thin(name) for name in ("perfect", "cable", "dsl")}


def run(case: Case, rounds: int) -> Found:
    """Return what a run reached."""
    with TemporaryDirectory() as folder:
        outcome = simulate(scenario_of(case, rounds), Path(folder))
        rows = [json.loads(line) for line in (Path(folder) / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    target, metric = outcome.target, outcome.metric
    reached = next((n for n, (_, value) in enumerate(outcome.course) if target and metric.reached(value, target)), None)
    counted = rows if reached is None else rows[: reached + 1]
    moved = sum(sum(row[key].values()) for row in counted for key in ("bytes_up", "bytes_down"))
    node_seconds = sum(row["seconds"] * len(row["codec"]) for row in rows)
    computed = sum(sum(row["compute_seconds"].values()) for row in rows)
    return Found(
        computed / node_seconds,
        moved / 1e6,
        outcome.time_to_target_seconds,
        outcome.best_metric or math.nan,
        len(counted),
        fmean(row["seconds"] for row in rows),
    )


def row_of(runs: Sequence[Found]) -> str:
    """Return the figures of the runs of a variant."""
    times = [each.seconds for each in runs if each.seconds is not None]
    seconds = geometric_mean(times) if times else math.nan
    figures = f"{fmean(each.utilisation for each in runs):>12.1%} {fmean(each.round_seconds for each in runs):>9.2f}"
    figures += f" {fmean(each.rounds for each in runs):>7.1f} {fmean(each.megabytes for each in runs):>9.1f}"
    return figures + f" {seconds:>9.1f} {len(runs) - len(times):>6} {fmean(each.best for each in runs):>7.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="links,product,learning", metavar="A,B")
    parser.add_argument(
        "--variants", default="", metavar="P/H[/overlap] …", help="fragments and local steps of a round"
    )
    parser.add_argument("--codec", default="none", metavar="NAME", help="codec of the updates of `learning`")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds per variant")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="rounds of the other runs")
    parser.add_argument("--steps", type=int, default=3200, metavar="N", help="local steps of a run of `learning`")
    options = parser.parse_args()
    for table in options.tables.split(","):
        variants = (options.variants or VARIANTS.get(table, LEARNING)).split()
        cases = [
            Case(table, int(parts[0]), int(parts[1]), len(parts) > 2, options.codec, seed)
            for parts, seed in product((each.split("/") for each in variants), range(options.seeds))
        ]
        rounds = [options.steps // case.local_steps if table == "learning" else options.rounds for case in cases]
        with ProcessPoolExecutor(usable_cpus(), mp_context=get_context("spawn")) as pool:
            found = dict(zip(cases, pool.map(run, cases, rounds), strict=True))
        print(f"{table:<9} {'P':>2} {'H':>5} {'overlap':>8} {'utilisation':>12} {'s/round':>9} {'rounds':>7}", end=" ")
        print(f"{'MB':>9} {'seconds':>9} {'missed':>6} {'best':>7}")
        for case in cases[:: options.seeds]:
            overlap = "overlap" if case.overlap else ""
            runs = [each for other, each in found.items() if other[:-1] == case[:-1]]
            print(f"{table:<9} {case.fragments:>2} {case.local_steps:>5} {overlap:>8} {row_of(runs)}")


if __name__ == "__main__":
    main()
