"""`hypergpu plan`: predict hours, bytes and money of a run, and the best setting for its links."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from hypergpu.cli.estimates import interval
from hypergpu.common.errors import ConfigError, InvalidInput, UnknownName
from hypergpu.common.files import read_text
from hypergpu.common.limits import LARGEST_COUNT
from hypergpu.common.options import FLAG, AsJson, Seed
from hypergpu.common.text import UNKNOWN, counted, duration, figure, parse_size, size
from hypergpu.console import new_table, print_json, print_table, progress_bar, say
from hypergpu.netsim_proxy.config.yaml_text import parse_yaml
from hypergpu.node.cgroup import usable_cpus
from hypergpu.simulation.compare import target_of
from hypergpu.simulation.convergence import FITTED
from hypergpu.simulation.planning.curve_file import CurveFile
from hypergpu.simulation.planning.links_file import load_links
from hypergpu.simulation.planning.plan import Plan, Row, make_plan, yaml_of
from hypergpu.simulation.planning.request import ROUNDS_OF_WORK, Curve, Request
from hypergpu.simulation.scenario import Scenario

ModelBytes = Annotated[
    str, typer.Option("--model-bytes", metavar="SIZE", help="Size of the model in float32, as in 44MB.")
]
LinksFile = Annotated[
    Path,
    typer.Option(metavar="FILE", help="CSV: name,rtt_ms,jitter_ms,loss,up_mbit,down_mbit,step_seconds,price_per_hour."),
]
TaskName = Annotated[
    str, typer.Option(metavar="NAME", help=f"Task that the model learns as fast as: {', '.join(FITTED)}.")
]
CurveName = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Learning curve of your task: YAML as `hypergpu fit` prints it.")
]
Target = Annotated[
    float | None, typer.Option(metavar="NUMBER", help="Value of the metric to reach; by default that of the task.")
]
Price = Annotated[
    float, typer.Option(min=0, max=1e9, metavar="AMOUNT", help="Price of a node's hour, where the file has none.")
]
PricePerGb = Annotated[float, typer.Option(min=0, max=1e9, metavar="AMOUNT", help="Price of 10⁹ bytes on any link.")]
Cheapest = Annotated[bool, typer.Option("--cheapest", metavar=FLAG, help="Look for the least money, not time.")]
BatchSize = Annotated[
    int, typer.Option(min=1, max=LARGEST_COUNT, metavar="N", help="Batch to which the step times belong.")
]
LocalSteps = Annotated[
    int, typer.Option(min=1, max=LARGEST_COUNT, metavar="N", help="Local steps; with a curve, others are tried too.")
]
Seeds = Annotated[
    int, typer.Option(min=1, max=1000, metavar="N", help="Runs of each finalist; runs of one seed form a pair.")
]
Candidates = Annotated[
    int, typer.Option(min=0, max=10_000, metavar="N", help="Most fixed settings to try; 0 = all of the grid.")
]
Jobs = Annotated[
    int | None, typer.Option(min=1, max=1024, metavar="N", help="Number of processes; by default one per CPU.")
]


def plan(
    *,
    model_bytes: ModelBytes,
    links: LinksFile,
    task: TaskName = "",
    curve: CurveName = None,
    target: Target = None,
    price: Price = 0.0,
    price_per_gb: PricePerGb = 0.0,
    cheapest: Cheapest = False,
    batch_size: BatchSize = 64,
    local_steps: LocalSteps = 10,
    seeds: Seeds = 5,
    candidates: Candidates = 0,
    seed: Seed = 0,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Plan a run before it is paid for: hours, bytes and money, and the best setting for its links.

    Codec, connections, local steps, fragments and the nodes to use are tried in simulated runs; those that can no
    longer win are cut off. With --task or --curve, times are to the target; without, they are for the work of a
    thousand rounds. The exit code is 1 if no setting reached the target.

    Example: hypergpu plan --model-bytes 44MB --links links.csv --task chars --price-per-gb 0.05
    """
    request = Request(
        load_links(links, price),
        _bytes(model_bytes),
        batch_size=batch_size,
        local_steps=local_steps,
        curve=_curve(task, curve, target),
        price_per_gb=price_per_gb,
        by_money=cheapest,
        seed=seed,
    )
    with progress_bar("runs") as progress:
        found = make_plan(request, seeds=seeds, candidates=candidates, jobs=jobs or usable_cpus(), progress=progress)
    if as_json:
        print_json(_record(found))
    else:
        _show(found)
    if not found.best.reached:
        raise typer.Exit(1)


