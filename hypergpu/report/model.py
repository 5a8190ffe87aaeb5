"""A run, finished or not, as plain data. Times are seconds since the start of its first round; None: not recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from hypergpu.common.metric import ACCURACY, MetricSpec, finite
from hypergpu.common.text import natural_key
from hypergpu.coordinator.core.decisions import Figures
from hypergpu.coordinator.core.rounds.traffic import Traffic
from hypergpu.time_to_target import Course

CLUSTER = "cluster"
_DIGITS = frozenset("0123456789")


@dataclass(frozen=True, slots=True)
class NodeRound:
    """Contribution of one selected node to a round."""

    node: str
    success: bool
    batch_size: float | None = None
    compute_seconds: float | None = None
    waiting_seconds: float | None = None
    upload_seconds: float | None = None
    noise: float | None = field(default=None, kw_only=True)
    """Noise of the update's codec."""
    codecs: str = field(default="", kw_only=True)
    """Codecs of its update and of the parameters, as `int8/bf16`."""


@dataclass(frozen=True, slots=True)
class Round:
    """A closed round."""

    number: int
    ended_at: float
    """Time after the server's step and the evaluation."""
    seconds: float
    """Time from the first work unit to the close."""
    reason: str = ""
    loss: float | None = None
    metric: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    """Further metrics by name."""
    train_loss: float | None = None
    samples: float | None = None
    nodes: tuple[NodeRound, ...] = ()
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    """Bytes on each link since the round before."""


@dataclass(frozen=True, slots=True)
class Event:
    """Run event. A decision has a subject, a reason and figures; other events have a text."""

    at: float
    round: int
    kind: str
    text: str
    is_decision: bool = False
    subject: str = ""
    reason: str = ""
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run, with everything that the report shows."""

    name: str
    """Name of the run directory."""
    summary: Mapping[str, object]
    rounds: tuple[Round, ...] = ()
    events: tuple[Event, ...] = ()
    nodes: tuple[Figures, ...] = ()
    """Final state of each node, with its `node_id`."""
    config: Mapping[str, object] = field(default_factory=dict)
    config_text: str = ""
    notes: tuple[str, ...] = ()
    """Descriptions of what could not be read."""
    metric: MetricSpec = ACCURACY
    """Metric of the model."""

    @cached_property
    def ended_at(self) -> float:
        """End of the run, or the last recorded time if it is unfinished."""
        if self.ending is not None:
            return self.ending.at
        return max((each.at for each in self.events), default=max((r.ended_at for r in self.rounds), default=0.0))

    @cached_property
    def ending(self) -> Event | None:
        """Event that ended the run; None if it is unfinished. A stopped run may have been resumed."""
        for each in reversed(self.events):
            if each.kind in ("completed", "stopped"):
                return each
            if each.kind == "round_started":
                break
        return None

    @cached_property
    def began_at(self) -> float:
        """First recorded time, but not long before the first round: waiting for nodes does not count."""
        first = min((each.at for each in self.events[:1]), default=0.0)
        return max(first, -0.05 * self.ended_at) if self.rounds else first

    @cached_property
    def node_ids(self) -> tuple[str, ...]:
        """All nodes that the record names, in natural order."""
        named = {str(node["node_id"]) for node in self.nodes}
        named.update(each.node for closed in self.rounds for each in closed.nodes)
        named.update(e.subject for e in self.events if e.subject and e.subject != CLUSTER)
        return tuple(sorted(named, key=natural_key))

    @cached_property
    def bands(self) -> tuple[tuple[float, float], ...]:
        """Start and end of each round; a start that is not recorded follows from the duration."""
        begun: dict[int, float] = {}
        for event in self.events:
            if event.kind == "round_started":
                begun[event.round] = event.at
        bands, before = [], float("-inf")
        for closed in self.rounds:
            start = begun.get(closed.number, closed.ended_at - closed.seconds)
            bands.append((min(max(start, before), closed.ended_at), closed.ended_at))
            before = closed.ended_at
        return tuple(bands)

    def setting(self, section: str, key: str) -> object:
        """Return a value of the configuration; None if it is unknown."""
        part = self.config.get(section)
        return part.get(key) if isinstance(part, Mapping) else None

    @property
    def target(self) -> float | None:
        """Target value of the metric; None if there is none."""
        recorded = finite(self.summary.get("target_accuracy"))
        return recorded if recorded is not None else finite(self.setting("training", "target_accuracy"))

    @property
    def is_simulated(self) -> bool:
        """True if the run was simulated, so that its times are virtual."""
        return self.summary.get("simulated") is True

    @property
    def policy(self) -> str:
        """Adaptation policy; empty if it is not recorded."""
        policy = self.summary.get("policy", self.setting("orchestrator", "policy"))
        return policy if isinstance(policy, str) else ""

    @cached_property
    def course(self) -> Course:
        """Metric and loss over time."""
        begun = self.bands[0][0] if self.rounds else 0.0
        points = [(each.ended_at - begun, each.metric) for each in self.rounds if each.metric is not None]
        losses = [(each.ended_at - begun, each.loss) for each in self.rounds if each.loss is not None]
        return Course(points, self.rounds[-1].ended_at - begun if self.rounds else 0.0, losses)

    @cached_property
    def final(self) -> tuple[float | None, float | None]:
        """Loss and metric of the model that the run ended with: of its latest evaluation, unless it was given up."""
        if self.last_revert is not None:
            kept = self.last_revert.figures
            return finite(kept.get("loss")), finite(kept.get(self.metric.name))
        last = self._last_evaluated
        return (None, None) if last is None else (last.loss, last.metric)

    @cached_property
    def last_revert(self) -> Event | None:
        """Return to an earlier model after which no model was evaluated."""
        since = self._last_evaluated.ended_at if self._last_evaluated is not None else float("-inf")
        # A model is given up after its evaluation, which may take no time in a simulated run.
        reverts = [each for each in self.events if each.kind == "model_reverted" and each.at >= since]
        return reverts[-1] if reverts else None

    @cached_property
    def _last_evaluated(self) -> Round | None:
        return next((each for each in reversed(self.rounds) if each.loss is not None or each.metric is not None), None)

    @property
    def rounds_planned(self) -> int | None:
        """Number of rounds that the run was set to."""
        value = self.summary.get("rounds_planned", self.setting("training", "rounds"))
        return value if isinstance(value, int) else None

    @property
    def state(self) -> str:
        """Final state, such as completed or stopped; `unfinished` if no end is recorded."""
        state = str(self.summary.get("state") or "unfinished")
        return state if state in ("completed", "stopped", "interrupted", "paused") else "unfinished"
