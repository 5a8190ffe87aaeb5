"""Whole simulated runs against their transcripts: each event and decision, with its reason and its figures.

They pin down what the cores and the link model do together. A change that is meant shows as a difference that reads as
a story; write the transcripts anew with `pytest tests/hypergpu/simulation/test_transcripts.py --update-transcripts`,
and let the commit say why they changed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario_file import load_scenario
from tests.transcripts import RequireTranscript

DIRECTORY = Path(__file__).parent / "transcripts"
DIGITS = 6
"""Significant digits: beyond, processors may differ."""


@pytest.mark.parametrize("name", sorted(file.stem for file in DIRECTORY.glob("*.yaml")))
def test_a_run_goes_as_its_transcript_says(name: str, tmp_path: Path, require_transcript: RequireTranscript) -> None:
    simulate(load_scenario(str(DIRECTORY / f"{name}.yaml")), tmp_path)
    require_transcript(DIRECTORY / f"{name}.txt", transcript(tmp_path))


def transcript(run: Path) -> Iterator[str]:
    """The files of a run, line by line."""
    events, rounds = (
        [json.loads(line) for line in (run / name).read_text().splitlines()]
        for name in ("events.jsonl", "rounds.jsonl")
    )
    for event in events:
        seconds, number, kind = event.pop("seconds"), event.pop("round"), event.pop("kind")
        text = event.pop("text")  # of a decision it has all figures
        yield f"{seconds:10.4f}  {number:3}  {kind:14} {text}{'' if kind == 'decision' else figures(event)}"
    yield ""
    for row in rounds:
        yield f"round {row.pop('round')}:{figures(row)}"
    yield ""
    summary = json.loads((run / "summary.json").read_text())
    for node_id, row in summary.pop("nodes").items():
        yield f"{node_id}:{figures(row)}"
    for key, value in sorted(summary.items()):
        yield f"{key}: {rounded(value)}"


def figures(row: dict[str, Any]) -> str:
    return "".join(f" {key}={rounded(value)}" for key, value in sorted(row.items()))


def rounded(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={rounded(each)}" for key, each in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(rounded, value)) + "]"
    return str(value)
