"""Noise of codecs: reported by nodes, or expected of what was not measured."""

import numpy as np
import pytest

from hypergpu.coordinator.core.adaptation.codecs.noise import PRIOR_NOISE, UPDATE_CODECS, NoiseTable

INT8, INT4 = UPDATE_CODECS.index("int8"), UPDATE_CODECS.index("int4")
ROWS = np.array([0, 1, 2])


def test_before_any_report_the_prior_is_expected() -> None:
    table = NoiseTable()
    assert table.expected(ROWS).tolist() == [list(PRIOR_NOISE.values())] * 3
    assert not table.measured(ROWS).any()
    assert list(PRIOR_NOISE) == list(UPDATE_CODECS)


def test_a_report_counts_for_its_node_and_else_for_nodes_without_one() -> None:
    table = NoiseTable()
    table.observe(np.array([2, 0]), ["int4", "int4"], [0.3, 0.1])
    expected = table.expected(ROWS)
    assert expected[:, INT4].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert expected[:, INT8].tolist() == [PRIOR_NOISE["int8"]] * 3
    assert table.measured(ROWS)[:, INT4].tolist() == [True, False, True]


def test_later_reports_count_half() -> None:
    table = NoiseTable()
    for noise in (0.1, 0.3, 0.4):
        table.observe(np.array([0]), ["int4"], [noise])
    assert table.expected(ROWS)[0, INT4] == pytest.approx(0.3)


def test_a_node_that_joins_later_has_a_row() -> None:
    table = NoiseTable()
    table.observe(np.array([0]), ["int8"], [0.001])
    assert table.expected(np.array([70]))[0, INT8] == 0.001
    table.observe(np.array([], np.int64), [], [])
