"""What is trained, for how long, and how the rounds are run."""

from typing import Annotated, Literal

from pydantic import Field

from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.whole import Bytes, BytesOrZero, Count, CountOrZero, Seed


class TrainingConfig(ConfigSection):
    """The training run."""

    task: str = "digits"
    """A shipped task, or your own as `package.module:factory`."""
    rounds: CountOrZero = 25
    """Rounds to train; 0 trains until the run is stopped or reaches `target_accuracy`."""
    seed: Seed = 0
    """Seeds the initial parameters, the shards and the order of samples."""
    local_steps: Count = 10
    """Steps that a node takes per round: 1 sends gradients, more sends the change of the parameters."""
    batch_size: Count = 64
    """Samples per local step, where adaptation does not choose another."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Of the node's local SGD; with one local step, of the server's optimiser."""
    server_optimizer: Literal["sgd", "adam"] = "sgd"
    """What turns the mean update into a step (Reddi et al., "Adaptive federated optimization", ICLR 2021)."""
    server_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Scale of the server's step on changes (more than one local step); unless given 1 for SGD, 0.01 for Adam."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of the server's SGD."""
    partition: Literal["iid", "dirichlet"] = "iid"
    """How samples are dealt to the shards."""
    dirichlet_alpha: Annotated[float, Field(gt=0)] = 0.5
    """Concentration of the Dirichlet partition: smaller is more skewed (Hsu et al., 2019)."""
    min_nodes: Count = 1
    """Nodes that must have joined and be ready, their data loaded, before the first round begins."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of a round's nodes that must have contributed for the round to count at its deadline."""
    deadline_mads: Annotated[float, Field(gt=0)] = 4.0
    """How far from what is usual a node may be before a round ends without it, in median absolute deviations."""
    evaluate_every: Count = 1
    """Rounds between evaluations on held-out data."""
    checkpoint_every: Count = 5
    """Rounds between checkpoints of the model."""
    target_accuracy: float | None = None
    """End the run early when the task's metric on held-out data is at this value or better: any real number."""

    def is_last(self, round_number: int) -> bool:
        """Return whether the run ends with this round."""
        return 0 < self.rounds <= round_number

    def shown_round(self, round_number: int) -> int:
        """Return the round to show: after the last one, the machine already counts the next."""
        return min(round_number, self.rounds) if self.rounds else round_number

    def progress(self, round_number: int) -> str:
        """Return how far a run is, in words."""
        return f"round {self.shown_round(round_number)}" + (f" of {self.rounds}" if self.rounds else "")


class ServerConfig(ConfigSection):
    """The coordinator as a network service."""

    listen: str = "127.0.0.1:50051"
    """HOST:PORT for gRPC; port 0 takes a free one."""
    http_listen: str = "127.0.0.1:9100"
    """HOST:PORT for /metrics, /healthz and Prometheus's discovery; port 0 takes a free one."""
    max_nodes: Count = 10_000
    """Nodes that may be registered at once."""
    upload_memory_bytes: Bytes = 1 << 30
    """Memory for uploads that are under way, though two are always let in. Further ones go to the disk."""
    upload_disk_bytes: BytesOrZero = 8 << 30
    """Disk space, beside the run's files, for uploads that memory does not hold; taken while they last. Further ones
    wait for one that is done, or take the place of one that is too slow for its round."""
    linger_seconds: Annotated[float, Field(ge=0)] = 10.0
    """After the run, the longest wait for the nodes to hear of it and leave."""
    stay: bool = False
    """Go on answering when the run is over, until a signal: nodes wait for the next run, which `hypergpu restart`
    begins. A signal that comes sooner only suspends the run: nodes wait, and a start with --resume goes on."""
    scrape_nodes: bool = True
    """Whether each node's /metrics is read, where it can be reached at the address that the node calls from."""
    scrape_hosts: tuple[str, ...] = ()
    """Hosts and networks (as in 172.16.0.0/12) whose /metrics may be read although nodes call from another address:
    through a proxy or a NAT. They bound what the coordinator dials and what `/sd` names to Prometheus."""
    evaluation_batch_size: Count | None = None
    """Samples that an evaluation takes at once; unless given, `training.batch_size`. Halved where memory runs out."""
    evaluation_device: str = "cpu"
    """Device that evaluates: `cpu`, `cuda`, `cuda:1` and so on; `auto` is a CUDA card if there is one, else the CPU."""
    max_model_bytes: Bytes = 4 << 30
    """Largest flat model that is accepted on the wire."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 2.0
    """How often nodes report; a node is lost after `heartbeat_misses` of them."""
    heartbeat_misses: Count = 5
    """Heartbeats that may go missing before a node counts as lost."""

    @property
    def lost_after_seconds(self) -> float:
        """Silence after which a node is lost."""
        return self.heartbeat_seconds * self.heartbeat_misses
