"""A scenario: who trains what over which links, and what happens on the way. Read from YAML, typed and closed."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from common.config import SystemConfig
from common.config.section import Section
from common.errors import ConfigError, InvalidInput, UnknownName
from netsim_proxy.link.events import ALL, UPSTREAM, NetworkEvent
from netsim_proxy.link.profiles import Profile, find_profile

Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Churn(Section):
    """Processes that end without a word and start again, at random."""

    up_seconds: Seconds
    """Mean time that a node runs; exponentially distributed."""
    down_seconds: Seconds
    """Mean time until it is back."""


class Nodes(Section):
    """One node, or a group of like ones."""

    id: str = Field(min_length=1)
    """The name; of a group, its beginning: `edge` with a count of 3 makes edge_0, edge_1 and edge_2."""
    count: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """How many; without it, one node that is called exactly `id`."""
    gpu: str | list[str] = "laptop-cpu"
    """A preset of GPU specs; of a list, the nodes take one after the other."""
    profile: str | list[str] = "good"
    """The link: a profile's name; of a list, the nodes take one after the other."""
    region: str = ""
    """Where it stands: the latency to the coordinator's region comes on top of the profile's."""
    speed: Annotated[float, Field(gt=0)] = 1.0
    """What its compute times are divided by, for a card that is faster or slower than its preset."""
    churn: Churn | None = None
    """Whether it comes and goes."""
    joins_seconds: Annotated[float, Field(ge=0)] = 0.0
    """When it first starts."""

    def names(self) -> list[str]:
        """The ids of its nodes."""
        return [self.id] if self.count is None else [f"{self.id}_{index}" for index in range(self.count)]


class Event(Section):
    """Something that happens to links, by time or by round; the fields are those of the proxy's events."""

    type: str
    """latency_spike, profile_change, disconnect, partition, bandwidth_collapse, flap, recovery."""
    node: str | None = None
    """The node (or group) that it happens to; "*" = all."""
    nodes: tuple[str, ...] = ()
    """More of them than one."""
    at_seconds: Annotated[float, Field(ge=0)] | None = None
    """When, since the start of the run."""
    round: Annotated[int, Field(ge=1)] | None = None
    """Or at the beginning of which round; without either, from the start."""
    duration_seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long; 0 = until a recovery."""
    profile: str = ""
    """Of a profile change."""
    factor: Annotated[float, Field(ge=0)] = 0.0
    """Of a latency spike: what latencies are multiplied by; of a bandwidth collapse: the share that is left."""
    added_ms: Annotated[float, Field(ge=0)] = 0.0
    """Of a latency spike: what a round trip gains."""
    mode: str = ""
    """Of a disconnection or flap: reset, black_hole, half_open."""
    period_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Of a flap: one time down and up again."""
    group_b: tuple[str, ...] = ()
    """Of a partition: the other side; the coordinator ("upstream") is on it unless it is named in `nodes`."""

    def network_event(self, names: "Names") -> NetworkEvent:
        """As the link model has it, groups spelt out.

        Raises:
            InvalidInput: it makes no sense. UnknownName: a node, type or mode that does not exist.
        """
        targets = [self.node] if self.node is not None else []
        return NetworkEvent(
            event_type=self.type,
            nodes=tuple(names.spelt_out([*targets, *self.nodes])),
            new_profile=self.profile,
            scheduled_time=self.at_seconds,
            scheduled_round=self.round,
            duration_seconds=self.duration_seconds,
            factor=self.factor,
            added_ms=self.added_ms,
            mode=self.mode,
            period_seconds=self.period_seconds,
            group_b=tuple(names.spelt_out(self.group_b)),
        )


class ComputeTimes(Section):
    """How long the task takes on the fastest preset; a card of a k-th of its throughput takes k times as long."""

    seconds_per_step: Annotated[float, Field(ge=0)] = 0.0003
    """Of each local step, whatever the batch."""
    seconds_per_sample: Annotated[float, Field(ge=0)] = 0.000004
    """Of each sample in it."""
    spread: Annotated[float, Field(ge=0)] = 0.05
    """Sigma of the log-normal factor of each step."""


