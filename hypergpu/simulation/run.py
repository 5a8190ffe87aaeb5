"""Run of a scenario in virtual time, from its beginning to its end, and its outcome."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from hypergpu.common.clock import Clock
from hypergpu.common.config import SystemConfig
from hypergpu.common.metric import ACCURACY, MetricSpec
from hypergpu.common.node_terms import NodeTerms
from hypergpu.common.text import duration
from hypergpu.coordinator.core.adaptation import AdaptiveOrchestrator, build_orchestrator
from hypergpu.coordinator.core.rehearsal import RehearsalRequest, RehearsalResult
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import Adaptation
from hypergpu.coordinator.core.rounds.local_shards import make_shards
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.link_telemetry import LinkTelemetry
from hypergpu.netsim_proxy.config.scenario import cycle_value
from hypergpu.netsim_proxy.link.outcomes import Direction
from hypergpu.simulation.compute import SimulatedCards, times_of
from hypergpu.simulation.convergence import ConvergenceBackend
from hypergpu.simulation.coordinator import HeartbeatSync, SimulatedCoordinator
from hypergpu.simulation.network import ChurnProcess, Network, make_connections
from hypergpu.simulation.node import Compute, SimulatedNode, Start
from hypergpu.simulation.records import Recording
from hypergpu.simulation.scenario import Scenario
from hypergpu.simulation.stall import MOST_SECONDS, StallDetector, missing
from hypergpu.simulation.training_backend import TrainingBackend
from hypergpu.simulation.virtual_time import VirtualTime
from hypergpu.time_to_target import Course

Rehearse = Callable[[Path, AdaptiveOrchestrator, RehearsalRequest], RehearsalResult]
"""Function that carries a rehearsal out, from the files of a run and its adaptation."""


@dataclass(frozen=True, slots=True)
class GoingOn:
    """Adaptation of another run that goes on in virtual time."""

    adapt: Callable[[Clock], tuple[AdaptiveOrchestrator, Adaptation]]
    """Function that returns a copy of it with another clock, which learns of links, and what decides by it."""
    first_round: int


def simulate(
    scenario: Scenario,
    out: Path | None = None,
    *,
    compute: Compute | None = None,
    starts: Mapping[str, Start] | None = None,
    adaptation: Adaptation | None = None,
    progress: Callable[[int], None] = lambda _: None,
    rehearse: Rehearse | None = None,
    going_on: "GoingOn | None" = None,
) -> "Outcome":
    """Run a scenario in virtual time; the same scenario gives the same outcome, and the same files in `out`.

    Args:
        scenario: who trains what over which links.
        out: a directory for the run's files, as a coordinator writes them; None keeps none.
        compute: compute times, in place of those of the scenario's cards.
        starts: start of each node, in place of that of its group.
        adaptation: decides in the place of the scenario's policy.
        progress: called with the number of each round that begins.
        rehearse: carries a rehearsal out, from the files in `out`; None leaves rehearsals undone.
        going_on: an adaptation of another run that goes on in this one.

    Raises:
        InvalidInput: the task or the events do not hold.
    """
    config, learning = _prepared(scenario)
    time = VirtualTime()
    orchestrator, sync = _adaptation(config, time.clock, learning.model_bytes, adaptation, going_on)
    machine = _machine(config, sync, learning, going_on.first_round if going_on else 1)
    nodes: dict[str, SimulatedNode] = {}
    recording = Recording(scenario, machine, nodes, out)
    network = Network(scenario, time, nodes, lambda what: recording.network(what, time.now))

    def round_begins(number: int) -> None:
        network.round_begins(number)
        progress(number)

    coordinator = SimulatedCoordinator(
        time,
        machine,
        learning,
        LinkTelemetry(orchestrator),
        run_id=f"simulated-{scenario.name}-{scenario.seed}",
        recorder=recording,
        evaluation_seconds=scenario.evaluation_seconds,
        scrape_seconds=config.monitor.update_interval_seconds if config.server.scrape_nodes else math.inf,
        round_begins=round_begins,
        rehearse=None if rehearse is None else partial(_rehearsed, rehearse, recording, orchestrator),
    )
    sync.flush_heartbeats = coordinator.flush_heartbeats
    make = partial(_node_maker(scenario, config, learning, compute), api=coordinator, time=time)
    _add_nodes(nodes, scenario, time, starts, make)
    if scenario.time_limit_seconds is not None:
        time.at(scenario.time_limit_seconds, coordinator.dispatch, ev.Stop("the time limit of the scenario"))
    stall = StallDetector.of(scenario, learning.model_bytes)
    with _uncollected():
        given_up = _run_to_its_end(time, coordinator, machine, recording, stall) or recording.failure
    recording.close(time.now, coordinator.link_figures)
    return _outcome(scenario, recording, nodes, missed=network.missed, seconds=time.now, given_up=given_up)


def _run_to_its_end(
    time: VirtualTime,
    coordinator: SimulatedCoordinator,
    machine: RoundMachine,
    recording: Recording,
    stall: StallDetector,
) -> str:
    """Let time pass until the run is over; return why it was given up, or an empty string."""
    round_number, since = 0, 0.0
    while not machine.finished:
        if machine.round != round_number:
            round_number, since = machine.round, time.now
        moved, checked = recording.bytes, time.now
        time.run(stall.gives_up_at(time.now, max(recording.round_seconds, default=0.0)))
        stands = machine.round == round_number and not machine.finished
        moves = stall.is_moving(recording.bytes - moved, time.now - checked) and time.now - since < MOST_SECONDS
        if stands and not moves:
            given_up = f"no round was closed for {duration(time.now - since)}: waiting for {missing(machine)}"
            given_up += f"; {recording.trouble}" if recording.trouble else ""
            coordinator.dispatch(ev.Stop(given_up))
            return given_up
    return ""


def _node_maker(
    scenario: Scenario, config: SystemConfig, learning: TrainingBackend, compute: Compute | None
) -> Callable[..., SimulatedNode]:
    return partial(
        SimulatedNode,
        compute=compute or SimulatedCards(scenario),
        seed=scenario.seed,
        payload_bytes=cache(learning.payload_bytes),
        config=config,
        handling_seconds=scenario.handling_seconds,
    )


def _adaptation(
    config: SystemConfig, clock: Clock, model_bytes: int, adaptation: Adaptation | None, going_on: GoingOn | None
) -> tuple[AdaptiveOrchestrator, HeartbeatSync]:
    """Return what learns of links, and what decides."""
    if going_on is not None:
        orchestrator, decides = going_on.adapt(clock)
        return orchestrator, HeartbeatSync(decides)
    orchestrator = build_orchestrator(config, clock=clock, model_bytes=model_bytes)
    return orchestrator, HeartbeatSync(adaptation or orchestrator)


def _rehearsed(
    rehearse: Rehearse, recording: Recording, orchestrator: AdaptiveOrchestrator, request: RehearsalRequest
) -> RehearsalResult:
    links = LinkTelemetry(orchestrator)
    return rehearse(recording.snapshot(links.rates), orchestrator, request)


def _machine(config: SystemConfig, adaptation: Adaptation, learning: TrainingBackend, first_round: int) -> RoundMachine:
    return RoundMachine(
        config.training,
        adaptation,
        max_nodes=config.server.max_nodes,
        lost_after_seconds=config.server.lost_after_seconds,
        first_round=first_round,
        shards=make_shards(config.training, learning.samples, config.server.max_nodes),
        metric=learning.metric,
        codecs=config.compression.codecs,
        suspicion=config.aggregation.suspicion,
        measured_share=config.contribution.measured_share,
        spot_check_share=config.contribution.spot_check_share,
        secret=config.training.seed,
    )


def _add_nodes(
    nodes: dict[str, SimulatedNode],
    scenario: Scenario,
    time: VirtualTime,
    starts: Mapping[str, Start] | None,
    make: Callable[..., SimulatedNode],
) -> None:
    """Make the nodes of a scenario, and let each start when it is due."""
    connections = make_connections(scenario, time)
    for group in scenario.nodes:
        for index, name in enumerate(group.names()):
            gpu, region = cycle_value(group.gpu, index), cycle_value(group.region, index)
            start = starts[name] if starts else Start(group.join_delay_seconds, group.setup_seconds)
            info = {"gpu": gpu} | ({"region": region} if region else {})
            node = make(name, connections[name], info=info, setup_seconds=start.setup_seconds)
            node.terms = NodeTerms(group.price_per_hour, group.priority)
            begin = node.start if group.churn is None else ChurnProcess(node, group.churn, scenario.seed, time).begin
            nodes[name] = node
            time.at(start.join_delay_seconds, begin)


@dataclass(frozen=True, slots=True)
class NodeOutcome:
    """Outcome of one node."""

    node_id: str
    rounds_selected: int
    rounds_contributed: int
    late: int
    retries: int
    rpcs: int
    rpcs_lost: int
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a simulated run."""

    scenario: str
    policy: str
    seed: int
    state: str
    reason: str
    rounds: int
    seconds: float
    final_metric: float | None
    final_loss: float | None
    best_metric: float | None
    target: float | None
    time_to_target_seconds: float | None
    """Seconds from the first round to the first evaluation that reached the target; None where none did."""
    bytes: int
    """Bytes moved over all links, in both directions."""
    messages: int
    nodes: list[NodeOutcome]
    quarantined: dict[str, list[str]] = field(default_factory=dict)
    """Reasons of the quarantines of each node that was in one."""
    round_seconds: list[float] = field(default_factory=list)
    trained_seconds: float = 0.0
    """Seconds from the beginning of the first round to the end of the last."""
    events_missed: list[str] = field(default_factory=list)
    """Events of the scenario that were due after the end of the run."""
    given_up: str = ""
    """Reason for a run without progress; empty if it ended."""
    metric: MetricSpec = ACCURACY
    """Metric of the model."""
    course: Sequence[tuple[float, float]] = ()
    """Seconds since the first round began, and the metric then, at each evaluation."""
    losses: Sequence[tuple[float, float]] = ()
    """Seconds since the first round began, and the loss then, at each evaluation."""
    metric_fault: str = ""
    """Reason for which the metric could not be computed."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object, with the values of the metric under its name."""
        plain = asdict(self)
        for name in ("metric", "course", "losses", "final_metric", "best_metric", "target"):
            del plain[name]
        return plain | {
            "metric": self.metric.model_dump(),
            f"final_{self.metric.name}": self.final_metric,
            f"best_{self.metric.name}": self.best_metric,
            "target_accuracy": self.target,
        }

    def as_course(self) -> Course:
        """Return what a comparison of times needs."""
        return Course(self.course, self.trained_seconds, self.losses)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage in cycles: a run makes next to none, and the search takes a quarter of one of 4,000 nodes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _prepared(scenario: Scenario) -> tuple[SystemConfig, TrainingBackend]:
    """Return the configuration of the run, and what trains in it."""
    config = scenario.effective_config
    if scenario.learning == "model":
        metric = scenario.metric or ACCURACY
        return config, ConvergenceBackend(config.training, scenario.learning_curve(), metric)
    # torch takes seconds to import, and a model of convergence needs none.
    from hypergpu.simulation.gradients import GradientBackend, on_one_thread  # noqa: PLC0415
    from hypergpu.simulation.node_samples import with_dealt_samples  # noqa: PLC0415
    from hypergpu.tasks import load_main_task, with_local_optimizer  # noqa: PLC0415

    on_one_thread()
    task = load_main_task(config.training)
    training = with_local_optimizer(config.training, task)
    if training.data_is_local:
        task = with_dealt_samples(task, [name for group in scenario.nodes for name in group.names()], training)
    learning = GradientBackend(
        task,
        training,
        times_of(scenario),
        reported=config.node.report_data,
        aggregation=config.aggregation,
        attacks=scenario.attacks,
    )
    return config.model_copy(
        update={"training": training, "compression": learning.compression(config.compression)}
    ), learning


