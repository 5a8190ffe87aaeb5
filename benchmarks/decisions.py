"""Cost of decisions: one round's adaptation for growing clusters, with every part and policy.

Timed is what a round adds: `pre_round_adaptation` and `post_round_evaluation`, with the contributions of all selected
nodes taken in. Feeding the RPCs of the nodes is not part of a decision and is shown apart. The
figures are CPU time, so that other load on the machine does not show.
"""

import argparse
import json
import statistics
import time

from hypergpu.common.clock import ManualClock
from hypergpu.common.config import SystemConfig
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.coordinator.core.adaptation import AdaptiveOrchestrator, build_orchestrator
from hypergpu.coordinator.core.rounds.events import Contribution


def feed(adaptation: AdaptiveOrchestrator, nodes: list[str], draws: KeyedRandom, round_num: int) -> None:
    """Four RPCs of every node; one node in five has an unstable link."""
    for at, node in enumerate(nodes):
        low, high, loss = (50.0, 450.0, 0.1) if at % 5 == 0 else (10.0, 40.0, 0.001)
        for rpc in range(4):
            u = draws.uniform((round_num * len(nodes) + at) * 4 + rpc)
            adaptation.monitor.record_communication(node, low + high * u, u > loss)


def measure(count: int, rounds: int, policy: str) -> dict[str, float]:
    """Per round, in milliseconds."""
    config = SystemConfig.model_validate({"orchestrator": {"policy": policy}})
    clock, draws = ManualClock(), KeyedRandom(1, "decisions")
    adaptation = build_orchestrator(config, clock=clock)
    nodes = [f"node_{i}" for i in range(count)]
    for node in nodes:
        adaptation.register_node(node)
    before, after, feeding = [], [], []
    for round_num in range(1, rounds + 1):
        began = time.process_time()
        feed(adaptation, nodes, draws, round_num)
        fed = time.process_time()
        plan = adaptation.pre_round_adaptation(nodes, round_num)
        planned = time.process_time()
        steps, sizes = plan["local_steps"], plan["batch_sizes"]
        contributions = [
            Contribution(
                node, True, sizes[node] * steps, sizes[node], 1e-3 * steps, 0.05 + 0.02 * draws.uniform(at), 1.0
            )
            for at, node in enumerate(plan["selected_nodes"])
        ]
        metrics = {
            "loss": 1.0 / round_num,
            "accuracy": 0.9,
            "round_time": 0.1,
            "samples": sum(each.samples for each in contributions),
            "contributions": contributions,
        }
        trained = time.process_time()
        adaptation.post_round_evaluation(round_num, metrics)
        feeding.append(1e3 * (fed - began))
        before.append(1e3 * (planned - fed))
        after.append(1e3 * (time.process_time() - trained))
        clock.advance(0.1)
    total = [a + b for a, b in zip(before, after, strict=True)]
    return {
        "nodes": count,
        "before_ms": statistics.median(before),
        "after_ms": statistics.median(after),
        "round_ms": statistics.median(total),
        "worst_round_ms": max(total[1:]),
        "feeding_ms": statistics.median(feeding),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--policy", default="proactive")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [measure(count, options.rounds, options.policy) for count in options.nodes]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("  nodes    before     after     round     worst   per node  (feeding)")
    for row in rows:
        print(
            f"{row['nodes']:7.0f} {row['before_ms']:6.1f} ms {row['after_ms']:6.1f} ms {row['round_ms']:6.1f} ms "
            f"{row['worst_round_ms']:6.1f} ms {1e3 * row['round_ms'] / row['nodes']:7.1f} µs "
            f"{row['feeding_ms']:7.1f} ms"
        )


if __name__ == "__main__":
    main()
