"""Scenario of a simulation: nodes, links, events, task and configuration. Read from YAML; unknown keys are errors."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from hypergpu.common.config import SystemConfig, TrainingConfig
from hypergpu.common.config.loading import explain, parse
from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.whole import Count, Seed
from hypergpu.common.errors import InvalidInput
from hypergpu.common.metric import MetricSpec
from hypergpu.common.node_terms import MAX_PRICE_PER_HOUR, PriorityClass
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.netsim_proxy.config.scenario import Network, NodeSection, OneOrMore, ScenarioError, as_list, cycle_value
from hypergpu.netsim_proxy.link.events import ALL, EventType, NetworkEvent
from hypergpu.netsim_proxy.link.profiles import Profile
from hypergpu.node.core.gpu import GPUSpecs, specs_from
from hypergpu.simulation.attacks import AnAttack, Byzantine
from hypergpu.simulation.convergence import FITTED, Convergence

Seconds = Annotated[float, Field(gt=0)]
NOT_MODELLED = (
    "initial_model",
    "local_optimizer",
    "local_momentum",
    "weight_decay",
    "clip_norm",
    "proximal",
    "learning_rate_schedule",
    "warmup_rounds",
    "server_optimizer",
    "server_learning_rate",
    "server_momentum",
)
"""Settings of `training` that the model of convergence knows nothing of."""


class Churn(ConfigSection):
    """Node processes that crash and restart at random times."""

    up_seconds: Seconds
    """Mean running time of a node; exponentially distributed."""
    down_seconds: Seconds
    """Mean time until the node restarts."""

    @property
    def share_up(self) -> float:
        """Mean share of time that the node runs."""
        return self.up_seconds / (self.up_seconds + self.down_seconds)


class Nodes(NodeSection):
    """One node or a group of identical nodes: link and machine."""

    gpu: OneOrMore = "laptop-cpu"
    """Preset of GPU specs; a list is assigned to the nodes in repeating order."""
    speed: Annotated[float, Field(gt=0)] = 1.0
    """Divisor of the compute times, for a GPU faster (> 1) or slower than its preset."""
    price_per_hour: Annotated[float, Field(ge=0, le=MAX_PRICE_PER_HOUR)] = 0.0
    """Price of an hour in which the node works for the run; see `selector.budget_per_hour`."""
    priority: PriorityClass = "normal"
    """Priority class; see `node.priority`."""
    churn: Churn | None = None
    """Random crashes and restarts; none by default."""
    join_delay_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Time at which the node first starts."""
    setup_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Time to load model and data at each start of the process, before the node asks for work."""
    byzantine: AnAttack | None = None
    """Attack of hostile nodes: its name, or a mapping with `attack`, `strength` and `from_round`; honest by default."""

    @property
    def expected_at_start(self) -> float:
        """Nodes that the first round waits for; of nodes with churn, half the mean number running."""
        if self.join_delay_seconds:
            return 0.0
        return len(self.names()) * (0.5 * self.churn.share_up if self.churn else 1.0)


class ComputeTimes(ConfigSection):
    """Seconds of computing on the fastest preset. A card with a k-th of its throughput takes k times as long."""

    seconds_per_step: Annotated[float, Field(ge=0)] = 0.0003
    """Seconds of each local step, for any batch."""
    seconds_per_sample: Annotated[float, Field(ge=0)] = 0.000004
    """Seconds of each sample in a step."""
    spread: Annotated[float, Field(ge=0)] = 0.05
    """Sigma of the log-normal factor of each step."""
    adamw_seconds: Annotated[float, Field(ge=0)] | None = None
    """Seconds by which AdamW makes a local step longer than SGD; None is a fiftieth of a step of 64 samples."""
    muon_seconds: Annotated[float, Field(ge=0)] | None = None
    """The same for Muon; None is a fifth."""

    def optimizer_seconds(self, optimizer: str) -> float:
        """Return the seconds by which an optimizer makes a local step longer than SGD."""
        share, seconds = {"adamw": (0.02, self.adamw_seconds), "muon": (0.2, self.muon_seconds)}.get(
            optimizer, (0.0, None)
        )
        return share * (self.seconds_per_step + 64 * self.seconds_per_sample) if seconds is None else seconds


class Scenario(Network):
    """Scenario of a simulation. Only `nodes` is required."""

    nodes: Annotated[Sequence[Nodes], BeforeValidator(as_list)] = Field(min_length=1)
    """Nodes that train: a list, or a mapping by id."""
    task: str | None = None
    """Task; see `training.task`."""
    rounds: Count | None = None
    """Rounds to train; see `training.rounds`."""
    target_accuracy: float | None = None
    """Value of the task's metric whose time is measured: any real number. The run continues to its last round, so that
    final values are comparable."""
    policy: AdaptationPolicy | None = None
    """Policy; see `orchestrator.policy`."""
    seed: Seed = 0
    """Seed of the links, the data and the initial parameters."""
    learning: Literal["real", "model"] = "real"
    """Real gradients, or the model of convergence (for thousands of nodes)."""
    loss_model: Literal["rpc", "transport"] = "transport"
    """Effect of packet loss: time that TCP takes to repair it, or an RPC that fails, to try a service's retries."""
    convergence: dict[str, float] = Field(default_factory=dict)
    """For `learning: model`: constants that are not those fitted to the task, as `hypergpu fit` prints them. A
    `model_bytes` alone makes a model of that size which learns like the task."""
    metric: MetricSpec | None = None
    """For `learning: model` of a task of your own: its metric, as `hypergpu fit` prints it; accuracy if left out."""
    compute: ComputeTimes | None = None
    """Compute times; those of the task by default."""
    time_limit_seconds: Seconds | None = None
    """Virtual time after which the run is stopped, whatever it has reached; none by default."""
    evaluation_seconds: Annotated[float, Field(ge=0)] = 0.02
    """Time of the coordinator's step and evaluation between two rounds."""
    handling_seconds: Annotated[float, Field(ge=0)] = 0.005
    """Software time of each work unit at both ends, beside network and compute: packing, gRPC, checks."""
    config: SystemConfig = SystemConfig()
    """Other configuration."""

    @model_validator(mode="after")
    def _shorthands(self) -> "Scenario":
        """Let the keys at the top stand for those of the configuration."""
        training: dict[str, Any] = {"seed": self.seed}
        training |= {k: v for k in ("task", "rounds") if (v := getattr(self, k)) is not None}
        if not training.get("rounds", self.config.training.rounds):
            raise ValueError("a simulated run needs an end: rounds is 0; expected 1 or more")
        if "min_nodes" not in self.config.training.model_fields_set:
            training["min_nodes"] = max(1, int(sum(group.expected_at_start for group in self.nodes)))
        changes: dict[str, Any] = {"training": self.config.training.model_copy(update=training)}
        if self.policy is not None:
            changes["orchestrator"] = self.config.orchestrator.model_copy(update={"policy": self.policy})
        count = sum(group.count or 1 for group in self.nodes)
        if count > self.config.server.max_nodes:
            changes["server"] = self.config.server.model_copy(update={"max_nodes": count})
        # Frozen for everybody else.
        object.__setattr__(self, "config", self.config.model_copy(update=changes))
        self._require_attackable()
        return self

    def _require_attackable(self) -> None:
        """Check that hostile nodes can do what they are to do."""
        if not self.attacks:
            return
        if self.learning == "model":
            raise ValueError("byzantine nodes need learning: real; the model of convergence knows no updates")
        if self.config.training.fragments > 1:
            raise ValueError("byzantine nodes need fragments 1: they make what they send from whole updates")

    @property
    def attacks(self) -> Mapping[str, Byzantine]:
        """Attacks of the hostile nodes, by node."""
        return {name: group.byzantine for group in self.nodes if group.byzantine for name in group.names()}

    @property
    def target(self) -> float | None:
        """The value of the metric whose time is measured."""
        return self.target_accuracy if self.target_accuracy is not None else self.config.training.target_accuracy

    def learning_curve(self) -> Convergence:
        """Return the model of convergence: what was fitted to the task, with the constants of its own.

        Raises:
            ScenarioError: none was fitted and its own are not complete, one of them makes no sense, or the scenario
                sets something that the model knows nothing of.
        """
        if self.learning == "model":
            self._require_modelled()
        task = self.config.training.task
        fitted = FITTED[task].model_dump() if task in FITTED else {}
        if not fitted and not self.convergence:
            raise ScenarioError(
                ("learning",),
                f"no model of convergence was fitted to task {task!r}, only to {', '.join(FITTED)}: "
                f"take learning: real, or fit one with `hypergpu fit {task}`",
            )
        try:
            return Convergence.model_validate(fitted | self.convergence)
        except ValidationError as error:
            fault = error.errors()[0]
            path = ("convergence", *fault["loc"])
            raise ScenarioError(path, explain(Convergence, fault["loc"], fault)) from error

    @property
    def effective_config(self) -> SystemConfig:
        """Configuration of the run; the model of convergence knows no other optimizer to try than SGD."""
        if self.learning == "real":
            return self.config
        training = self.config.training.model_copy(update={"local_optimizer": "sgd"})
        return self.config.model_copy(update={"training": training})

    def _require_modelled(self) -> None:
        """Raise ScenarioError for a setting of the training that the model of convergence would ignore."""
        training, plain = self.config.training, TrainingConfig()
        if training.partition != plain.partition:
            path = ("config", "training", "partition")
            raise ScenarioError(path, "the model of convergence knows no skewed shards: take iid, or learning: real")
        for name in NOT_MODELLED:
            is_plain_sgd = name == "local_optimizer" and training.local_optimizer == "sgd"
            if getattr(training, name) != getattr(plain, name) and not is_plain_sgd:
                raise ScenarioError(
                    ("config", "training", name),
                    "the model of convergence is one of plain SGD: leave it out, or take learning: real",
                )

    def network_events(self, known: Mapping[str, Profile] | None = None) -> list[NetworkEvent]:
        """Return the events, with groups resolved to nodes; `known` are further profiles.

        Raises:
            ScenarioError: one that makes no sense, or that can have no effect in virtual time.
        """
        for index, section in enumerate(self.events):
            if section.type == EventType.SLOW_CLOSE:
                raise ScenarioError(
                    ("events", index, "type"),
                    "slow_close has no effect in virtual time, where the end of a connection does not travel on the "
                    "link: remove it, or load the scenario into a proxy",
                )
        return super().network_events(known)

    def profiles_of_links(self) -> dict[str, Profile]:
        """Return the profile of each node's link, in the order of the nodes.

        Raises:
            ScenarioError: a profile or region that there is not; a link of a node that there is not.
        """
        strange = self.links.keys() - {ALL, *(name for group in self.nodes for name in group.names())}
        if strange:
            name = min(strange)
            raise ScenarioError(("links", name), f"no node {name!r} in `nodes`")
        return {name: link.profile for name, link in self.node_links().items()}

    def cards(self) -> dict[str, GPUSpecs]:
        """Return the card of each node.

        Raises:
            ScenarioError: one that there is not.
        """
        found = {}
        for at, group in enumerate(self.nodes):
            for index, name in enumerate(group.names()):
                try:
                    found[name] = specs_from(cycle_value(group.gpu, index))
                except InvalidInput as error:
                    raise ScenarioError(("nodes", at, "gpu"), str(error)) from error
        return found

    def until_target(self) -> "Scenario":
        """Return a copy whose run ends at its target."""
        training = self.config.training.model_copy(update={"target_accuracy": self.target})
        config = self.config.model_copy(update={"training": training})
        return self.changed(config=config, target_accuracy=self.target)

    def changed(self, **changes: Any) -> "Scenario":
        """Return a copy with other values at the top: `policy`, `seed`, `rounds`, `learning`, `config`.

        Raises:
            ConfigError: a value that cannot be.
        """
        kept = {name: getattr(self, name) for name in self.model_fields_set} | {"config": self.config}
        return parse(Scenario, kept | changes, where=self.name or "scenario")
