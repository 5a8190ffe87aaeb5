"""Settings of the training run and of the coordinator."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.whole import Bytes, BytesOrZero, Count, CountOrZero, Seed
from hypergpu.common.local_optimizer import LocalOptimizer, LocalOptimizerName


class TrainingConfig(ConfigSection):
    """The training run."""

    task: str = "digits"
    """A shipped task, or your own as `package.module:factory`."""
    rounds: CountOrZero = 25
    """Rounds to train; 0 trains until the run is stopped or reaches `target_accuracy`."""
    seed: Seed = 0
    """Seed of the initial parameters, the shards and the order of samples."""
    local_steps: Count = 10
    """Steps of a node per round: with 1 it sends gradients, with more the change of its parameters."""
    batch_size: Count = 64
    """Samples per local step, unless adaptation chooses another size."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of a node's local optimizer, or of the server's optimizer with one local step."""
    local_optimizer: Literal["auto", LocalOptimizerName] = "auto"
    """Optimizer of a node's local steps. With `auto`, `learning_rate` is that of SGD. The adaptation begins with AdamW
    where a few nodes can try SGD beside it, and takes the faster one; the policy `none` keeps SGD. AdamW begins each
    work unit without state: nodes keep nothing between rounds. It needs more than one local step, and a far smaller
    `learning_rate` than SGD, about 0.001."""
    server_optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer that applies the mean update (Reddi et al., "Adaptive federated optimization", ICLR 2021)."""
    server_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the server with more than one local step; by default 1 for SGD and 0.01 for Adam."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of the server's SGD."""
    server_nesterov: bool = False
    """Use Nesterov's form of `server_momentum`, as the outer optimizer of DiLoCo does (Douillard et al., 2023)."""
    partition: Literal["iid", "dirichlet"] = "iid"
    """Distribution of the samples over the shards: `iid` deals all of them anew in each epoch, `dirichlet` gives each
    shard other shares of the classes for the whole run."""
    dirichlet_alpha: Annotated[float, Field(gt=0)] = 0.5
    """Concentration of the Dirichlet partition: smaller is more skewed (Hsu et al., 2019)."""
    min_nodes: Count = 1
    """Nodes that must have joined and be ready, with their data loaded, before the first round begins."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of a round's nodes whose updates are needed for the round to count at its deadline."""
    close_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a round's nodes whose updates close it at once; at 1 it waits for all of them, up to its deadline."""
    deadline_mads: Annotated[float, Field(gt=0)] = 4.0
    """Delay beyond a node's usual time after which a round ends without it, in median absolute deviations."""
    evaluate_every: Count = 1
    """Rounds between evaluations on held-out data."""
    checkpoint_every: Count = 5
    """Rounds between checkpoints of the model."""
    target_accuracy: float | None = None
    """End the run early when the task's metric on held-out data reaches this value; any real number."""

    @model_validator(mode="after")
    def _optimizers_have_what_they_need(self) -> "TrainingConfig":
        if self.local_optimizer == "adamw" and self.local_steps == 1:
            raise ValueError(
                f"local_optimizer {self.local_optimizer} needs more than one local step: with local_steps 1, a node "
                "sends its gradient and the server's optimizer applies it"
            )
        if self.server_nesterov and (self.server_optimizer != "sgd" or not self.server_momentum):
            raise ValueError("server_nesterov needs server_optimizer sgd with a server_momentum above 0")
        return self

    @property
    def first_optimizer(self) -> LocalOptimizer:
        """Optimizer of the local steps that `learning_rate` is meant for."""
        return LocalOptimizer("sgd" if self.local_optimizer == "auto" else self.local_optimizer, self.learning_rate)

    @property
    def server_is_chosen(self) -> bool:
        """True if the user has chosen an optimizer of the server, or its momentum."""
        return self.server_optimizer != "sgd" or self.server_momentum > 0

    @property
    def shards_are_alike(self) -> bool:
        """True if all shards are drawn from the same distribution, so that no node has data that the others lack."""
        return self.partition == "iid"

    def is_last(self, round_number: int) -> bool:
        """Return whether the run ends with this round."""
        return 0 < self.rounds <= round_number

    def shown_round(self, round_number: int) -> int:
        """Return the round to show: after the last one, the machine already counts the next."""
        return min(round_number, self.rounds) if self.rounds else round_number

    def progress(self, round_number: int) -> str:
        """Return the progress of a run in words."""
        return f"round {self.shown_round(round_number)}" + (f" of {self.rounds}" if self.rounds else "")


class ServerConfig(ConfigSection):
    """The coordinator as a network service."""

    listen: str = "127.0.0.1:50051"
    """HOST:PORT for gRPC; port 0 chooses a free one."""
    http_listen: str = "127.0.0.1:9100"
    """HOST:PORT for /metrics, /healthz and Prometheus's discovery; port 0 chooses a free one."""
    max_nodes: Count = 10_000
    """Nodes that may be registered at once."""
    upload_memory_bytes: Bytes = 1 << 30
    """Memory for uploads in progress; two are always admitted. Further ones go to the disk."""
    upload_disk_bytes: BytesOrZero = 8 << 30
    """Disk space in the run directory for uploads that exceed the memory, used while they last. Further ones wait for
    another to finish, or replace one that is too slow for its round."""
    linger_seconds: Annotated[float, Field(ge=0)] = 10.0
    """Longest wait after the run for the nodes to learn of its end and leave."""
    stay: bool = False
    """Keep running after the end of the run until a signal; nodes wait for the next run, which `hypergpu restart`
    starts. A signal during a run only suspends it: nodes wait, and a start with --resume continues it."""
    scrape_nodes: bool = True
    """Read each node's /metrics, if it is at the address that the node calls from."""
    scrape_hosts: tuple[str, ...] = ()
    """Further hosts and networks (such as 172.16.0.0/12) whose /metrics may be read, for nodes behind a proxy or a NAT.
    They limit the addresses that the coordinator dials and that `/sd` returns to Prometheus."""
    evaluation_batch_size: Count | None = None
    """Batch size of evaluations; by default `training.batch_size`. Halved when memory runs out."""
    evaluation_device: str = "cpu"
    """Device of evaluations: `cpu`, `cuda`, `cuda:1` and so on; `auto` is a CUDA card if there is one, else the CPU."""
    max_model_bytes: Bytes = 4 << 30
    """Largest model that is accepted on the wire."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 2.0
    """Interval of heartbeats; a node is lost after `heartbeat_misses` of them."""
    heartbeat_misses: Count = 5
    """Missed heartbeats after which a node counts as lost."""

    @property
    def lost_after_seconds(self) -> float:
        """Silence after which a node is lost."""
        return self.heartbeat_seconds * self.heartbeat_misses
