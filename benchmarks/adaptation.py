"""What adaptation is worth: time to a target accuracy in virtual time, with real gradients, against the fixed baseline.

Digits (scikit-learn) on a two-layer perceptron in numpy; links and deadlines are the
product's own.
The runs of a seed differ in nothing but what is adapted, so the ratios are paired.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import SystemConfig
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.coordinator.core.orchestration import build_orchestrator
from hypergpu.coordinator.core.rounds.deadlines import DeadlineEstimator
from hypergpu.coordinator.core.rounds.events import Contribution
from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import Direction, Fail, Hold
from hypergpu.netsim_proxy.link.profiles import find_profile

Array = npt.NDArray[np.float32]
HELD_OUT = 300


@dataclass(frozen=True)
class Scenario:
    """Links of the nodes, and one change of a profile at a round of the run."""

    profiles: list[str]
    change: tuple[int, int, str] | None = None
    step_seconds: tuple[float, float] = (0.3e-3, 4e-6)
    """Fixed, and per sample."""
    skewed: bool = False
    """Shards by class instead of at random."""


SCENARIOS: Mapping[str, Scenario] = {
    "uniform": Scenario(["good"] * 10),
    "uniform-compute": Scenario(["good"] * 10, step_seconds=(1e-3, 200e-6)),
    "flaky": Scenario(["good"] * 8 + ["unstable"] * 2),
    "flaky-compute": Scenario(["good"] * 8 + ["unstable"] * 2, step_seconds=(1e-3, 200e-6)),
    "flaky-skewed": Scenario(["good"] * 8 + ["unstable"] * 2, skewed=True),
    "degrading": Scenario(["good"] * 10, change=(4, 0, "unstable")),
    "degrading-late": Scenario(["good"] * 10, change=(8, 0, "unstable")),
    "mixed": Scenario(["perfect", "good", "average", "poor", "unstable"]),
    "all-poor": Scenario(["poor"] * 10),
}


class Model:
    """A perceptron of 64 × hidden × 10, its parameters one flat buffer."""

    def __init__(self, seed: int, hidden: int = 256) -> None:
        rng = KeyedRandom(seed, "parameters").generator()
        self.shapes = [(64, hidden), (hidden,), (hidden, 10), (10,)]
        bounds = [64**-0.5, 64**-0.5, hidden**-0.5, hidden**-0.5]
        parts = [rng.uniform(-b, b, shape).ravel() for b, shape in zip(bounds, self.shapes, strict=True)]
        self.flat = np.concatenate(parts).astype(np.float32)

    def views(self, flat: Array) -> list[Array]:
        """The tensors that lie in a flat buffer."""
        cuts = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(flat, cuts), self.shapes, strict=True)]

    def train(self, flat: Array, batches: list[tuple[Array, Any]], rate: float) -> float:
        """SGD in place; the loss before the first step."""
        w1, b1, w2, b2 = self.views(flat)
        first = 0.0
        for step, (x, y) in enumerate(batches):
            hidden = np.maximum(x @ w1 + b1, 0.0)
            probabilities = softmax(hidden @ w2 + b2)
            if step == 0:
                first = float(-np.log(probabilities[np.arange(len(y)), y] + 1e-12).mean())
            probabilities[np.arange(len(y)), y] -= 1.0
            delta = probabilities / len(y)
            back = (delta @ w2.T) * (hidden > 0)
            w2 -= rate * hidden.T @ delta
            b2 -= rate * delta.sum(axis=0)
            w1 -= rate * x.T @ back
            b1 -= rate * back.sum(axis=0)
        return first

    def evaluate(self, x: Array, y: Any) -> tuple[float, float]:
        """Loss and accuracy."""
        w1, b1, w2, b2 = self.views(self.flat)
        probabilities = softmax(np.maximum(x @ w1 + b1, 0.0) @ w2 + b2)
        loss = float(-np.log(probabilities[np.arange(len(y)), y] + 1e-12).mean())
        return loss, float((probabilities.argmax(axis=1) == y).mean())


def softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


@dataclass
class Node:
    """A simulated worker."""

    name: str
    link: Link
    x: Array
    y: Any
    seed: int
    cursor: int = 0
    free_at: float = 0.0
    rpcs: list[tuple[float, float, bool]] = field(default_factory=list)
    """When each ended, its latency in ms, whether it succeeded."""

    def batches(self, count: int, size: int) -> list[tuple[Array, Any]]:
        """The next batches of the shard, each epoch in an order of its own."""
        taken = []
        for _ in range(count):
            index = np.arange(self.cursor, self.cursor + size)
            epochs = index // len(self.y)
            order = np.concatenate(
                [
                    self.order(int(epoch))[index[epochs == epoch] % len(self.y)]
                    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
                ]
            )
            taken.append((self.x[order], self.y[order]))
            self.cursor += size
        return taken

    def order(self, epoch: int) -> Any:
        """Of the samples in an epoch."""
        return KeyedRandom(self.seed, self.name, "order").generator(epoch).permutation(len(self.y))

    def call(self, now: float, up: int, down: int) -> float:
        """One RPC with its retries; returns when it succeeded."""
        for attempt in range(100):
            began = now
            exchange = self.link.begin(now)
            outcome = self.link.offer(now, Direction.UP, up, exchange, end=True)
            if not isinstance(outcome, Fail | Hold):
                outcome = self.link.offer(outcome.at, Direction.DOWN, down, exchange, end=True)
            if isinstance(outcome, Hold):
                now = outcome.until
                continue
            now = outcome.at
            success = not isinstance(outcome, Fail)
            self.rpcs.append((now, 1e3 * (now - began), success))
            if success:
                return now
            now += 0.1 * 2 ** min(attempt, 5) * KeyedRandom(self.seed, self.name, "backoff").uniform(len(self.rpcs))
        return now


@dataclass(frozen=True)
class Outcome:
    """One run."""

    to_target: float | None
    seconds: float
    rounds: int
    accuracy: float
    rollbacks: int
    trace: list[str]


def run(  # noqa: PLR0915  # one round after the other, top to bottom
    scenario: Scenario, config: SystemConfig, *, seed: int, rounds: int, target: float, heartbeat: float
) -> Outcome:
    """One run in virtual time."""
    images, classes = load_digits(return_X_y=True)
    order = KeyedRandom(0, "digits", "split").generator().permutation(len(images))
    x, y = images[order].astype(np.float32) / 2, classes[order]
    x_test, y_test, x_train, y_train = x[:HELD_OUT], y[:HELD_OUT], x[HELD_OUT:], y[HELD_OUT:]
    deal = (
        np.argsort(y_train, kind="stable")
        if scenario.skewed
        else KeyedRandom(seed, "deal").generator().permutation(len(y_train))
    )
    shards = np.array_split(deal, len(scenario.profiles))
    nodes = {
        f"node_{i}": Node(f"node_{i}", Link(f"node_{i}", find_profile(name), seed), x_train[own], y_train[own], seed)
        for i, (name, own) in enumerate(zip(scenario.profiles, shards, strict=True))
    }
    model, clock, deadlines = Model(seed), ManualClock(), DeadlineEstimator()
    adaptation = build_orchestrator(config, clock=clock)
    for name, node in nodes.items():
        adaptation.register_node(name, largest_batch=len(node.y))
    adaptation.start_training()
    fixed, per_sample = scenario.step_seconds
    nbytes, now, reached, accuracy, trace, beat = model.flat.nbytes, 0.0, None, 0.0, [], 0.0
    for round_num in range(1, rounds + 1):
        if scenario.change and scenario.change[0] == round_num:
            nodes[f"node_{scenario.change[1]}"].link.set_profile(find_profile(scenario.change[2]), now)
        available = [name for name, node in nodes.items() if node.free_at <= now]
        if not available:
            now = min(node.free_at for node in nodes.values())
            available = [name for name, node in nodes.items() if node.free_at <= now]
        began = clock.now = now
        plan = adaptation.pre_round_adaptation(available, round_num)
        steps, rate = plan["local_steps"], plan["learning_rate"]
        deadline = now + deadlines.deadline(plan["selected_nodes"]).seconds
        arrivals: dict[str, tuple[float, float]] = {}
        for name in plan["selected_nodes"]:
            node, size = nodes[name], plan["batch_sizes"][name]
            pulled = node.call(now, 200, nbytes)
            compute = steps * (fixed + per_sample * size)
            arrivals[name] = (node.call(pulled + compute, nbytes, 50), compute)
            node.free_at = arrivals[name][0]
            deadlines.observe(name, arrivals[name][0] - now)
        quorum = sorted(at for at, _ in arrivals.values())[max(0, int(np.ceil(0.6 * len(arrivals))) - 1)]
        end = min(max(at for at, _ in arrivals.values()), max(deadline, quorum))
        total, weight, contributions = np.zeros_like(model.flat), 0, []
        squares: list[float] = []
        for name, (at, compute) in arrivals.items():
            size = plan["batch_sizes"][name]
            if at > end:
                contributions.append(Contribution(name, False, batch_size=size, waiting_seconds=end - now))
                continue
            flat = model.flat.copy()
            before = model.train(flat, nodes[name].batches(steps, size), rate)
            flat -= model.flat
            squares.append(float(flat @ flat))
            total += flat * (steps * size)
            weight += steps * size
            contributions.append(
                Contribution(name, True, steps * size, size, compute, at - now - compute, before, before)
            )
        mean = total / max(weight, 1)
        model.flat += mean
        loss, accuracy = model.evaluate(x_test, y_test)
        now, clock.now = end, end
        while beat + heartbeat <= now:  # heartbeats go on, whoever is selected
            beat += heartbeat
            for node in nodes.values():
                node.call(max(now, node.free_at), 300, 50)
        for name, node in nodes.items():
            for _, latency, success in node.rpcs:
                adaptation.monitor.record_communication(name, latency, success)
            node.rpcs.clear()
        metrics: dict[str, Any] = {
            "loss": loss,
            "accuracy": accuracy,
            "round_time": end - began,
            "samples": weight,
            "contributions": contributions,
            "update_norms": (float(np.mean(squares)) if squares else 0.0, float(mean @ mean)),
        }
        adaptation.post_round_evaluation(round_num, metrics)
        trace.append(
            f"{round_num:3d} t={now:7.3f} +{end - began:.3f} nodes {len(plan['selected_nodes'])} steps {steps} "
            f"batch {np.mean(list(plan['batch_sizes'].values())):.0f} rate {rate:.3f} loss {loss:.4f} "
            f"accuracy {accuracy:.4f} {plan['phase']}"
        )
        if reached is None and accuracy >= target:
            reached = now
    return Outcome(reached, now, rounds, accuracy, adaptation.get_orchestrator_status()["rollbacks"], trace)


VARIANTS: Mapping[str, dict[str, Any]] = {
    "none": {"orchestrator": {"policy": "none"}},
    "reactive": {},
    "conservative": {"orchestrator": {"policy": "conservative"}},
    "aggressive": {"orchestrator": {"policy": "aggressive"}},
    "proactive": {"orchestrator": {"policy": "proactive"}},
    "selection only": {"batch": {"strategy": "fixed"}},
    "batches only": {"selector": {"strategy": "all_available"}},
    "batches, steps kept": {"selector": {"strategy": "all_available"}, "batch": {"max_local_steps_factor": 1}},
    "hybrid + adaptive threshold": {"batch": {"strategy": "hybrid"}, "selector": {"strategy": "adaptive_threshold"}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=["uniform", "flaky", "degrading"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["none", "reactive"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--target", type=float, default=0.96)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--heartbeat", type=float, default=2.0, help="seconds")
    parser.add_argument("--trace", action="store_true", help="print every round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    training = {"learning_rate": options.learning_rate, "local_steps": options.local_steps, "batch_size": 64}
    rows = []
    for name in options.scenarios:
        baseline: list[Outcome] = []
        for variant in options.variants:
            partition = "dirichlet" if SCENARIOS[name].skewed else "iid"
            config = SystemConfig.model_validate(
                {"training": {**training, "partition": partition}, **VARIANTS[variant]}
            )
            outcomes = [
                run(
                    SCENARIOS[name],
                    config,
                    seed=seed,
                    rounds=options.rounds,
                    target=options.target,
                    heartbeat=options.heartbeat,
                )
                for seed in range(options.seeds)
            ]
            baseline = baseline or outcomes
            ratios = [
                old.to_target / new.to_target
                for old, new in zip(baseline, outcomes, strict=True)
                if old.to_target and new.to_target
            ]
            rows.append(
                {
                    "scenario": name,
                    "variant": variant,
                    "to_target_seconds": statistics.fmean(o.to_target or float("nan") for o in outcomes),
                    "speedup": statistics.fmean(ratios) if ratios else None,
                    "least_speedup": min(ratios, default=None),
                    "reached": sum(o.to_target is not None for o in outcomes),
                    "accuracy": statistics.fmean(o.accuracy for o in outcomes),
                    "run_seconds": statistics.fmean(o.seconds for o in outcomes),
                    "rollbacks": sum(o.rollbacks for o in outcomes),
                }
            )
            if not options.json:
                row = rows[-1]
                print(
                    f"{name:16} {variant:28} to target {row['to_target_seconds']:7.2f} s "
                    f"({row['reached']}/{options.seeds}), speedup {row['speedup'] or float('nan'):5.2f} "
                    f"(least {row['least_speedup'] or float('nan'):5.2f}), accuracy {row['accuracy']:.4f}, "
                    f"{options.rounds} rounds in {row['run_seconds']:6.1f} s, rollbacks {row['rollbacks']}",
                    flush=True,
                )
                if options.trace:
                    print("\n".join(outcomes[0].trace))
    if options.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
