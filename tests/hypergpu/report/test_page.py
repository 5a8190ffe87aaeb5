import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hypergpu.report.against import Against
from hypergpu.report.markup import VOID
from hypergpu.report.page import page
from hypergpu.report.run import read_run
from hypergpu.report.table import MOST_ROWS, chosen

Rows = list[dict[str, Any]]


class Document(HTMLParser):
    """Elements in order, and whether every one of them is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def every(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_every_part_is_there(run_dir: Path) -> None:
    document = Document(page(read_run(run_dir)))
    text = " ".join(document.text)
    for title in (
        "Accuracy over time",
        "Accuracy over rounds",
        "Loss over time",
        "Loss over rounds",
        "Link quality",
        "Selection and quarantine",
        "Batch sizes",
        "Parts of the round time",
        "Decisions and events",
        "objective fell",
    ):
        assert title in text
    assert "25 of 25 rounds on 5 nodes" in text


def test_nothing_is_loaded_from_anywhere(run_dir: Path) -> None:
    text = page(read_run(run_dir))
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in Document(text).every("meta"))
    assert not re.search(r"(?i)https?://(?!www\.w3\.org/2000/svg)", text)
    assert not any("src" in attributes or "style" in attributes for _, attributes in Document(text).tags)


def test_every_drawing_says_in_words_what_it_shows(run_dir: Path) -> None:
    drawings = [svg for svg in Document(page(read_run(run_dir))).every("svg") if svg.get("aria-hidden") != "true"]
    assert len(drawings) == 9
    for svg in drawings:
        assert svg["role"] == "img"
        assert len(svg["aria-label"] or "") > 15


def test_every_link_and_mark_leads_somewhere(run_dir: Path) -> None:
    document = Document(page(read_run(run_dir)))
    ids = [attributes["id"] for _, attributes in document.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(link["href"] or "").removeprefix("#") for link in document.every("a")} <= set(ids)


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' onmouseover='x"


def test_text_from_the_run_is_never_markup(make_run: Callable[..., Path]) -> None:
    evil_round = {
        "round": 1,
        "ended_seconds": 2.0,
        "seconds": 1.0,
        "reason": EVIL,
        "contributors": [EVIL],
        "missing": [EVIL + "2"],
        "batch_sizes": {EVIL: 64},
        "compute_seconds": {EVIL: 0.1},
    }
    fields = {"seconds": 1.0, "round": 1, "text": EVIL}
    figures = {EVIL: EVIL, "quality": "poor", "state": "quarantined"}
    events = [
        {**fields, "kind": "decision", "text": f"quality {EVIL}", "subject": EVIL, "reason": EVIL, "figures": figures},
        {**fields, "kind": "decision", "text": f"{EVIL}", "subject": EVIL, "reason": EVIL, "figures": {}},
        {**fields, "kind": EVIL},
        {**fields, "kind": "network"},
        {**fields, "kind": "node_joined", "node": EVIL},
    ]
    run_dir = make_run([evil_round], events, task=EVIL, policy=EVIL, state=EVIL)
    (run_dir / "config.yaml").write_text(f"# {EVIL}\ntraining: {{task: x}}\n")
    run = read_run(run_dir)
    document = Document(page(run, Against(run)))
    assert [tag for tag, _ in document.tags].count("script") == 1
    assert not document.every("img")
    assert not any(name.startswith("on") for _, attributes in document.tags for name in attributes)


@pytest.mark.parametrize(
    ("rounds", "events"),
    [
        ([], []),
        ([], [{"seconds": 3.0, "round": 1, "kind": "waiting", "text": "waiting for nodes"}]),
        ([{"round": 4, "ended_seconds": 0.0, "seconds": 0.0, "contributors": [], "missing": []}], []),
        (
            [
                {"round": n, "ended_seconds": float(n), "seconds": 1.0, "contributors": ["a"], "missing": []}
                for n in (1, 2, 9)
            ],
            [],
        ),
    ],
)
def test_a_run_with_gaps_or_barely_begun_renders(make_run: Callable[..., Path], rounds: Rows, events: Rows) -> None:
    run = read_run(make_run(rounds, events))
    assert "nan" not in " ".join(d["d"] or "" for d in Document(page(run, Against(run))).every("path"))


def test_with_a_baseline_both_lines_and_the_verdict_are_there(run_dir: Path, baseline_dir: Path) -> None:
    document = Document(page(read_run(run_dir), Against(read_run(baseline_dir))))
    classes = [attributes.get("class") for attributes in document.every("path")]
    assert classes.count("line mine") == classes.count("line theirs") == 4
    assert "times sooner" in " ".join(document.text)


def test_a_large_run_stays_a_page(make_sample: Callable[[int, int], Path]) -> None:
    text = page(read_run(make_sample(120, 300)))
    assert len(text) < 4_000_000
    assert "The 32 most eventful of 300 nodes are shown" in text


def test_a_long_record_keeps_the_rare_decisions(run_dir: Path) -> None:
    events = read_run(run_dir).events * 200
    kept = [events[number] for number in chosen(events)]
    assert len(kept) == MOST_ROWS
    assert sum(event.kind == "rollback" for event in kept) == 200


def test_runs_of_no_round_and_of_one_are_told_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(
        '{"seconds": 0.0, "round": 1, "kind": "network", "text": "disconnect on a"}\n'
    )
    (tmp_path / "summary.json").write_text('{"duration_seconds": 90.0}')
    text = " ".join(Document(page(read_run(tmp_path))).text)
    for told in ("No round was finished in 1 min 30 s.", "No round completed; 1 event.", "No node was selected."):
        assert told in text
    assert "e-10" not in text and "0 of 0" not in text
    row = {"round": 1, "seconds": 0.5, "ended_seconds": 0.5, "accuracy": 0.9, "loss": 0.3, "nodes": []}
    (tmp_path / "rounds.jsonl").write_text(json.dumps(row) + "\n")
    text = " ".join(Document(page(read_run(tmp_path))).text)
    for told in ("1 round, with all its nodes;", "90.0 % (round 1)."):
        assert told in text


def test_a_run_that_ended_early_or_had_a_target_says_so(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    with (run_dir / "events.jsonl").open("a") as events:
        over = {
            "seconds": 90.0,
            "round": 26,
            "kind": "stopped",
            "text": "the run is over",
            "detail": "stopped by the user",
        }
        events.write(json.dumps(over) + "\n")
    for target, told in (
        (0.05, "Reached the target of 5.0 % after"),
        (1.0, "Did not reach the target of 100.0 %; the best was"),
    ):
        (run_dir / "summary.json").write_text(json.dumps(summary | {"target_accuracy": target}))
        text = page(read_run(run_dir))
        assert told in text
        assert "Stopped by the user." in text


def test_nodes_are_listed_by_number(make_run: Callable[..., Path]) -> None:
    row = {"round": 1, "ended_seconds": 2.0, "seconds": 1.0, "contributors": ["node_2"], "missing": []}
    figures = {"state": "quarantined"}
    events = [
        {"seconds": 1.0, "round": 1, "kind": "decision", "text": "quarantine", "subject": node, "figures": figures}
        for node in ("node_10", "node_9", "node_2")
    ]
    text = page(read_run(make_run([row], events)))
    assert "quarantined: node_2, node_9, node_10." in text
    options = [text.index(f">{node}</option>") for node in ("node_2", "node_9", "node_10")]
    assert options == sorted(options)
