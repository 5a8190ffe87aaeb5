"""Late updates with real gradients: what is merged is what the node would have sent in its own round."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hypergpu.common.config import TrainingConfig
from hypergpu.common.tensors import Manifest, TensorSpec
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.model.fragment_sendings import Held
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.simulation.gradients import GradientBackend
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import Scenario
from hypergpu.tasks import Task, load_task

CONFIG = TrainingConfig(local_steps=3, batch_size=16, mode="late")


def work(node: str, number: int, codecs: TransferCodecs, shard: int = 0) -> ev.WorkAssigned:
    return ev.WorkAssigned(number, node, 1, 16, 3, 0.1, "sgd", ev.Shard(shard, 2, 0), 1e9, codecs)


@pytest.mark.parametrize("codec", ["none", "bf16", "int8"])
def test_a_late_update_begins_with_the_parameters_of_its_round(codec: str) -> None:
    def figures(*, late: bool) -> ev.UpdateArrived:
        codecs = TransferCodecs("none", codec)
        backend = GradientBackend(load_task("digits", 0), CONFIG)
        for number in (1, 2):  # int8 sends a difference from the second round on
            backend.begin_round(number)
            backend.sendings.plan(codec, Held(number - 1))
            backend.train(work("a", number, codecs))
            if number == 2 and not late:
                return backend.train(work("b", 2, codecs, 1))
            backend.add(48)
            backend.keep_parameters({(2, codec)} if number == 2 else ())
            backend.step()
        backend.begin_round(3)
        backend.sendings.plan(codec, Held(2))
        return backend.train(work("b", 2, codecs, 1))

    assert figures(late=True) == figures(late=False)


def test_parameters_are_kept_as_long_as_a_late_unit_needs_them() -> None:
    backend = GradientBackend(load_task("digits", 0), CONFIG)
    backend.begin_round(1)
    backend.keep_parameters({(1, "none")})
    first = backend._sent.kept[1, "none"]
    backend.keep_parameters({(1, "none"), (2, "none")})
    assert backend._sent.kept[1, "none"] is first
    backend.keep_parameters(())
    assert not backend._sent.kept


def state_model(mode: str) -> GlobalModel:
    """Return a model of one parameter and one running variance, both 1."""
    config = TrainingConfig(local_steps=2, mode=mode)
    return GlobalModel(Manifest((TensorSpec("p", (1,)), TensorSpec("v", (1,)))), np.ones(2, np.float32), 1, config)


def payload(*change: float) -> Any:
    return np.array(change, np.float32).view(np.uint8)


def test_the_state_of_a_late_update_is_the_value_that_its_node_reached() -> None:
    model = state_model("late")
    model.begin_round(1)
    model.add(payload(-0.5, -0.9), "none", 16)
    assert model.step()
    assert model.values.tolist() == pytest.approx([0.5, 0.1])
    model.begin_round(2)
    model.add(payload(-0.5, -0.9), "none", 16, late=(1, 1))
    model.add(payload(-0.1, 0.0), "none", 16)
    assert model.step()
    assert model.values.tolist() == pytest.approx([0.5 - (0.5 / 2**0.5 + 0.1) / 2, 0.1]), (
        "a change of -0.9 would make the variance negative"
    )


def test_a_revert_removes_late_updates_of_what_is_given_up() -> None:
    model = state_model("late")
    model.begin_round(1)
    model.add(payload(-0.5, 0.0), "none", 16)
    model.step()
    model.add(payload(7.0, 0.0), "none", 16, late=(1, 1))
    model.revert()
    model.add(payload(-0.5, 0.0), "none", 16)
    model.step()
    assert model.values[0] == pytest.approx(0.5)


def scenario(mode: str, **training: Any) -> Scenario:
    """Four nodes; one takes three times as long, and rounds close without it."""
    return Scenario.model_validate(
        {
            "name": "late",
            "rounds": 12,
            "policy": "none",
            "task": "digits",
            "nodes": [{"id": "node", "count": 3, "gpu": "T4"}, {"id": "slow", "gpu": "T4", "speed": 0.35}],
            "compute": {"seconds_per_step": 0.02, "spread": 0.0},
            "config": {"training": {"mode": mode, "close_share": 0.7, "local_steps": 4, **training}},
        }
    )


def run(tmp_path: Path, mode: str, **training: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    outcome = simulate(scenario(mode, **training), tmp_path)
    return outcome, [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]


def test_a_slow_node_contributes_in_every_third_round_and_nothing_is_refused(tmp_path: Path) -> None:
    outcome, found = run(tmp_path, "late")
    merged = [each for row in found for each in row.get("late", ())]
    slow = next(node for node in outcome.nodes if node.node_id == "slow")
    assert len(merged) >= 3
    assert {each["node"] for each in merged} == {"slow"}
    assert {each["staleness"] for each in merged} <= {2, 3}
    assert (slow.late, slow.rounds_contributed) == (0, len(merged))
    cursors = [row["samples"] for row in found if "late" in row]
    assert set(cursors) == {4 * 4 * 64}, "three nodes in time and one late"


def test_without_late_merge_its_work_is_lost(tmp_path: Path) -> None:
    outcome, found = run(tmp_path, "sync")
    slow = next(node for node in outcome.nodes if node.node_id == "slow")
    assert slow.rounds_contributed == 0
    assert not any("late" in row for row in found)


def test_a_bound_that_the_slow_node_misses_refuses_it(tmp_path: Path) -> None:
    outcome, found = run(tmp_path, "late", max_staleness=1)
    assert not any("late" in row for row in found)
    assert next(node for node in outcome.nodes if node.node_id == "slow").rounds_contributed == 0


def test_late_runs_are_deterministic(tmp_path: Path) -> None:
    first, second = (run(tmp_path / name, "late", partition="dirichlet") for name in ("a", "b"))
    assert first == second


def test_a_model_with_running_statistics_stays_finite_with_late_updates() -> None:
    torch.manual_seed(0)
    x, y = 0.01 * torch.randn(256, 4), torch.arange(256) % 2

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    backend = GradientBackend(Task(model=model, train=(x, y), test=(x, y), name="norms"), CONFIG)
    backend.begin_round(1)
    for _ in range(2):
        backend.train(work("a", 1, TransferCodecs()))
        backend.add(48)
    backend.keep_parameters({(1, "none")})
    assert backend.step()
    for number in (2, 3):
        backend.begin_round(number)
        backend.train(work("b", 1, TransferCodecs(), 1))
        backend.add(48, (1, number - 1))
        assert backend.step()
    (variance,) = (each for name, each in backend._model.manifest.views(backend._model.values).items() if "var" in name)
    assert np.isfinite(backend.evaluate()[0])
    assert variance.min() >= 0.72, "each node has come down to 0.73 in three steps, and no lower"
