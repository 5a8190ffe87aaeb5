"""Speed of virtual time: messages per second, and clusters of a thousand and of ten thousand nodes.

Targets: 100,000 simulated messages a second on one core; 1,000 nodes × 100 rounds in 20 s and 10,000 × 100 in 240 s
with the model of convergence and the default policy, in 2 GiB; cost per message that does not grow with the nodes.
"""

import json
import resource
import time
from typing import Annotated, Any

import typer

from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario

RESNET_18_BYTES = 46_760_000
_PROFILES = ["good", "good", "average", "average", "poor", "good", "average", "unstable"]
_CARDS = ["A100", "RTX-4090", "T4", "V100"]


def measure(
    name: str, nodes: int, rounds: int, *, policy: str = "reactive", loss_model: str = "transport", model_bytes: int = 0
) -> dict[str, Any]:
    """One run: CPU seconds (the machine may do other things), messages, and the most memory so far."""
    group = {"id": "node", "count": nodes, "gpu": _CARDS, "profile": _PROFILES}
    curve = {"model_bytes": model_bytes} if model_bytes else {}
    scenario = Scenario.model_validate(
        {
            "name": name,
            "learning": "model",
            "convergence": curve,
            "rounds": rounds,
            "policy": policy,
            "loss_model": loss_model,
            "nodes": [group],
        }
    )
    began = time.process_time()
    outcome = simulate(scenario)
    seconds = time.process_time() - began
    return {
        "name": name,
        "nodes": nodes,
        "rounds": outcome.rounds,
        "policy": policy,
        "cpu_seconds": round(seconds, 2),
        "messages": outcome.messages,
        "messages_per_second": round(outcome.messages / seconds),
        "virtual_seconds": round(outcome.seconds, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main(
    large: Annotated[bool, typer.Option(help="Ten thousand nodes as well: minutes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the simulator."""
    measure("warm-up", 50, 5, policy="none")  # the first run of a process loads and specialises code
    rows = [
        measure("messages, 77 kB model", 200, 50, policy="none"),
        measure("messages, losses of RPCs", 200, 50, policy="none", loss_model="rpc"),
        measure("messages, 47 MB model", 50, 20, policy="none", model_bytes=RESNET_18_BYTES),
        *(measure(f"cost at {nodes} nodes", nodes, 20, policy="none") for nodes in (250, 1000, 4000)),
        measure("1,000 nodes × 100", 1000, 100),
    ]
    if large:
        rows.append(measure("10,000 nodes × 100", 10_000, 100))
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['name']:24} {row['policy']:9} {row['cpu_seconds']:8.2f} s  {row['messages']:>10,} messages  "
            f"{row['messages_per_second']:>8,}/s  {row['virtual_seconds']:8.1f} virtual s  {row['peak_mib']:5} MiB"
        )


if __name__ == "__main__":
    typer.run(main)
