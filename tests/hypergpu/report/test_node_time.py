"""Time and bytes of each node by part of a round."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hypergpu.coordinator.core.rounds.node_time import NodeTime, total_time
from hypergpu.coordinator.core.rounds.traffic import Traffic
from hypergpu.report.headline import figures
from hypergpu.report.model import NodeRound, Round, Run
from hypergpu.report.node_time import node_times, times, traffic, utilisation
from hypergpu.report.run import read_run


def run_of(*rounds: Round) -> Run:
    return Run("r", {}, rounds)


TWO = run_of(
    Round(
        1,
        10.0,
        10.0,
        nodes=(NodeRound("b", True, 64, 2.0, 4.0, 3.0), NodeRound("a", False, 64, None, 9.0, None)),
        traffic={"a": Traffic(100, 0), "b": Traffic(100, 20)},
    ),
    Round(2, 30.0, 20.0, nodes=(NodeRound("a", True, 64, 5.0, 5.0, 1.0),), traffic={"a": Traffic(100, 30)}),
)


def test_each_node_has_its_time_and_bytes_over_all_rounds() -> None:
    assert times(TWO) == {"a": NodeTime(4.0, 5.0, 1.0, 10.0, 10.0), "b": NodeTime(1.0, 2.0, 3.0, 4.0, 0.0)}
    assert traffic(TWO) == {"a": Traffic(200, 30), "b": Traffic(100, 20)}
    assert utilisation(TWO) == 7 / 40


def test_the_table_has_a_row_for_each_node_and_one_for_all() -> None:
    rows = re.findall(r"<tr>(.*?)</tr>", node_times(TWO))
    shown = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in rows]
    assert shown == [
        [],
        ["a", "4.0 s", "5.0 s", "1.0 s", "10.0 s", "10.0 s", "16.7 %", "200 B", "30 B"],
        ["b", "1.0 s", "2.0 s", "3.0 s", "4.0 s", "0 ms", "20.0 %", "100 B", "20 B"],
        ["all nodes", "5.0 s", "7.0 s", "4.0 s", "14.0 s", "10.0 s", "17.5 %", "300 B", "50 B"],
    ]
    assert 'data-value="0.166667"' in rows[1], "sorted by the figure and not by its text"


def test_parts_of_a_run_directory_add_up_to_the_time_of_its_nodes(run_dir: Path) -> None:
    run = read_run(run_dir)
    whole = total_time(times(run).values()).total
    assert whole == pytest.approx(sum(closed.seconds * len(closed.nodes) for closed in run.rounds))
    assert figures(run)["compute_utilisation"] == pytest.approx(utilisation(run))
    assert sum(each.up for each in traffic(run).values()) == 10_000 * 103


def test_a_record_without_the_times_of_uploads_has_no_parts() -> None:
    nodes = tuple(replace(each, upload_seconds=None) for each in TWO.rounds[1].nodes)
    old = run_of(TWO.rounds[0], replace(TWO.rounds[1], nodes=nodes))
    assert times(old) == {}
    assert utilisation(old) is None
    assert "not on record" in node_times(old)


def test_figures_that_make_no_sense_cannot_break_the_sum() -> None:
    strange = run_of(Round(1, 10.0, 10.0, nodes=(NodeRound("a", True, 64, -5.0, -1.0, 1e300),)))
    assert times(strange) == {"a": NodeTime(wait=10.0)}
