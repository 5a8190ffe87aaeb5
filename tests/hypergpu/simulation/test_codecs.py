"""Codecs in virtual time: their bytes move over the links, and their noise is in the learning."""

from dataclasses import replace
from typing import Any

import pytest

from hypergpu.common.codecs import find_codec
from hypergpu.common.config import TrainingConfig
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.simulation import message_sizes
from hypergpu.simulation.compute import SimulatedCards
from hypergpu.simulation.gradients import GradientBackend
from hypergpu.simulation.node import LocalSteps
from hypergpu.simulation.run import Outcome, simulate
from hypergpu.simulation.scenario import ComputeTimes, Scenario
from hypergpu.tasks import load_task

ROUNDS, NODES, VALUES = 4, 3, 1_000_000


def run(update: str = "none", parameters: str = "none", **changes: Any) -> Outcome:
    codecs = {"strategy": "fixed", "update_codec": update, "parameters_codec": parameters}
    config = {"training": {"rounds": ROUNDS, "min_nodes": NODES}, "compression": codecs}
    tree = {
        "policy": "none",
        "learning": "model",
        "convergence": {"model_bytes": 4 * VALUES},
        "nodes": [{"id": "node", "count": NODES, "profile": "good"}],
        "config": config,
        **changes,
    }
    return simulate(Scenario.model_validate(tree))


def payload(codec: str) -> int:
    return message_sizes.chunks_bytes(find_codec(codec).encoded_bytes(VALUES))


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4", "topk"])
def test_updates_take_the_bytes_of_their_codec(codec: str) -> None:
    plain, coded = run(), run(codec)
    for before, after in zip(plain.nodes, coded.nodes, strict=True):
        saved = ROUNDS * (payload("none") - payload(codec))
        assert before.bytes_up - after.bytes_up == pytest.approx(saved, rel=0.001)
        assert after.bytes_down == pytest.approx(before.bytes_down, rel=0.001)
    assert coded.seconds < plain.seconds


def test_parameters_take_the_bytes_of_their_codec() -> None:
    plain, halved, differences = run(), run(parameters="bf16"), run(parameters="int8")
    for number in range(NODES):
        down = plain.nodes[number].bytes_down
        assert down - halved.nodes[number].bytes_down == pytest.approx(
            ROUNDS * (payload("none") - payload("bf16")), rel=0.001
        )
        # The first round has nothing to differ from, and sends bf16.
        saved = (ROUNDS - 1) * (payload("none") - payload("int8")) + payload("none") - payload("bf16")
        assert down - differences.nodes[number].bytes_down == pytest.approx(saved, rel=0.001)


def work(node: str, round_number: int, codec: str, accepted_round: int) -> ev.WorkAssigned:
    work = ev.WorkAssigned(round_number, node, 1, 16, 2, 0.1, "sgd", ev.Shard(0, 2, 0), 1e9, TransferCodecs(codec))
    return replace(work, accepted_round=accepted_round)


def test_the_share_of_an_optimizer_is_that_of_its_time() -> None:
    times = ComputeTimes(seconds_per_step=0.01, seconds_per_sample=0.0005, muon_seconds=0.006)
    backend = GradientBackend(load_task("digits", 0), TrainingConfig(local_steps=2, batch_size=16), times)
    backend.begin_round(1)
    order = work("a", 1, "none", 0)
    assert backend.train(order).optimizer_share == 0.0
    assert backend.train(replace(order, local_optimizer="muon")).optimizer_share == pytest.approx(0.006 / 0.024)
    adamw = backend.train(replace(order, local_optimizer="adamw"))
    assert adamw.optimizer_share == pytest.approx(0.00084 / 0.01884), "a fiftieth of a step of 64 samples"
    assert backend.train(replace(order, local_optimizer="muon", local_steps=1)).optimizer_share == 0.0


def test_a_simulated_card_takes_longer_with_an_optimizer_that_does() -> None:
    nodes = [{"id": "fast", "gpu": "A100"}, {"id": "slow", "gpu": "A100", "speed": 0.5}]
    times = {"seconds_per_step": 0.01, "seconds_per_sample": 0.0, "muon_seconds": 0.006, "spread": 0.0}
    cards = SimulatedCards(Scenario.model_validate({"nodes": nodes, "compute": times}))

    def seconds(node: str, optimizer: str, number: int = 10) -> float:
        return cards.seconds(node, LocalSteps(0, number, 64, optimizer), 0.0)

    for node in ("fast", "slow"):
        assert seconds(node, "muon") / seconds(node, "sgd") == pytest.approx(1.6)
        assert seconds(node, "muon", 1) == seconds(node, "sgd", 1), "a single step sends its gradient"
    assert seconds("slow", "muon") == pytest.approx(2 * seconds("fast", "muon"))


def test_the_noise_of_real_updates_is_reported_and_a_new_process_has_no_residual() -> None:
    def noises(restarts: bool) -> list[float]:
        config = TrainingConfig(local_steps=2, batch_size=16)
        backend = GradientBackend(load_task("digits", 0), config)
        backend.begin_round(1)
        found = [backend.train(work("a", 1, "topk", 0)).noise]
        if restarts:
            backend.process_started("a")
        found.append(backend.train(work("a", 2, "topk", 1)).noise)
        return found

    first, second = noises(restarts=True)
    assert 0.1 < first < 1.0
    assert second == first, "the same update, without a residual"
    assert noises(restarts=False)[1] != first
