"""Delivery to an outlet that is slow, broken or in use."""

import json
import threading
from pathlib import Path

import pytest

from hypergpu.common.errors import RunInUse
from hypergpu.outlets import delivery as module
from hypergpu.outlets.delivery import Delivery, follow
from hypergpu.outlets.outlet import Beginning, Ending, Round
from tests.hypergpu.outlets.runs import Run


class Notes:
    """An outlet that keeps what it was told."""

    def __init__(self, over: threading.Event | None = None) -> None:
        self.openings: list[Beginning] = []
        self.rounds: list[int] = []
        self.ended: list[Ending] = []
        self.fails = 0
        self.over = over

    def open(self, run: Beginning) -> tuple[str, int]:
        self.openings.append(run)
        return "its id", run.after

    def round(self, closed: Round) -> None:
        if self.fails:
            self.fails -= 1
            if not self.fails and self.over is not None:
                self.over.set()
            raise OSError(28, "No space left on device")
        self.rounds.append(closed.number)

    def flush(self) -> None:
        pass

    def end(self, ending: Ending) -> None:
        self.ended.append(ending)

    def close(self) -> None:
        raise RuntimeError("the server is gone")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_an_outlet_that_fails_is_told_of_once_and_gets_everything_later(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    over = threading.Event()
    outlet, told = Notes(over), list[str]()
    outlet.fails = 3
    run.close_rounds(1, 2)
    run.end()
    delivery = Delivery(run.path, "notes", "there", lambda target: outlet)
    assert follow(delivery, over, told.append)
    assert outlet.rounds == [1, 2]
    assert [ending.state for ending in outlet.ended] == ["completed"]
    assert told == ["[Errno 28] No space left on device"] * 3 + [""]
    delivery.close()


def test_an_outlet_that_fails_at_the_end_is_not_waited_for(run: Run) -> None:
    over, outlet, told = threading.Event(), Notes(), list[str]()
    over.set()
    outlet.fails = 1
    run.close_rounds(1, 2)
    delivery = Delivery(run.path, "notes", "there", lambda target: outlet)
    assert not follow(delivery, over, told.append)
    assert told == ["[Errno 28] No space left on device"]
    delivery.close()


def test_another_target_gets_the_run_from_its_beginning(run: Run) -> None:
    run.close_rounds(1, 2)
    outlet = Notes()
    for target in ("there", "there", "elsewhere"):
        delivery = Delivery(run.path, "notes", target, lambda target: outlet)
        delivery.deliver()
        delivery.close()
    assert [(each.id, each.after) for each in outlet.openings] == [("", 0), ("its id", 2), ("", 0)]
    assert outlet.rounds == [1, 2, 1, 2]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"target": "there", "id": [], "started_at": "x", "round": 1}'])
def test_a_damaged_place_begins_anew(run: Run, text: str) -> None:
    place = run.path / "outlets" / "notes" / "place.json"
    place.parent.mkdir(parents=True)
    place.write_text(text)
    outlet = Notes()
    delivery = Delivery(run.path, "notes", "there", lambda target: outlet)
    delivery.deliver()
    delivery.close()
    assert outlet.openings[0].after == 0
    assert json.loads(place.read_text())["id"] == "its id"


def test_only_one_process_delivers_to_an_outlet(run: Run) -> None:
    first = Delivery(run.path, "notes", "there", lambda target: Notes())
    with pytest.raises(RunInUse):
        Delivery(run.path, "notes", "there", lambda target: Notes())
    first.close()
    Delivery(run.path, "notes", "there", lambda target: Notes()).close()
