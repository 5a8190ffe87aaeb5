"""A run of three nodes as its files have it; one node has a name that would be markup."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hypergpu.common.http import HttpServer, Routes
from hypergpu.common.roles import Role
from hypergpu.common.token import TokenSource
from hypergpu.coordinator.page import about_directory, page_routes

NODES = ("near_0", "far_1", "<script>alert(1)</script>")
TOKENS = {role: f"{role}-token" for role in Role}
Serve = Callable[..., HttpServer]


def decision(seconds: float, number: int, kind: str, subject: str, reason: str, **figures: object) -> dict[str, Any]:
    text = f"{kind} {subject}: {reason}"
    row = {"seconds": seconds, "round": number, "kind": "decision", "text": text, "subject": subject}
    return {**row, "reason": reason, "figures": figures}


def round_of(number: int, ended: float, missing: tuple[str, ...] = ()) -> dict[str, Any]:
    came = [node for node in NODES if node not in missing]
    return {
        "round": number,
        "ended_seconds": ended,
        "seconds": 0.8,
        "reason": "all_contributed" if not missing else "quorum_at_deadline",
        "accuracy": 0.1 * number,
        "loss": 2.0 / number,
        "local_steps": 10,
        "learning_rate": 0.02,
        "contributors": came,
        "missing": list(missing),
        "batch_sizes": dict.fromkeys(NODES, 32 * number),
        "compute_seconds": dict.fromkeys(came, 0.5),
        "waiting_seconds": dict.fromkeys(NODES, 0.1),
        "upload_seconds": dict.fromkeys(came, 0.1),
        "codec": dict.fromkeys(NODES, "int8"),
        "parameters_codec": dict.fromkeys(NODES, "bf16"),
        "bytes_down": dict.fromkeys(NODES, 100_000),
        "bytes_up": dict.fromkeys(came, 50_000),
        "compute_utilisation": 0.6,
    }


def events() -> list[dict[str, Any]]:
    joined = [
        {"seconds": 0.1 * n, "round": 1, "kind": "node_joined", "text": f"{node} joined", "node": node, "gpu": "T4"}
        for n, node in enumerate(NODES)
    ]
    started = [
        {"seconds": float(n), "round": n, "kind": "round_started", "text": f"round {n} started with 3 nodes"}
        for n in range(1, 7)
    ]
    decided = [
        decision(0.9, 1, "phase", "cluster", "training_started", **{"from": "initialization", "to": "warm_up"}),
        decision(2.9, 3, "batch_size", "far_1", "fills_idle_time", **{"from": 64, "to": 96}, goodput_gain=0.73),
        decision(
            3.5, 3, "quality", "far_1", "class_changed", quality="poor", score=31.0, latency_ms=212.5, loss_rate=0.03
        ),
        decision(
            3.6, 3, "quality", "near_0", "class_changed", quality="good", score=88.0, latency_ms=4.0, loss_rate=0.0
        ),
    ]
    lost = [{"seconds": 5.5, "round": 5, "kind": "node_lost", "text": f"{NODES[2]} is lost", "node": NODES[2]}]
    return sorted([*joined, *started, *decided, *lost], key=lambda row: row["seconds"])


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "first"
    directory.mkdir()
    (directory / "events.jsonl").write_text(lines(events()))
    rounds = [round_of(n, n + 0.9, missing=("far_1",) if n == 4 else ()) for n in range(1, 7)]
    (directory / "rounds.jsonl").write_text(lines(rounds))
    rows = [{"node_id": node, "state": "idle", "gpu": "T4", "rtt_p50_ms": 20.0, "up_mbit": 4.5} for node in NODES]
    (directory / "nodes.json").write_text(json.dumps(rows, indent=1))
    summary = {"task": "digits", "rounds": 6, "metric": {"name": "accuracy", "format": "percent"}, "policy": "reactive"}
    (directory / "summary.json").write_text(json.dumps(summary, indent=1))
    (directory / "config.yaml").write_text("training:\n  task: digits\n  rounds: 6\n")
    return directory


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start the server of a run's page, which ends with the test."""
    with ExitStack() as stack:

        def begin(
            directory: Path,
            tokens: Mapping[Role, str] | None = None,
            more: Routes | None = None,
            beside: Path | None = None,
            listen: str = "127.0.0.1:0",
            **about: object,
        ) -> HttpServer:
            sources = {role: TokenSource([token]) for role, token in (tokens or {}).items()}
            told = partial(about_directory, directory) if not about else lambda: {"name": directory.name, **about}
            server = HttpServer(listen, {**page_routes(directory, sources, told, beside=beside), **(more or {})})
            stack.callback(server.close)
            return server

        yield begin
