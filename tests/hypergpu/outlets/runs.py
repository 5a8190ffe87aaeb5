"""Run directories as a coordinator leaves them, and what outlets hold of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STRANGE = "<b>n|o_d:e (1)</b>"


def round_row(number: int, **others: Any) -> dict[str, Any]:
    return {
        "round": number,
        "ended_seconds": 10.0 * number,
        "reason": "all_contributed",
        "accuracy": 0.5 + number / 100,
        "loss": 1 / number,
        "train_loss": None,
        "metrics": {"f1": 0.25},
        "contributors": ["n1", STRANGE],
        "missing": [],
        "batch_sizes": {"n1": 8, STRANGE: 16},
        "codec": {"n1": "int8"},
        "bytes_up": {"n1": 100, STRANGE: 50},
        **others,
    }


def event_row(number: int, seconds: float, text: str, kind: str = "decision") -> dict[str, Any]:
    return {"seconds": seconds, "round": number, "kind": kind, "text": text}


class Run:
    """A run that a test writes round by round."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.yaml").write_text("training: {task: digits, rounds: 4}\nserver: {stay: false}\n")
        (path / "rounds.jsonl").touch()
        (path / "events.jsonl").touch()

    def append(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        with (self.path / name).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def close_rounds(self, first: int, last: int, **others: Any) -> None:
        for number in range(first, last + 1):
            self.append("events.jsonl", [event_row(number, 10.0 * number - 1, f"decided in {number} by {STRANGE}")])
            self.append("rounds.jsonl", [round_row(number, **others)])

    def lose_rounds(self, last: int) -> None:
        """Keep the rounds up to one, as a coordinator does that resumes without a log."""
        lines = (self.path / "rounds.jsonl").read_text().splitlines(keepends=True)
        (self.path / "rounds.jsonl").write_text("".join(lines[:last]))

    def end(self, state: str = "completed") -> None:
        self.append("events.jsonl", [event_row(4, 41.0, "the run is over", "completed")])
        summary = {"state": state, "reason": "rounds_done", "rounds": 4, "final_accuracy": 0.54, "nodes": {}}
        (self.path / "summary.json").write_text(json.dumps(summary))
