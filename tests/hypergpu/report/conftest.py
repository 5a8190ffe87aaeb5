"""Run directories as the coordinator leaves them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from hypergpu.common.config import SystemConfig
from hypergpu.common.keyed_random import KeyedRandom

Rows = list[dict[str, Any]]
NODES = ("node_0", "node_1", "node_2", "node_3", "node_4")
CLASSES = ("excellent", "good", "fair", "poor", "critical")


def decision(
    at: float, round_number: int, kind: str, subject: str, reason: str, **figures: float | str
) -> dict[str, Any]:
    """A line of events.jsonl."""
    detail = ", ".join(f"{name} {value}" for name, value in figures.items())
    text = f"{kind} {subject}: {reason} ({detail})"
    own = {"seconds": round(at, 3), "round": round_number, "kind": "decision", "text": text}
    return {**own, "subject": subject, "reason": reason, "figures": figures}


def event(at: float, round_number: int, kind: str, text: str, **fields: Any) -> dict[str, Any]:
    """A line of events.jsonl that is no decision."""
    return {"seconds": round(at, 3), "round": round_number, "kind": kind, "text": text, **fields}


def sample_rows(rounds: int = 25, nodes: Sequence[str] = NODES, slow: float = 1.0) -> tuple[Rows, Rows]:
    """rounds.jsonl and events.jsonl of a run in which one node is quarantined and two links change."""
    draws = KeyedRandom(7, "sample")
    closed: Rows = []
    events: Rows = []
    now = 0.8
    for number, node in enumerate(nodes):
        events.append(event(now, 0, "node_joined", f"{node} joined ({number + 1} connected)", node=node))
    events.append(
        decision(now, 1, "phase", "cluster", "training_started", **{"from": "initialization", "to": "warm_up"})
    )
    held: set[str] = set()
    for number in range(1, rounds + 1):
        start = now
        events.append(event(start, number, "round_started", f"round {number}: {len(nodes)} nodes", nodes=len(nodes)))
        if number == 3:
            events.append(decision(start, 3, "phase", "cluster", "links_measured", rounds=2))
            for place, node in enumerate(nodes):
                quality = CLASSES[place % len(CLASSES)]
                events.append(
                    decision(start, 3, "quality", node, "class_changed", quality=quality, score=92.0 - 17 * (place % 5))
                )
        if number == 10:
            events.append(event(start, 10, "network", f"latency spike at {nodes[2 % len(nodes)]} for 10 s"))
            events.append(
                decision(
                    start + 0.4, 10, "quality", nodes[2 % len(nodes)], "class_changed", quality="poor", latency_ms=431.0
                )
            )
        if number == 14:
            held.add(nodes[-1])
            events.append(
                decision(
                    start, 14, "quarantine", nodes[-1], "repeated_failures", state="quarantined", quarantine_rounds=5
                )
            )
        if number == 20:
            held.discard(nodes[-1])
            events.append(
                decision(start, 20, "quarantine", nodes[-1], "quarantine_expired", state="probation", strikes=1)
            )
            events.append(
                decision(start, 20, "quality", nodes[2 % len(nodes)], "class_changed", quality="good", latency_ms=41.0)
            )
        if number == 17:
            events.append(decision(start, 17, "rollback", "cluster", "objective_fell", objective=0.82))
        active = [
            node
            for place, node in enumerate(nodes)
            if node not in held and not (number > 5 and place == 3 and number % 3)
        ]
        missing = [nodes[-1]] if nodes[-1] in active and 11 <= number <= 13 else []
        batches = {node: 64 * 2 ** min((number > 4) * (place % 4), number // 3) for place, node in enumerate(active)}
        for node, size in batches.items():
            if number in (5, 6, 9):
                events.append(
                    decision(start, number, "batch_size", node, "latency_high", **{"from": size // 2, "to": size})
                )
        events.append(
            decision(start, number, "selection", "cluster", "nodes_changed", selected=len(active), available=len(nodes))
        )
        seconds = slow * (1.1 + 0.9 * draws.uniform(number) + (1.4 if 10 <= number <= 13 else 0))
        compute = {node: round(0.25 + 0.1 * place, 4) for place, node in enumerate(active)}
        now += seconds + 0.12
        closed.append(
            {
                "round": number,
                "ended_seconds": round(now, 3),
                "seconds": round(seconds, 4),
                "reason": "quorum_at_deadline" if missing else "all_contributed",
                "loss": 2.3 * 0.86**number + 0.02,
                "accuracy": 0.97 - 0.87 * 0.8**number,
                "train_loss": 2.2 * 0.85**number,
                "samples": sum(batches.values()) * 10,
                "contributors": [node for node in active if node not in missing],
                "missing": missing,
                "batch_sizes": batches,
                "compute_seconds": {node: spent for node, spent in compute.items() if node not in missing},
                "waiting_seconds": {node: round(seconds - spent, 4) for node, spent in compute.items()},
                "upload_seconds": dict.fromkeys((node for node in active if node not in missing), 0.25),
                "bytes_down": dict.fromkeys(active, 40_000),
                "bytes_up": dict.fromkeys((node for node in active if node not in missing), 10_000),
            }
        )
        events.append(
            event(now, number, "round_closed", f"round {number}: {len(active)} nodes", reason="all_contributed")
        )
    events.append(event(now, rounds, "completed", f"completed: {rounds} rounds", reason="rounds_done"))
    return closed, events


def write_run(directory: Path, rounds: Rows, events: Rows, **summary: Any) -> Path:
    """A run's directory with these records."""
    directory.mkdir(parents=True, exist_ok=True)
    names = sorted({node for row in rounds for node in (*row["contributors"], *row["missing"])})
    nodes = [
        {"node_id": n, "state": "idle", "rounds_contributed": 20, "retries": 3, "batch_size": 64, "gpu": "t4"}
        for n in names
    ]
    result = {"run_id": "r-1", "task": "digits", "seed": 0, "state": "completed", "rounds": len(rounds), **summary}
    for name, rows in (("rounds.jsonl", rounds), ("events.jsonl", events)):
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "nodes.json").write_text(json.dumps(nodes))
    (directory / "summary.json").write_text(json.dumps(result))
    (directory / "config.yaml").write_text(yaml.safe_dump(SystemConfig().model_dump(mode="json")))
    return directory


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A completed run of 25 rounds on five nodes."""
    return write_run(tmp_path / "demo-1", *sample_rows())


@pytest.fixture
def baseline_dir(tmp_path: Path) -> Path:
    """The same at half the speed."""
    return write_run(tmp_path / "demo-1-fixed", *sample_rows(slow=2.0))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[[Rows, Rows], Path]:
    """A run with these rounds and events."""

    def make(rounds: Rows, events: Rows, **summary: Any) -> Path:
        return write_run(tmp_path / "made", rounds, events, **summary)

    return make


@pytest.fixture
def make_sample(tmp_path: Path) -> Callable[[int, int], Path]:
    """A run of so many rounds on so many nodes."""

    def make(rounds: int, nodes: int) -> Path:
        return write_run(tmp_path / "sample", *sample_rows(rounds, [f"node_{number}" for number in range(nodes)]))

    return make
