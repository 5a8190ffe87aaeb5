"""A scenario: who trains what over which links, and what happens on the way. Read from YAML, typed and closed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from common.config import SystemConfig
from common.config.loading import explain
from common.config.section import Section
from common.errors import ConfigError, InvalidInput, UnknownName
from hypergpu.simulation.convergence import FITTED, Convergence
from netsim_proxy.link.events import ALL, UPSTREAM, NetworkEvent
from netsim_proxy.link.profiles import Profile, find_profile
from netsim_proxy.link.regions import between_regions
from netsim_proxy.profile_file import ProfileSection, build_profiles
from netsim_proxy.scenario_file import EventSection
from node.core.gpu import GPUSpecs, specs_from

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
    gpu: str | Annotated[list[str], Field(min_length=1)] = "laptop-cpu"
    """A preset of GPU specs; of a list, the nodes take one after the other."""
    profile: str | Annotated[list[str], Field(min_length=1)] = "good"
    """The link: a profile's name; of a list, the nodes take one after the other."""
    region: str | Annotated[list[str], Field(min_length=1)] = ""
    """Where it stands, as in eu-west: the distance to the coordinator's region comes on top of the profile. Of a list,
    the nodes take one after the other."""
    speed: Annotated[float, Field(gt=0)] = 1.0
    """What its compute times are divided by, for a card that is faster or slower than its preset."""
    churn: Churn | None = None
    """Whether it comes and goes."""
    joins_seconds: Annotated[float, Field(ge=0)] = 0.0
    """When it first starts."""

    def names(self) -> list[str]:
        """The ids of its nodes."""
        return [self.id] if self.count is None else [f"{self.id}_{index}" for index in range(self.count)]


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
    region: str = "us-east"
    """The coordinator's."""
    profiles: dict[str, ProfileSection] = Field(default_factory=dict)
    """Link profiles of its own, by name, as in the proxy's profile files."""
    convergence: dict[str, float] = Field(default_factory=dict)
    """For `learning: model`: constants that are not those fitted to the task, as `hypergpu fit` prints them. A
    `model_bytes` alone makes a model of that size which learns like the task."""
    compute: ComputeTimes | None = None
    """Compute times; the task's own where it is left out."""
    evaluation_seconds: Annotated[float, Field(ge=0)] = 0.02
    """What the coordinator's step and evaluation take between two rounds."""
    config: SystemConfig = SystemConfig()
    """Everything else that can be configured."""
    events: tuple[EventSection, ...] = ()
    """What happens to links, as in the proxy's scenarios; a node may also be the name of a group."""

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
        """The ids of its nodes and groups.

        Raises:
            Misplaced: a node twice.
        """
        return Names(self.nodes)

    def learning_curve(self) -> Convergence:
        """The model of convergence: what was fitted to the task, with the constants of its own.

        Raises:
            Misplaced: none was fitted and its own are not complete, or one of them makes no sense.
        """
        task = self.config.training.task
        fitted = FITTED[task].model_dump() if task in FITTED else {}
        if not fitted and not self.convergence:
            raise Misplaced(
                ("learning",),
                f"no model of convergence was fitted to task {task!r}, only to {', '.join(FITTED)}: "
                f"take learning: real, or fit one with `hypergpu fit {task}`",
            )
        try:
            return Convergence.model_validate(fitted | self.convergence)
        except ValidationError as error:
            fault = error.errors()[0]
            path = ("convergence", *fault["loc"])
            raise Misplaced(path, explain(Convergence, fault["loc"], fault["type"], fault["msg"])) from error

    def network_events(self) -> list[NetworkEvent]:
        """Its events, groups spelt out.

        Raises:
            Misplaced: one that makes no sense.
        """
        names, find, found = self.names(), self.profile_finder(), []
        for index, section in enumerate(self.events):
            try:
                event = section.event()
                targets = [event.target_node] if event.target_node is not None else []
                nodes, group_b = names.spelt_out([*targets, *event.nodes]), names.spelt_out(event.group_b)
                found.append(replace(event, target_node=None, nodes=tuple(nodes), group_b=tuple(group_b)))
                if event.new_profile:
                    find(event.new_profile)
            except InvalidInput as error:
                raise Misplaced(("events", index), str(error)) from error
        return found

    def profile_finder(self) -> Callable[[str], Profile]:
        """Finds a link profile by name, the scenario's own first; the finder raises UnknownName.

        Raises:
            Misplaced: a profile of its own that is based on one that there is not.
        """
        try:
            return partial(find_profile, custom=build_profiles(self.profiles))
        except UnknownName as error:
            broken = next(key for key, section in self.profiles.items() if section.based_on == error.name)
            raise Misplaced(("profiles", broken, "based_on"), str(error)) from error

    def links(self) -> dict[str, Profile]:
        """The profile of each node's link, in the order of the nodes.

        Raises:
            Misplaced: a profile or region that there is not.
        """
        find, found = self.profile_finder(), {}
        for at, group in enumerate(self.nodes):
            for index, name in enumerate(group.names()):
                try:
                    profile, region = find(in_turn(group.profile, index)), in_turn(group.region, index)
                    found[name] = between_regions(region, self.region, profile) if region else profile
                except UnknownName as error:
                    raise Misplaced(("nodes", at, error.kind), str(error)) from error
        return found

    def cards(self) -> dict[str, GPUSpecs]:
        """The card of each node.

        Raises:
            Misplaced: one that there is not.
        """
        found = {}
        for at, group in enumerate(self.nodes):
            for index, name in enumerate(group.names()):
                try:
                    found[name] = specs_from(in_turn(group.gpu, index))
                except InvalidInput as error:
                    raise Misplaced(("nodes", at, "gpu"), str(error)) from error
        return found

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


def in_turn(value: str | list[str], index: int) -> str:
    """The value itself, or of a list the one whose turn it is."""
    return value if isinstance(value, str) else value[index % len(value)]
