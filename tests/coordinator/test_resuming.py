"""Going on with a run: from the newest checkpoint that is whole, under the configuration that it was made with."""

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hypergpu.common.config import SystemConfig
from hypergpu.common.errors import CannotResume
from hypergpu.coordinator.app import Coordinator, Options
from hypergpu.coordinator.checkpoints import Checkpoint, Checkpoints
from hypergpu.coordinator.core.adaptation import Phase
from hypergpu.coordinator.core.adaptation.state import VERSION
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.session import Pull, Register
from hypergpu.tasks import Metric, Task
from tests.uploads import upload_of

TRAINING = {"rounds": 9, "local_steps": 2, "batch_size": 2, "learning_rate": 0.25, "server_momentum": 0.5}


def toy_task(samples: int = 40, features: int = 3, model: Callable[[], nn.Module] | None = None, draw: int = 0) -> Task:
    inputs = torch.randn(60, features, generator=torch.Generator().manual_seed(draw))
    targets = (inputs[:, 0] > 0).long()
    return Task(
        model=model or (lambda: nn.Linear(features, 2)),
        train=(inputs[:samples], targets[:samples]),
        test=(inputs[40:], targets[40:]),
    )


def config(policy: str = "none", **training: Any) -> SystemConfig:
    sections = {
        "training": {**TRAINING, **training},
        "server": {"listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0", "linger_seconds": 0.0},
        "orchestrator": {"policy": policy},
        "contribution": {"measured_share": 0},  # whose draws are secret
        "checkpoint": {"every": 1, "log": False},  # tests/coordinator/test_durability.py has the log
    }
    return SystemConfig.model_validate(sections)


def resumed(out: Path, *, of: Task | None = None, force: bool = False, **settings: Any) -> Coordinator:
    coordinator = Coordinator(config(**settings), of or toy_task(), Options(out, resume=True, force=force))
    coordinator.run_dir.close()
    return coordinator


def model_of(coordinator: Coordinator) -> GlobalModel:
    return coordinator.engine.model


TRUE: Any = np.array([-1, 0, 0, 1, 0, 0, 0, 0], np.float32)
"""Update towards the rule that the labels follow."""


async def trained(
    out: Path, rounds: int, task: Task | None = None, updates: Sequence[Any] | None = None, **settings: Any
) -> Coordinator:
    """Train without a network: one node with these updates, or else ones, and a checkpoint of every round."""
    coordinator = Coordinator(config(rounds=rounds, **settings), task or toy_task(), Options(out))
    engine = coordinator.engine
    coordinator.run_dir.begin(coordinator.config)
    engine.ask(Register("a", "1", 0, {}, engine.identity))
    for number in range(rounds):
        order = await engine.next_order(Pull("a", engine.run_id), 5.0)
        assert isinstance(order, ev.WorkAssigned)
        update = updates[number] if updates else np.full_like(engine.model.values, 0.125)
        event = ev.UpdateArrived("a", order.round, order.attempt, samples=4, loss=0.5, compute_seconds=0.1)
        engine.accept_update(event, upload_of(update))
    await engine.finished.wait()
    await engine.close()
    return coordinator


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template")
    asyncio.run(trained(path, 4))
    return path


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    """A run of four rounds."""
    shutil.copytree(template, tmp_path / "run")
    return tmp_path / "run"


def checkpoint_files(run: Path, number: int) -> tuple[Path, Path]:
    return run / f"checkpoints/round-{number:06d}.safetensors", run / f"checkpoints/server-{number:06d}.safetensors"


def rewrite(
    run: Path,
    number: int,
    state: Mapping[str, Any] | None = None,
    model: Mapping[str, Tensor] | None = None,
    server: Mapping[str, Tensor] | None = None,
) -> None:
    """Change a checkpoint, with checksums that hold."""
    checkpoints = Checkpoints(run / "checkpoints")
    old = checkpoints.read(number)
    metadata = {name: old.metadata[name] for name in ("task", "loss", "accuracy", "metric")}
    checkpoints.save(
        Checkpoint(
            number,
            {**old.model, **(model or {})},
            {**old.server, **(server or {})},
            {**old.state, **(state or {})},
            metadata,
        )
    )