def _outcome(
    scenario: Scenario,
    recording: Recording,
    nodes: Mapping[str, SimulatedNode],
    *,
    missed: list[str],
    seconds: float,
    given_up: str,
) -> Outcome:
    machine = recording.machine
    rows = []
    for name, node in nodes.items():
        member, link = machine.members.get(name), node.connection.link
        up, down = link.counters(Direction.UP), link.counters(Direction.DOWN)
        counts: dict[str, Any] = {
            key: getattr(member, key, 0) for key in ("rounds_selected", "rounds_contributed", "late", "retries")
        }
        rows.append(
            NodeOutcome(
                name, rpcs=link.rpcs, rpcs_lost=link.rpcs_lost, bytes_up=up.bytes, bytes_down=down.bytes, **counts
            )
        )
    return Outcome(
        scenario=scenario.name,
        policy=scenario.config.orchestrator.policy,
        seed=scenario.seed,
        state=str(machine.state),
        reason=recording.finish_reason,
        rounds=machine.round - 1,
        seconds=seconds,
        final_metric=machine.metric_value,
        final_loss=machine.loss,
        best_metric=machine.metric.best(value for _, value in recording.course),
        target=scenario.target,
        time_to_target_seconds=recording.reached_after,
        bytes=sum(row.bytes_up + row.bytes_down for row in rows),
        messages=sum(node.connection.messages for node in nodes.values()),
        nodes=rows,
        quarantined=recording.quarantined,
        round_seconds=recording.round_seconds,
        trained_seconds=recording.trained_seconds,
        events_missed=missed,
        given_up=given_up,
        metric=machine.metric,
        course=tuple(recording.course),
        losses=tuple(recording.losses),
        metric_fault=recording.metric_fault,
    )