class Scenario(Section):
    """The whole scenario. `nodes` is all that it must have."""

    name: str = ""
    """What it is called in reports; the file's name where it is left out."""
    description: str = ""
    """What it shows."""
    nodes: list[Nodes] = Field(min_length=1)
    """Who trains."""
    task: str | None = None
    """As `config.training.task`."""
    rounds: Annotated[int, Field(ge=1)] | None = None
    """As `config.training.rounds`."""
    target_accuracy: Share | None = None
    """The accuracy whose time is measured. The run goes on to its last round, so that final accuracies compare."""
    policy: Literal["none", "conservative", "aggressive", "reactive", "proactive"] | None = None
    """As `config.orchestrator.policy`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the links, the data and the initial parameters."""
    learning: Literal["real", "model"] = "real"
    """Real gradients, or the model of convergence (for thousands of nodes)."""
    loss_model: Literal["rpc", "transport"] = "rpc"
    """What a loss on a link looks like: an RPC that fails, or time that TCP takes to repair it."""
    region: str = ""
    """The coordinator's."""
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Link profiles of its own, as in the proxy's profile files."""
    compute: ComputeTimes | None = None
    """Compute times; the task's own where it is left out."""
    evaluation_seconds: Annotated[float, Field(ge=0)] = 0.02
    """What the coordinator's step and evaluation take between two rounds."""
    config: SystemConfig = SystemConfig()
    """Everything else that can be configured."""
    events: tuple[Event, ...] = ()
    """What happens."""

    @model_validator(mode="after")
    def _shorthands(self) -> "Scenario":
        """Let the keys at the top stand for those of the configuration."""
        training: dict[str, Any] = {"seed": self.seed}
        training |= {k: v for k in ("task", "rounds") if (v := getattr(self, k)) is not None}
        if "min_nodes" not in self.config.training.model_fields_set:
            at_once = [name for group in self.nodes if not group.joins_seconds for name in group.names()]
            training["min_nodes"] = max(1, len(at_once))
        changes: dict[str, Any] = {"training": self.config.training.model_copy(update=training)}
        if self.policy is not None:
            changes["orchestrator"] = self.config.orchestrator.model_copy(update={"policy": self.policy})
        count = sum(group.count or 1 for group in self.nodes)
        if count > self.config.server.max_nodes:
            changes["server"] = self.config.server.model_copy(update={"max_nodes": count})
        # Frozen for everybody else.
        object.__setattr__(self, "config", self.config.model_copy(update=changes))
        return self

    @property
    def target(self) -> float | None:
        """The accuracy whose time is measured."""
        return self.target_accuracy if self.target_accuracy is not None else self.config.training.target_accuracy

    def names(self) -> "Names":
        """Its nodes and groups.

        Raises:
            Misplaced: a node twice.
        """
        return Names(self.nodes)

    def network_events(self) -> list[NetworkEvent]:
        """Its events, groups spelt out.

        Raises:
            Misplaced: one that makes no sense.
        """
        names, found = self.names(), []
        for index, event in enumerate(self.events):
            try:
                found.append(event.network_event(names))
                if event.profile:
                    self.find_profile(event.profile)
            except InvalidInput as error:
                raise Misplaced(("events", index), str(error)) from error
        return found

    def find_profile(self, name: str) -> Profile:
        """A link profile by name, the scenario's own first.

        Raises:
            UnknownName: there is none.
        """
        return find_profile(name)

    def changed(self, **changes: Any) -> "Scenario":
        """A copy with other values at the top: `policy`, `seed`, `rounds`, `learning`, `config`."""
        kept = {name: getattr(self, name) for name in self.model_fields_set} | {"config": self.config}
        return Scenario.model_validate(kept | changes)


class Names:
    """The ids of all nodes, and the groups that they are in."""

    def __init__(self, groups: Sequence[Nodes]) -> None:
        self.groups: dict[str, list[str]] = {}
        self._nodes: set[str] = set()
        for index, group in enumerate(groups):
            members = group.names()
            taken = [name for name in dict.fromkeys((group.id, *members)) if name in self._nodes or name in self.groups]
            if taken:
                raise Misplaced(("nodes", index, "id"), f"node {taken[0]!r} is there twice: give each an id of its own")
            self.groups[group.id] = members
            self._nodes.update(members)

    def spelt_out(self, targets: Sequence[str]) -> Iterator[str]:
        """Node ids, where some may be names of groups.

        Raises:
            UnknownName: there is none of that name; the nearest is named.
        """
        for target in targets:
            if target in (ALL, UPSTREAM) or target in self._nodes:
                yield target
            elif target in self.groups:
                yield from self.groups[target]
            else:
                raise UnknownName("node", target, [*self._nodes, *self.groups])


class Misplaced(ConfigError):
    """Something in the scenario does not hold; carries the path of keys to it."""

    def __init__(self, path: tuple[int | str, ...], message: str) -> None:
        self.path = path
        super().__init__(f"{'.'.join(map(str, path))}: {message}")