async def test_a_run_goes_on_with_the_very_state_that_it_had(tmp_path: Path, run: Path) -> None:
    through = await trained(tmp_path / "through", 4)
    again = resumed(run)
    assert again.engine.machine.round == 5
    np.testing.assert_array_equal(model_of(again).values, model_of(through).values)
    velocity = model_of(through).optimizer_state()["velocity"]
    assert velocity.any()
    np.testing.assert_array_equal(model_of(again).optimizer_state()["velocity"], velocity)
    assert again.engine.machine.shards.snapshot() == through.engine.machine.shards.snapshot()
    assert (again.engine.machine.loss, again.engine.machine.metric_value) == (
        through.engine.machine.loss,
        through.engine.machine.metric_value,
    )
    member = again.engine.machine.members.require("a")
    assert (member.rounds_contributed, member.rounds_selected) == (4, 4)


GETS_WORSE = (TRUE, TRUE, -TRUE, 0 * TRUE)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four rounds with adaptation, whose model gets a little worse in the end."""
    path = tmp_path_factory.mktemp("adapted")
    asyncio.run(trained(path, 4, updates=GETS_WORSE, policy="reactive"))
    return path


@pytest.fixture
def adapted_run(adapted: Path, tmp_path: Path) -> Path:
    shutil.copytree(adapted, tmp_path / "run")
    return tmp_path / "run"


async def test_the_adaptation_and_the_model_to_return_to_survive_a_restart(tmp_path: Path, adapted_run: Path) -> None:
    through = await trained(tmp_path / "through", 4, updates=GETS_WORSE, policy="reactive")
    again = resumed(adapted_run, policy="reactive")
    state = again.orchestrator.state()
    assert state.control.search == through.orchestrator.state().control.search
    assert state.control.progress == through.orchestrator.state().control.progress
    kept = through.engine.machine.kept
    assert again.engine.machine.kept == kept
    assert kept["round"] == 2, "the latest model is not the best one"
    model_of(through).revert()
    values = model_of(again).values.copy()
    model_of(again).revert()
    np.testing.assert_array_equal(model_of(again).values, model_of(through).values)
    assert not np.array_equal(model_of(again).values, values)


@pytest.mark.parametrize(
    ("state", "changed", "why"),
    [
        ({}, {}, ""),
        ({"adaptation": {"version": 0}}, {}, "the checkpoint was written by another version"),
        ({"adaptation": None}, {}, "the checkpoint was written by another version"),
        ({}, {"learning_rate": 0.5}, "settings of the training changed"),
    ],
)
def test_an_adaptation_that_starts_anew_says_why(
    adapted_run: Path, state: Mapping[str, Any], changed: Mapping[str, Any], why: str
) -> None:
    rewrite(adapted_run, 4, state)
    again = resumed(adapted_run, force=True, policy="reactive", **changed)
    assert again.engine.machine.round == 5
    assert again._relearns == why
    assert (again.orchestrator.phase is Phase.INITIALIZATION) is bool(why)


def test_where_nothing_was_kept_a_new_run_begins(tmp_path: Path) -> None:
    assert resumed(tmp_path).engine.machine.round == 1


# ---------------------------------------------------------------- damage


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x40
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("not a checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", [0, 1])
def test_an_older_good_checkpoint_is_used_and_the_damaged_is_named(
    run: Path, damage: str, which: int, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGE[damage](checkpoint_files(run, 4)[which])
    again = resumed(run)
    assert again.engine.machine.round == 4
    said = capsys.readouterr().out
    assert "a part of the run is damaged" in said
    assert "round-000004.safetensors" in said
    assert again._found is not None
    (named,) = again._found.damaged
    assert named.startswith("round-000004.safetensors: ")


async def test_the_fallback_is_on_record_and_the_damaged_file_is_kept_apart(run: Path) -> None:
    flip(checkpoint_files(run, 4)[0])
    again = Coordinator(config(), toy_task(), Options(run, resume=True))
    await again._begin()
    again.engine.dispatch(ev.Stop("test over"))
    await again.engine.finished.wait()
    await again.engine.close()
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    told = {row["kind"]: row["text"] for row in rows}
    assert "nodes may have seen it with" in told["ledger_replaced"]
    leaves = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert leaves[0]["round"] == 4
    assert leaves[0]["replaces"] in told["ledger_replaced"]
    assert "round-000004.safetensors does not match its checksum" in told["checkpoint_damaged"]
    assert told["resumed"] == "resumed from the checkpoint of round 3"
    assert checkpoint_files(run, 4)[0].with_name("round-000004.safetensors.damaged").exists()
    assert Checkpoints(run / "checkpoints").rounds() == [3, 2]


@pytest.mark.parametrize("damage", DAMAGE)
def test_without_any_good_checkpoint_the_run_refuses_to_start_over(run: Path, damage: str) -> None:
    before = {}
    for number in (2, 3, 4):
        DAMAGE[damage](checkpoint_files(run, number)[0])
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(CannotResume) as caught:
        resumed(run)
    for number in (2, 3, 4):
        assert f"round-{number:06d}.safetensors" in str(caught.value)
    assert "without --resume" in str(caught.value)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    with pytest.raises(CannotResume):
        resumed(run)  # the lock was given back


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["weight", "optimizer.velocity"])
def test_a_checkpoint_that_is_not_finite_is_damaged(run: Path, name: str, value: float) -> None:
    if name == "weight":
        weight = Checkpoints(run / "checkpoints").read(4).model["weight"].clone()
        weight[0, 0] = value
        rewrite(run, 4, model={name: weight})
    else:
        rewrite(run, 4, server={name: torch.full((8,), value)})
    again = resumed(run)
    assert again.engine.machine.round == 4
    assert again._found is not None
    assert f"'{name}' holds numbers that are not finite" in again._found.damaged[0]


NODE = {"node_id": "a", "rounds_contributed": 1, "rounds_selected": 1, "retries": 0, "late": 0, "rule": "automatic"}
ODD_STATES: dict[str, Mapping[str, Any]] = {
    "shards null": {"shards": None},
    "shards a list": {"shards": []},
    "no cursors": {"shards": {"owners": {}}},
    "cursor negative": {"shards": {"owners": {"a": 0}, "cursors": [-1]}},
    "cursor huge": {"shards": {"owners": {"a": 0}, "cursors": [2**53 + 1]}},
    "cursor beyond the wire": {"shards": {"owners": {"a": 0}, "cursors": [10**30]}},
    "cursor a float": {"shards": {"owners": {"a": 0}, "cursors": [1.5]}},
    "cursor a text": {"shards": {"owners": {"a": 0}, "cursors": ["1"]}},
    "cursor a bool": {"shards": {"owners": {"a": 0}, "cursors": [True]}},
    "cursor null": {"shards": {"owners": {"a": 0}, "cursors": [None]}},
    "owner beyond": {"shards": {"owners": {"a": 1}, "cursors": [0]}},
    "owner negative": {"shards": {"owners": {"a": -1}, "cursors": [0]}},
    "owner unnamed": {"shards": {"owners": {"": 0}, "cursors": [0]}},
    "owner with a line": {"shards": {"owners": {"a\n": 0}, "cursors": [0]}},
    "more shards than owners": {"shards": {"owners": {"a": 0}, "cursors": [0, 0]}},
    "fewer shards than owners": {"shards": {"owners": {"a": 0, "b": 0}, "cursors": [0]}},
    "no shards": {"shards": {"owners": {}, "cursors": [0]}},
    "nodes a text": {"nodes": "a"},
    "node a text": {"nodes": ["a"]},
    "node without a name": {"nodes": [{**NODE, "node_id": None}]},
    "node of a strange name": {"nodes": [{**NODE, "node_id": "../a"}]},
    "node of a long name": {"nodes": [{**NODE, "node_id": "a" * 65}]},
    "count negative": {"nodes": [{**NODE, "rounds_contributed": -1}]},
    "count a text": {"nodes": [{**NODE, "late": "many"}]},
    "count huge": {"nodes": [{**NODE, "retries": 10**30}]},
    "rule unknown": {"nodes": [{**NODE, "rule": "always"}]},
    "time negative": {"elapsed_seconds": -1.0},
    "time a text": {"elapsed_seconds": "long"},
    "time too long": {"elapsed_seconds": 1e30},
    "loss a text": {"loss": "low"},
    "metric a list": {"metric": [1]},
    "ended strangely": {"finished": "maybe"},
    "configuration a list": {"configuration": []},
    "samples a text": {"samples": "40"},
    "names a text": {"travelling": "weight"},
    "adaptation a list": {"adaptation": []},
    "adaptation of this version without its parts": {"adaptation": {"version": VERSION}},
    "kept a number": {"kept": 4},
    "kept in no round": {"kept": {"round": -1, "loss": 0.5, "metric": None}},
    "a name that is not there": {"travelling": ["weight", "bias", "ghost"]},
}


@pytest.mark.parametrize("odd", ODD_STATES)
def test_an_odd_state_is_damage_like_any_other(run: Path, odd: str) -> None:
    rewrite(run, 4, ODD_STATES[odd])
    again = resumed(run)
    assert again.engine.machine.round == 4
    assert again._found is not None
    (named,) = again._found.damaged
    assert "round-000004.safetensors: " in named
    for number in (2, 3):
        for file in checkpoint_files(run, number):
            file.unlink()
    with pytest.raises(CannotResume, match=r"round-000004\.safetensors"):
        resumed(run)


@pytest.mark.parametrize(
    "name", ["configuration", "shards", "nodes", "elapsed_seconds", "travelling", "untrained", "data"]
)
def test_a_state_without_a_field_is_damage(run: Path, name: str) -> None:
    checkpoints = Checkpoints(run / "checkpoints")
    old = checkpoints.read(4)
    state = {key: value for key, value in old.state.items() if key != name}
    checkpoints.save(Checkpoint(4, old.model, old.server, state, {"task": "digits"}))
    again = resumed(run)
    assert again._found is not None
    assert name in again._found.damaged[0]


@pytest.mark.parametrize("cursor", [0, 2**53])
async def test_the_largest_cursor_still_gives_work(run: Path, cursor: int) -> None:
    rewrite(run, 4, {"shards": {"owners": {"a": 0}, "cursors": [cursor]}})
    again = Coordinator(config(), toy_task(), Options(run, resume=True))
    await again._begin()
    leases = again.engine.session.leases
    assert leases is not None
    again.engine.ask(Register("a", "2", 0, {}, again.engine.identity, lease=leases.secret("a", "1")))
    order = await again.engine.next_order(Pull("a", again.engine.run_id), 5.0)
    assert isinstance(order, ev.WorkAssigned)
    assert (order.round, order.shard.cursor) == (5, cursor)
    again.engine.dispatch(ev.Stop("test over"))
    await again.engine.finished.wait()
    await again.engine.close()


def test_checkpoints_that_cannot_be_listed_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Checkpoints, "rounds", denied)
    with pytest.raises(CannotResume, match=r"cannot read the checkpoints in .*: Permission denied"):
        resumed(run)


# ---------------------------------------------------------------- another configuration


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rounds", 20),
        ("min_nodes", 2),
        ("quorum", 1.0),
        ("deadline_mads", 9.0),
        ("evaluate_every", 3),
        ("target_accuracy", 0.99),
    ],
)
def test_what_may_change_freely(run: Path, key: str, value: Any) -> None:
    assert resumed(run, **{key: value})._forced == []


@pytest.mark.parametrize(
    ("key", "value", "before"),
    [
        ("local_steps", 3, "2"),
        ("batch_size", 4, "2"),
        ("learning_rate", 0.5, "0.25"),
        ("weight_decay", 0.1, "None"),
        ("local_state", "kept", "'reset'"),
        ("warmup_rounds", 2, "0"),
        ("server_learning_rate", 0.5, "None"),
        ("server_momentum", 0.25, "0.5"),
        ("server_nesterov", True, "False"),
        ("local_optimizer", "adamw", "'auto'"),
        ("partition", "dirichlet", "'iid'"),
        ("dirichlet_alpha", 0.75, "0.5"),
    ],
)
def test_what_changes_the_training_has_to_be_forced(run: Path, key: str, value: Any, before: str) -> None:
    with pytest.raises(CannotResume, match="--force") as caught:
        resumed(run, **{key: value})
    assert f"training.{key} was {before} and is {value!r}" in str(caught.value)
    again = resumed(run, force=True, **{key: value})
    assert [difference.key for difference in again._forced] == [f"training.{key}"]
    assert again.engine.machine.round == 5


@pytest.mark.parametrize(("key", "value"), [("task", "chars"), ("seed", 1)])
@pytest.mark.parametrize("force", [False, True])
def test_another_task_or_seed_is_another_run(run: Path, key: str, value: Any, force: bool) -> None:
    with pytest.raises(CannotResume, match=f"training.{key} was .* and is {value!r}") as caught:
        resumed(run, force=force, **{key: value})
    assert ("--force does not allow a change of training." + key in str(caught.value)) == force


def test_another_optimizer_of_the_server_has_to_be_forced_and_begins_anew(run: Path) -> None:
    changed: dict[str, Any] = {"server_optimizer": "yogi", "server_momentum": 0.0}
    with pytest.raises(CannotResume, match=r"training\.server_optimizer was 'sgd' and is 'yogi'"):
        resumed(run, **changed)
    assert not model_of(resumed(run, force=True, **changed)).optimizer_state()["mean"].any()


def test_a_recipe_is_the_settings_that_it_stands_for(run: Path) -> None:
    assert not resumed(run, recipe="fedavgm", local_optimizer="auto", server_momentum=0.5)._forced


def test_every_difference_is_named_with_both_values(run: Path) -> None:
    with pytest.raises(CannotResume) as caught:
        resumed(run, seed=3, learning_rate=0.5, server_momentum=0.0)
    for text in (
        "training.seed was 0 and is 3",
        "training.learning_rate was 0.25 and is 0.5",
        "training.server_momentum was 0.5 and is 0.0",
    ):
        assert text in str(caught.value)


def test_a_setting_that_the_checkpoint_does_not_know_has_to_be_forced(run: Path) -> None:
    configuration = dict(Checkpoints(run / "checkpoints").read(4).state["configuration"])
    del configuration["learning_rate"]
    rewrite(run, 4, {"configuration": {**configuration, "strange": 1}})
    with pytest.raises(CannotResume) as caught:
        resumed(run)
    assert "training.learning_rate was not recorded and is 0.25" in str(caught.value)
    assert "training.strange was 1 and is not recorded" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "keeps"),
    [
        ("learning_rate", 0.5, True),
        ("partition", "dirichlet", True),
        ("local_steps", 3, False),
        ("server_momentum", 0.25, False),
        ("server_nesterov", True, False),
    ],
)
def test_the_optimizer_goes_on_only_where_its_state_means_the_same(
    run: Path, key: str, value: Any, keeps: bool
) -> None:
    again = resumed(run, force=True, **{key: value})
    assert model_of(again).optimizer_state()["velocity"].any() == keeps


class WithFrozen(nn.Module):
    def __init__(self, scale: float, frozen: str = "base") -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        base = nn.Linear(3, 3)
        nn.init.constant_(base.weight, scale)
        self.base = base.requires_grad_(frozen != "base")
        self.head.bias.requires_grad_(frozen != "bias")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.base(x))  # type: ignore[no-any-return]


async def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    await trained(tmp_path, 1, toy_task(model=lambda: WithFrozen(1.0)))
    resumed(tmp_path, of=toy_task(model=lambda: WithFrozen(1.0)))
    for other, named in (
        (toy_task(model=lambda: nn.Linear(3, 2)), "the tensor 'base.bias' was 'float32 (3,)' and is 'absent'"),
        (toy_task(features=4), "the tensor 'weight' was 'absent' and is 'float32 (2, 4)'"),
        (toy_task(model=lambda: WithFrozen(1.0, frozen="")), "the list of trained tensors was"),
        (
            toy_task(39, model=lambda: WithFrozen(1.0)),
            "the number of training samples was 40 and is 39",
        ),
    ):
        for force in (False, True):
            with pytest.raises(CannotResume) as caught:
                resumed(tmp_path, of=other, force=force)
            assert named in str(caught.value)


@pytest.mark.parametrize(("layers", "more"), [(3, ""), (4, "; and 2 more tensors")])
async def test_a_message_names_eight_tensors(tmp_path: Path, layers: int, more: str) -> None:
    """The other model has two tensors more, under other names than these two of each layer."""
    await trained(tmp_path, 1, toy_task(model=lambda: nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)))))
    with pytest.raises(CannotResume) as caught:
        resumed(tmp_path, of=toy_task(model=lambda: nn.Linear(3, 2)))
    named = [part for part in str(caught.value).split("; ") if part.startswith("the tensor")]
    assert len(named) == 8
    assert ("more tensors" in str(caught.value)) == bool(more)
    assert more in str(caught.value)


async def test_other_frozen_layers_are_another_model(tmp_path: Path) -> None:
    await trained(tmp_path, 1, toy_task(model=lambda: WithFrozen(1.0)))
    with pytest.raises(CannotResume, match="the checksum of the untrained tensors was"):
        resumed(tmp_path, of=toy_task(model=lambda: WithFrozen(2.0)))


def test_other_data_of_the_same_shape_has_to_be_forced(run: Path) -> None:
    with pytest.raises(CannotResume, match=r"the fingerprint of the data was '.*--force"):
        resumed(run, of=toy_task(draw=1))
    assert resumed(run, of=toy_task(draw=1), force=True).engine.machine.round == 5


async def test_an_optimizer_that_does_not_fit_is_refused(run: Path) -> None:
    rewrite(run, 4, server={"optimizer.mean": torch.ones(8)})
    with pytest.raises(CannotResume, match="does not fit this model: the optimizer's state holds mean, velocity where"):
        resumed(run)


# ---------------------------------------------------------------- complete runs


@pytest.mark.parametrize(("rounds", "complete"), [(3, True), (4, True), (5, False)])
def test_a_run_is_complete_when_its_rounds_are_done(run: Path, rounds: int, complete: bool) -> None:
    assert resumed(run, rounds=rounds)._complete is complete


@pytest.mark.parametrize(
    ("finished", "accuracy", "target", "complete"),
    [
        ("target_reached", 0.75, 0.75, True),
        ("target_reached", 0.75, 0.5, True),
        ("target_reached", 0.75, 0.8, False),
        ("target_reached", 0.75, None, False),
        ("target_reached", None, 0.5, False),
        ("stopped", 0.75, 0.5, False),
        (None, 0.75, 0.5, False),
    ],
)
def test_a_run_that_reached_its_target_is_complete(
    run: Path, finished: str | None, accuracy: float | None, target: float | None, complete: bool
) -> None:
    rewrite(run, 4, {"finished": finished, "metric": accuracy})
    assert resumed(run, target_accuracy=target)._complete is complete


@pytest.mark.parametrize(("patience", "complete"), [(3, True), (2, True), (4, False), (0, False)])
def test_a_run_whose_patience_ended_is_complete_until_it_gets_more(run: Path, patience: int, complete: bool) -> None:
    found = {"round": 1, "loss": 0.5, "metric": 0.75, "evaluations": 3}
    rewrite(run, 4, {"finished": "no_improvement", "improvement": found})
    again = resumed(run, patience=patience)
    assert again._complete is complete
    assert again.engine.machine.improvement == found


@pytest.mark.parametrize(("value", "target", "complete"), [(0.5, 0.5, True), (0.5, 0.6, True), (0.5, 0.4, False)])
def test_a_target_of_which_less_is_better_is_reached_from_above(
    run: Path, value: float, target: float, complete: bool
) -> None:
    rewrite(run, 4, {"finished": "target_reached", "metric": value})
    task = replace(toy_task(), metric=Metric("mse", lambda outputs, targets: 0.5, better="lower"))
    assert resumed(run, of=task, target_accuracy=target)._complete is complete


def test_a_copy_of_a_run_goes_on_too(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    assert resumed(tmp_path / "copy").engine.machine.round == 5
