"""Contract of all outlets, read back with the libraries themselves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hypergpu.outlets.delivery import Delivery, maker_of
from hypergpu.outlets.outlet import Outlet, Round
from tests.hypergpu.outlets.runs import STRANGE, Run

Series = Mapping[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Held:
    """What an outlet holds of one run."""

    series: Series
    """Steps and values by figure."""
    text: str
    """Everything that is text: settings, notes, the result."""
    node_figure: str
    """Name of the batch size of the node with a strange name."""


@dataclass(frozen=True)
class Kind:
    """An outlet with its store."""

    name: str
    target: Callable[[Path], str]
    read: Callable[[Path], list[Held]]
    replaces_lost_rounds: bool


def tensorboard(store: Path) -> list[Held]:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    held = []
    for place in sorted(store.iterdir()):
        found: Any = accumulators.EventAccumulator(str(place)).Reload()
        tags = found.Tags()
        series = {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in tags["scalars"]}
        texts = [each.tensor_proto.string_val[0].decode() for tag in tags["tensors"] for each in found.Tensors(tag)]
        held.append(Held(series, "\n".join(texts).replace("\\", ""), f"batch_sizes/{STRANGE}"))
    return held


KINDS = [
    Kind("tensorboard", str, tensorboard, replaces_lost_rounds=True),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    pytest.importorskip(found.name, reason=f"pip install 'hypergpu[{found.name}]'")
    return found


@dataclass
class Store:
    """A run and the store of an outlet."""

    kind: Kind
    run: Run
    path: Path

    def delivery(
        self, wrap: Callable[[Outlet], Outlet] = lambda outlet: outlet, *, kept: int | None = None
    ) -> Delivery:
        make = maker_of(self.kind.name)
        target = self.kind.target(self.path)
        return Delivery(self.run.path, self.kind.name, target, lambda target: wrap(make(target)), kept)

    def held(self) -> Held:
        (held,) = self.kind.read(self.path)
        return held

    def rounds(self) -> list[int]:
        return [step for step, _ in self.held().series["accuracy"]]


@pytest.fixture
def store(kind: Kind, tmp_path: Path) -> Store:
    return Store(kind, Run(tmp_path / "runs" / "first"), tmp_path / "store")


def test_a_run_shows_each_round_its_settings_events_and_result(store: Store) -> None:
    store.run.close_rounds(1, 4)
    store.run.end()
    delivery = store.delivery()
    delivery.end()
    delivery.close()
    held = store.held()
    assert dict(held.series["accuracy"]) == pytest.approx({n: 0.5 + n / 100 for n in (1, 2, 3, 4)})
    assert held.series["bytes_up"] == [(n, 150) for n in (1, 2, 3, 4)]
    assert held.series[held.node_figure] == [(n, 16) for n in (1, 2, 3, 4)]
    assert "train_loss" not in held.series
    for text in (
        "training.task",
        "digits",
        f"decided in 3 by {STRANGE}",
        "completed",
        "rounds_done",
        "the run is over",
    ):
        assert text in held.text


def test_a_run_that_goes_on_is_seen_while_it_does(store: Store) -> None:
    delivery = store.delivery()
    delivery.deliver()
    store.run.close_rounds(1, 2)
    delivery.deliver()
    assert store.rounds() == [1, 2]
    store.run.close_rounds(3, 3)
    delivery.deliver()
    delivery.deliver()
    assert store.rounds() == [1, 2, 3]
    delivery.close()


def test_a_resumed_run_goes_on_where_it_was(store: Store) -> None:
    for first, last in ((1, 2), (3, 4)):
        delivery = store.delivery()
        store.run.close_rounds(first, last)
        delivery.deliver()
        delivery.close()
    assert store.rounds() == [1, 2, 3, 4]


def test_a_process_that_died_before_it_noted_its_place_leaves_no_double_rounds(store: Store) -> None:
    delivery = store.delivery()
    store.run.close_rounds(1, 1)
    delivery.deliver()
    noted = (store.run.path / "outlets" / store.kind.name / "place.json").read_bytes()
    store.run.close_rounds(2, 3)
    delivery.deliver()
    delivery.close()
    (store.run.path / "outlets" / store.kind.name / "place.json").write_bytes(noted)
    delivery = store.delivery()
    store.run.close_rounds(4, 4)
    delivery.deliver()
    delivery.close()
    assert store.rounds() == [1, 2, 3, 4]


def test_a_round_whose_writing_failed_is_written_again_and_shows_once(store: Store) -> None:
    failing = [3]

    class Failing:
        def __init__(self, outlet: Outlet) -> None:
            self._outlet = outlet

        def __getattr__(self, name: str) -> Any:
            return getattr(self._outlet, name)

        def round(self, closed: Round) -> None:
            self._outlet.round(closed)
            if closed.number in failing:
                failing.remove(closed.number)
                raise OSError("the server is gone")

    delivery = store.delivery(Failing)  # it passes everything else on
    store.run.close_rounds(1, 4)
    with pytest.raises(OSError, match="gone"):
        delivery.deliver()
    delivery.deliver()
    delivery.close()
    assert store.rounds() == [1, 2, 3, 4]


def test_rounds_that_a_crash_undid_show_once(store: Store) -> None:
    store.run.close_rounds(1, 3)
    delivery = store.delivery()
    delivery.deliver()
    delivery.close()
    store.run.lose_rounds(1)
    store.run.close_rounds(2, 4, accuracy=0.9)
    delivery = store.delivery(kept=1)
    delivery.deliver()
    delivery.close()
    again = 0.9 if store.kind.replaces_lost_rounds else None
    values = dict(store.held().series["accuracy"])
    assert store.rounds() == [1, 2, 3, 4]
    assert values[2] == pytest.approx(again or 0.52)
    assert values[4] == pytest.approx(0.9)


def test_two_runs_do_not_mix(store: Store) -> None:
    for name in ("first", "other/first"):
        run = Run(store.run.path.parent / name)
        run.close_rounds(1, 2)
        delivery = Store(store.kind, run, store.path).delivery()
        delivery.end()
        delivery.close()
    assert [[step for step, _ in held.series["accuracy"]] for held in store.kind.read(store.path)] == [[1, 2], [1, 2]]
