import os
import time

import pytest

from tests import patience


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPERGPU_TEST_PATIENCE", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


@pytest.mark.parametrize(("load", "factor"), [(0.0, 1.0), (1.0, 1.0), (2.0, 2.0), (5.0, 5.0), (500.0, 10.0)])
def test_patience_grows_with_the_load(monkeypatch: pytest.MonkeyPatch, load: float, factor: float) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert patience.factor() == factor
    assert patience.patience(30.0) == 30.0 * factor


@pytest.mark.parametrize(("told", "factor"), [("3", 3.0), ("0.1", 1.0)])
def test_a_variable_sets_the_factor(monkeypatch: pytest.MonkeyPatch, told: str, factor: float) -> None:
    monkeypatch.setenv("HYPERGPU_TEST_PATIENCE", told)
    assert patience.factor() == factor


def test_a_wait_goes_on_while_the_machine_is_busier_than_when_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now, load = 0.0, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    wait = patience.Wait("a word", 10.0)
    now = 9.9
    wait.check()
    now, load = 10.0, 4.0
    wait.check()
    now, load = 39.9, 0.0
    wait.check()
    now = 40.0
    with pytest.raises(AssertionError, match="not within 40 s: a word and more"):
        wait.check(lambda: "and more")


def test_until_gives_what_it_waited_for() -> None:
    values = iter([0, "", 7])
    assert patience.until(lambda: next(values), "seven", every=0.0) == 7
