"""A finished or unfinished run as plain data. Times are seconds since its first round began; None: not recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from hypergpu.common.metric import ACCURACY, MetricSpec, finite
from hypergpu.common.text import natural_key
from hypergpu.time_to_target import Course

Figures = Mapping[str, float | int | str]
CLUSTER = "cluster"
_DIGITS = frozenset("0123456789")


@dataclass(frozen=True, slots=True)
class NodeRound:
    """What one selected node did in a round."""

    node: str
    success: bool
    batch_size: float | None = None
    compute_seconds: float | None = None
    waiting_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """One closed round."""

    number: int
    ended_at: float
    """After the server's step and the evaluation."""
    seconds: float
    """From the first order to the close."""
    reason: str = ""
    loss: float | None = None
    metric: float | None = None
    train_loss: float | None = None
    samples: float | None = None
    nodes: tuple[NodeRound, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the record. A decision has a subject, a reason and figures; another event has what it says."""

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
    """Everything that the report shows."""

    name: str
    """Of the directory."""
    summary: Mapping[str, object]
    rounds: tuple[Round, ...] = ()
    events: tuple[Event, ...] = ()
    nodes: tuple[Figures, ...] = ()
    """Each with its `node_id`, as it stood at the end."""
    config: Mapping[str, object] = field(default_factory=dict)
    config_text: str = ""
    notes: tuple[str, ...] = ()
    """What could not be read, in words."""
    metric: MetricSpec = ACCURACY
    """What the model was judged by."""

    @cached_property
    def ended_at(self) -> float:
        """When the run was over; while it is not, the last time on record."""
        if self.ending is not None:
            return self.ending.at
        return max((each.at for each in self.events), default=max((r.ended_at for r in self.rounds), default=0.0))

    @cached_property
    def ending(self) -> Event | None:
        """What ended the run; None while it is not over. A run that was stopped may have been resumed."""
        for each in reversed(self.events):
            if each.kind in ("completed", "stopped"):
                return each
            if each.kind == "round_started":
                break
        return None

    @cached_property
    def began_at(self) -> float:
        """The first time on record, but not long before the first round: waiting for nodes is no part of a run."""
        first = min((each.at for each in self.events[:1]), default=0.0)
        return max(first, -0.05 * self.ended_at) if self.rounds else first

    @cached_property
    def node_ids(self) -> tuple[str, ...]:
        """Every node that is named anywhere, in natural order."""
        named = {str(node["node_id"]) for node in self.nodes}
        named.update(each.node for closed in self.rounds for each in closed.nodes)
        named.update(e.subject for e in self.events if e.subject and e.subject != CLUSTER)
        return tuple(sorted(named, key=natural_key))

    @cached_property
    def bands(self) -> tuple[tuple[float, float], ...]:
        """When each round began and ended. What the record says of beginnings; otherwise from its length."""
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
        """A value of the configuration; None where it is not known."""
        part = self.config.get(section)
        return part.get(key) if isinstance(part, Mapping) else None

    @property
    def target(self) -> float | None:
        """The value of the metric that the run was to reach, where one was set."""
        recorded = finite(self.summary.get("target_accuracy"))
        return recorded if recorded is not None else finite(self.setting("training", "target_accuracy"))

    @property
    def is_simulated(self) -> bool:
        """Whether its times are those of virtual time."""
        return self.summary.get("simulated") is True

    @property
    def policy(self) -> str:
        """The policy of its adaptation; empty where it is not on record."""
        policy = self.summary.get("policy", self.setting("orchestrator", "policy"))
        return policy if isinstance(policy, str) else ""

    @cached_property
    def course(self) -> Course:
        """How its metric went."""
        begun = self.bands[0][0] if self.rounds else 0.0
        points = [(each.ended_at - begun, each.metric) for each in self.rounds if each.metric is not None]
        losses = [(each.ended_at - begun, each.loss) for each in self.rounds if each.loss is not None]
        return Course(points, self.rounds[-1].ended_at - begun if self.rounds else 0.0, losses)

    @property
    def rounds_planned(self) -> int | None:
        """Rounds that the run was to have."""
        value = self.summary.get("rounds_planned", self.setting("training", "rounds"))
        return value if isinstance(value, int) else None

    @property
    def state(self) -> str:
        """completed, stopped, …; `unfinished` where no end is on record."""
        state = str(self.summary.get("state") or "unfinished")
        return state if state in ("completed", "stopped", "interrupted", "paused") else "unfinished"
