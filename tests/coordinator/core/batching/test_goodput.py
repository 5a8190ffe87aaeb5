"""The formulas of goodput, and the noise scale against noise that is known."""

import numpy as np
import pytest

from hypergpu.coordinator.core.batching import goodput as gp
from hypergpu.coordinator.core.batching.costs import ComputeCosts


def test_the_best_plan_beats_every_plan_on_a_grid() -> None:
    communication, cost = np.array([0.02, 0.3]), gp.StepCost(np.array([0.001, 0.002]), np.array([1e-4, 2e-4]))
    bounds = {"least": np.array([16, 16]), "most": np.array([256, 256])}
    now = gp.evaluate(10, np.array([64, 64]), communication, cost, noise_scale=128.0, drift_steps=100.0)
    best = gp.best_plan(
        now, communication, cost, **bounds, steps=(10, 40), noise_scale=128.0, drift_steps=100.0, rounds=10**6
    )
    grid = [
        gp.evaluate(steps, np.array([a, b]), communication, cost, noise_scale=128.0, drift_steps=100.0).goodput
        for steps in range(10, 41, 5)
        for a in range(16, 257, 16)
        for b in range(16, 257, 16)
    ]
    assert best.goodput >= 0.95 * max(grid)
    assert best.goodput > now.goodput


def test_work_that_is_begun_anew_at_each_end_of_a_process_is_kept_short() -> None:
    lives = gp.StepCost(np.zeros(2), np.full(2, 1e-3), restarts_per_second=1.0 / 3.0)
    assert lives.expected(np.array([0.03, 3.0, 30.0])) == pytest.approx([0.03015, 5.155, 66_076.4], rel=1e-3)
    assert np.isfinite(lives.expected(np.array([1e9])))
    steady = gp.StepCost(lives.fixed, lives.per_sample)
    assert steady.expected(np.array([3.0])) == 3.0
    communication, sizes = np.full(2, 0.7), np.array([64, 64])
    bounds = {"least": np.array([16, 16]), "most": np.array([512, 512])}

    def work(cost: gp.StepCost) -> float:
        now = gp.evaluate(10, sizes, communication, cost, noise_scale=500.0, drift_steps=160.0)
        best = gp.best_plan(
            now, communication, cost, **bounds, steps=(10, 40), noise_scale=500.0, drift_steps=160.0, rounds=10**6
        )
        return float(best.steps * cost.seconds(best.batches).max())

    assert work(lives) < 0.6 * work(steady)


@pytest.mark.parametrize("noise_scale", [50.0, 400.0, 3_000.0])
def test_the_noise_scale_is_found_from_norms(noise_scale: float) -> None:
    rng = np.random.default_rng(3)
    signal, size, nodes, samples = np.ones(400) / 20.0, 400, 8, 64
    estimate = gp.NoiseScale()
    for _ in range(60):
        noise = rng.normal(size=(nodes, size)) * np.sqrt(noise_scale / samples / size)
        updates = signal + noise
        mean = updates.mean(axis=0)
        estimate.observe(float((updates**2).sum(axis=1).mean()), float(mean @ mean), nodes, samples)
    # Three quarters of the trust go to the estimate, in the logarithm.
    assert estimate.value(prior=noise_scale) == pytest.approx(noise_scale, rel=0.25)
    assert abs(np.log(estimate.value(prior=4 * noise_scale) / noise_scale)) < 0.5 * np.log(4)


def test_without_norms_the_prior_holds() -> None:
    estimate = gp.NoiseScale()
    assert estimate.value(640.0) == 640.0
    estimate.observe(float("nan"), 1.0, 4, 64)
    estimate.observe(1.0, 1.0, 1, 64)
    assert estimate.value(640.0) == 640.0


def test_a_longer_round_has_to_pay_for_its_lateness_early_on() -> None:
    assert gp.switching_penalty(1.0, 2.0, 1) == 1.0, "shorter rounds are free"
    assert gp.switching_penalty(4.0, 2.0, 1) == pytest.approx(1.5)
    assert gp.switching_penalty(4.0, 2.0, 10) == pytest.approx(1.05)


def test_where_one_size_was_run_only_neither_larger_nor_smaller_batches_look_cheap() -> None:
    cost = gp.StepCost(np.array([0.0]), np.array([0.001]), np.array([64.0]))
    assert cost.seconds(np.array([128])) == pytest.approx(0.128), "larger: its full share"
    assert cost.seconds(np.array([32])) == pytest.approx(0.048), "smaller: half of what it would save"


def test_ends_of_processes_are_counted_by_the_time_that_was_watched() -> None:
    costs = ComputeCosts()
    assert costs.restarts_per_second == 0.0
    costs.record_restarts(0, 0.0)
    assert costs.restarts_per_second == 0.0
    costs.record_restarts(1, 0.5)
    assert costs.restarts_per_second == pytest.approx(2.0)
    costs.record_restarts(0, 1.0)
    assert costs.restarts_per_second == pytest.approx(0.85 / 1.425)
