"""Settings of the training run and of the coordinator."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hypergpu.common.config.recipes import RECIPES, RecipeName
from hypergpu.common.config.section import ConfigSection
from hypergpu.common.config.whole import Bytes, BytesOrZero, Count, CountOrZero, Seed
from hypergpu.common.fragments import MAX_FRAGMENTS, fragment_of
from hypergpu.common.local_optimizer import LocalOptimizer, LocalOptimizerName, LocalSettings


class TrainingConfig(ConfigSection):
    """The training run."""

    task: str = "digits"
    """A shipped task, or your own as `package.module:factory`."""
    initial_model: str = ""
    """Path of a safetensors file, or of a run directory, whose model the run begins with; by default the task's."""
    rounds: CountOrZero = 25
    """Rounds to train; 0 trains until the run is stopped or reaches `target_accuracy`."""
    seed: Seed = 0
    """Seed of the initial parameters, the shards and the order of samples."""
    recipe: RecipeName | None = None
    """Published combination of the settings of both optimizers. A setting that is given beside it holds."""
    local_steps: Count = 10
    """Steps of a node per round: with 1 it sends gradients, with more the change of its parameters."""
    batch_size: Count = 64
    """Samples per local step, unless adaptation chooses another size."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of a node's local optimizer, or of the server's optimizer with one local step."""
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    """Course of `learning_rate` over the rounds, after the warm-up: `cosine` falls to 0 after the last round."""
    warmup_rounds: CountOrZero = 0
    """Rounds in which the learning rate rises to `learning_rate`, by the same amount in each."""
    local_optimizer: Literal["auto", LocalOptimizerName] = "auto"
    """Optimizer of a node's local steps. With `auto`, it is the task's own if it brings one. Otherwise `learning_rate`
    is that of SGD: the adaptation begins with AdamW where a few nodes can try SGD beside it, and takes the faster one;
    the policy `none` keeps SGD. The others need more than one local step. AdamW and Muon need a far smaller
    `learning_rate` than SGD: about 0.003 and 0.02."""
    local_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of a node's SGD. AdamW and Muon have their own."""
    local_nesterov: bool = False
    """Use Nesterov's form of `local_momentum`."""
    local_state: Literal["reset", "kept"] = "reset"
    """State of a node's optimizer, such as momentum, at the start of a round: `reset`, or `kept` from its last one.
    With AdamW, `kept` takes the memory of up to four models, and the state of a node that sat out some rounds is
    old."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay of the local steps; by default 0.01 for AdamW and Muon, and 0 for SGD."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Norm to which the gradient of a local step is scaled down; by default it is left alone."""
    proximal: Annotated[float, Field(ge=0)] = 0.0
    """Weight μ of the pull of local steps to the parameters x₀ of the round: they minimize loss + μ/2·|x - x₀|² (Li et
    al., "Federated optimization in heterogeneous networks", MLSys 2020)."""
    server_optimizer: Literal["sgd", "adam", "yogi"] = "sgd"
    """Optimizer that applies the mean update (Reddi et al., "Adaptive federated optimization", ICLR 2021)."""
    server_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the server with more than one local step; by default 1 for SGD, and 0.01 for Adam and Yogi."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of the server's SGD."""
    server_nesterov: bool = False
    """Use Nesterov's form of `server_momentum`, as the outer optimizer of DiLoCo does (Douillard et al., 2023)."""
    partition: Literal["iid", "dirichlet", "local"] = "iid"
    """Distribution of the samples over the shards: `iid` deals all of them anew in each epoch, `dirichlet` gives each
    shard other shares of the classes for the whole run. With `local`, each node trains on the samples that it alone
    holds: those of the task's `local`."""
    dirichlet_alpha: Annotated[float, Field(gt=0)] = 0.5
    """Concentration of the Dirichlet partition: smaller is more skewed (Hsu et al., 2019)."""
    mode: Literal["sync", "late", "buffered"] = "sync"
    """Fate of an update that arrives after its round has closed: `sync` refuses it; with `late` it counts in the round
    that is open then, or in the next, by samples / √(1+τ) (Nguyen et al., "FedBuff", AISTATS 2022). τ is the number of
    rounds that it is late. With `buffered`, no round waits for certain nodes: it closes with any `buffer_size` updates,
    late ones among them, and a node that is free gets work on the newest model at once."""
    max_staleness: Count = 8
    """Largest τ of an update that counts late: one that is later is refused, and its node stops early."""
    buffer_size: Count | None = None
    """Updates that close a round in mode `buffered`; by default half of the nodes that take part, so that an update is
    one round late in the middle."""
    fragments: Annotated[Count, Field(le=MAX_FRAGMENTS)] = 1
    """Parts of the model, of which each round synchronises one: transfers move that part, and nodes go on with their
    own values of the others (Douillard et al., "Streaming DiLoCo", 2025). Each has its own state of the server's
    optimizer. More than one needs mode `sync` and more than one local step."""
    overlap: bool = False
    """Let a node train while its fragments travel. It sends what a fragment was when the work unit began, and what is
    merged counts in the unit after the next. Needs two fragments or more."""
    deterministic: bool = False
    """Let the same seed and nodes lead to the same weights, bit for bit, on machines of the same kind. Updates are
    summed in the order of the nodes' names when all are there. Each round waits for `min_nodes` nodes, which is all of
    them, and for a node that was killed until it is back. Needs policy `none`, `quorum` 1, and no compression."""
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
    metric: str = ""
    """Name of the task's metric that decides which model is best, and that `target_accuracy` is about; by default its
    main one."""
    target_accuracy: float | None = None
    """End the run early when the metric on held-out data reaches this value; any real number."""

    patience: CountOrZero = 0
    """Evaluations in a row without a better model (by its metric, then by its loss) after which the run ends; 0 trains
    on. Adaptive policies go on from the best model at a lower rate after five, so give them more."""

    @model_validator(mode="before")
    @classmethod
    def _with_recipe(cls, given: Any) -> Any:
        """Fill in what the recipe says."""
        name = given.get("recipe") if isinstance(given, Mapping) else None
        return {**RECIPES[name], **given} if isinstance(name, str) and name in RECIPES else given

    @model_validator(mode="after")
    def _optimizers_have_what_they_need(self) -> "TrainingConfig":
        if self.local_steps == 1:
            self._require_server_steps_only()
        if self.server_nesterov and (self.server_optimizer != "sgd" or not self.server_momentum):
            raise ValueError("server_nesterov needs server_optimizer sgd with a server_momentum above 0")
        if self.server_momentum and self.server_optimizer != "sgd":
            raise ValueError(f"server_momentum is that of server_optimizer sgd; {self.server_optimizer} has its own")
        if self.local_nesterov and not self.local_momentum:
            raise ValueError("local_nesterov needs a local_momentum above 0")
        if self.local_momentum and self.local_optimizer not in ("auto", "sgd"):
            raise ValueError(f"local_momentum is that of local_optimizer sgd; {self.local_optimizer} has its own")
        if self.learning_rate_schedule == "cosine" and not self.rounds:
            raise ValueError("learning_rate_schedule cosine needs a number of rounds: it ends with the last one")
        if self.fragments > 1 and (self.local_steps == 1 or self.mode != "sync"):
            fault = "more than one local step" if self.local_steps == 1 else f"mode sync, not {self.mode}"
            raise ValueError(f"fragments {self.fragments} needs {fault}: each round synchronises one of them")
        self._require_what_determinism_needs()
        if self.overlap and self.fragments == 1:
            raise ValueError("overlap needs fragments 2 or more: one is sent while the node goes on with the others")
        if self.is_buffered and self.data_is_local:
            raise ValueError(
                "mode buffered lets the nodes that answer most often drown what only slow ones hold: with partition "
                "local, choose mode sync or late"
            )
        if self.rounds and self.warmup_rounds >= self.rounds:
            raise ValueError(f"warmup_rounds is {self.warmup_rounds}; a run of {self.rounds} rounds has fewer")
        return self

    def _require_what_determinism_needs(self) -> None:
        """Check that no round depends on when its updates arrive, or on what a node that was killed forgets."""
        needed = {"mode": "sync", "quorum": 1.0, "close_share": 1.0, "fragments": 1, "local_state": "reset"}
        found = [f"{name} {value}" for name, value in needed.items() if getattr(self, name) != value]
        if self.deterministic and found:
            raise ValueError(f"deterministic needs {', '.join(found)}")

    def _require_server_steps_only(self) -> None:
        """Check that no setting needs a local step."""
        plain = {"local_momentum": 0.0, "proximal": 0.0, "weight_decay": None, "local_state": "reset"}
        found = [name for name, value in plain.items() if getattr(self, name) != value]
        if self.local_optimizer not in ("auto", "sgd"):
            found.insert(0, f"local_optimizer {self.local_optimizer}")
        if found:
            raise ValueError(
                f"{found[0]} needs more than one local step: with local_steps 1, a node sends its gradient and the "
                "server's optimizer applies it"
            )

    @property
    def first_optimizer(self) -> LocalOptimizer:
        """Optimizer of the local steps that `learning_rate` is meant for."""
        return LocalOptimizer("sgd" if self.local_optimizer == "auto" else self.local_optimizer, self.learning_rate)

    def optimizer_at(self, optimizer: LocalOptimizer, round_number: int) -> LocalOptimizer:
        """Return an optimizer with its learning rate by the schedule, in a round from 1 on."""
        return optimizer._replace(learning_rate=optimizer.learning_rate * self._schedule(round_number))

    def _schedule(self, round_number: int) -> float:
        """Return the share of the learning rate (Loshchilov & Hutter, "SGDR", ICLR 2017, for the cosine)."""
        if round_number <= self.warmup_rounds:
            return round_number / (self.warmup_rounds + 1)
        if self.learning_rate_schedule == "constant":
            return 1.0
        done = (round_number - 1 - self.warmup_rounds) / max(1, self.rounds - self.warmup_rounds)
        return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))

    @property
    def local_settings(self) -> LocalSettings:
        """Settings that the local steps of all work units share."""
        return LocalSettings(
            momentum=self.local_momentum,
            nesterov=self.local_nesterov,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            proximal=self.proximal,
            keeps_state=self.local_state == "kept",
        )

    @property
    def staleness_limit(self) -> int:
        """Rounds by which an update may be late and still count; 0 = it may not."""
        return 0 if self.mode == "sync" else self.max_staleness

    @property
    def is_buffered(self) -> bool:
        """True if no round waits for certain nodes."""
        return self.mode == "buffered"

    def fragment_of(self, round_number: int) -> int:
        """Return the number of the fragment that a round synchronises."""
        return fragment_of(round_number, self.fragments)

    @property
    def server_is_chosen(self) -> bool:
        """True if the user has chosen an optimizer of the server, or its momentum."""
        return self.server_optimizer != "sgd" or self.server_momentum > 0

    @property
    def shards_are_alike(self) -> bool:
        """True if all shards are drawn from the same distribution, so that no node has data that the others lack."""
        return self.partition == "iid"

    @property
    def data_is_local(self) -> bool:
        """True if each node trains on the samples that it alone holds."""
        return self.partition == "local"

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
    """HOST:PORT for the live page, /metrics, /healthz and Prometheus's discovery; port 0 chooses a free one."""
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
    require_receipts: bool = False
    """Admit only nodes that announce a key and sign a receipt of each update, as those of this version do."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 2.0
    """Interval of heartbeats; a node is lost after `heartbeat_misses` of them."""
    heartbeat_misses: Count = 5
    """Missed heartbeats after which a node counts as lost."""

    @property
    def lost_after_seconds(self) -> float:
        """Silence after which a node is lost."""
        return self.heartbeat_seconds * self.heartbeat_misses