def _bytes(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise InvalidInput(f"--model-bytes: {error}") from error


def _curve(task: str, file: Path | None, target: float | None) -> Curve | None:
    """Return the learning curve that the options name; None without one."""
    if task and file is not None:
        raise InvalidInput("give --task or --curve: each is a learning curve")
    if file is not None:
        if target is None:
            raise InvalidInput("--curve: give the value to reach with --target")
        found = parse_yaml(CurveFile, read_text(file), str(file))
        return Curve(found.convergence, target, found.metric, file.stem)
    if not task:
        if target is not None:
            raise InvalidInput("--target: a value is reached on a learning curve: give --task or --curve")
        return None
    if task not in FITTED:
        raise UnknownName("task with a learning curve", task, list(FITTED))
    wanted = (
        target if target is not None else target_of(Scenario.model_validate({"nodes": [{"id": "n"}], "task": task}))
    )
    if wanted is None:
        raise ConfigError(f"task {task!r} has no target: give --target")
    return Curve({}, wanted, name=task)


def _record(found: Plan) -> dict[str, Any]:
    request, best = found.request, found.best
    return {
        "model_bytes": request.model_bytes,
        "curve": request.curve.name if request.curve else None,
        "target": request.curve.target if request.curve else None,
        "rounds_of_work": None if request.curve else ROUNDS_OF_WORK,
        "minimized": "money" if request.by_money else "hours",
        "best": best.to_dict() | {"config": yaml_of(found, best)},
        "reference": found.reference.to_dict(),
        "settings": [row.to_dict() for row in found.rows],
        "candidates": found.raced.candidates,
        "runs": found.raced.runs,
        "seeds": list(found.raced.seeds),
        "losers": [
            {"setting": each.candidate.label, "nodes": list(each.candidate.nodes), "stage": each.stage, "why": each.why}
            for each in found.raced.losers
        ],
    }


def _show(found: Plan) -> None:
    request, best = found.request, found.best
    goal = f"the work of {ROUNDS_OF_WORK:,} rounds"
    if request.curve:
        goal = f"{request.curve.metric.label(request.curve.target)}, learning like {request.curve.name}"
    nodes = counted(len(request.nodes), "node")
    table = new_table(
        "setting", ">hours", ">transferred", ">money", ">rounds", f">against {found.reference.setting.label}", ">won",
        title=f"{nodes}, {size(request.model_bytes)}, {goal}; {counted(len(found.raced.seeds), 'seed')}, 95 %",
    )  # fmt: skip
    for row in sorted(found.rows, key=lambda each: each is not best):
        table.add_row(*_cells(row, len(found.raced.seeds), is_reference=row is found.reference))
    print_table(table)
    if not best.reached:
        say("no setting reached the target")
        return
    say(f"best: {best.setting.label}, {duration(3600 * (best.hours.mean or 0.0))}; {_how_sure(found)}")
    say(f"nodes: {', '.join(best.setting.nodes)}" + _left_out(found))
    say(f"{found.raced.candidates} settings in {counted(found.raced.runs, 'run')}; configuration of the best:")
    say(yaml.safe_dump(yaml_of(found, best), sort_keys=False), end="")
    for line in _caveats(request):
        say(f"# {line}")


def _cells(row: Row, seeds: int, *, is_reference: bool) -> list[str]:
    if not row.reached:
        return [row.setting.label, "cut off", UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]
    against = ["", ""] if is_reference else [interval(row.against), f"{row.won} of {seeds}"]
    rounds = UNKNOWN if row.rounds is None else f"{row.rounds:,.0f}"
    return [row.setting.label, interval(row.hours), size(row.bytes), figure(row.money.mean, 3), rounds, *against]


def _how_sure(found: Plan) -> str:
    """Return how sure it is that the best setting costs less than the reference."""
    best, other, count = found.best, found.reference, len(found.raced.seeds)
    if best is other:
        return f"no fixed setting was better in {counted(found.raced.candidates, 'candidate')}"
    if best.against.mean is None:
        return f"{other.setting.label} did not reach the target"
    if best.against.ci_high is None:
        return "one pair says nothing about the noise: take more --seeds"
    if best.against.ci_high < 1:
        return f"better than {other.setting.label} in {best.won} of {counted(count, 'pair')}, beyond the noise"
    return f"not surely better than {other.setting.label}: better in {best.won} of {counted(count, 'pair')}"


def _left_out(found: Plan) -> str:
    rest = [name for name in found.request.names if name not in found.best.setting.nodes]
    return f"; without {', '.join(rest)}" if rest else ""


def _caveats(request: Request) -> list[str]:
    """Return what the plan does not know."""
    if request.curve is None:
        return ["without a learning curve, local steps and batch are yours; --task or --curve ranks local steps too"]
    return ["the curve knows neither skewed data nor divergence, and has a learning rate of its own"]
