"""Contract of all outlets, read back with the libraries themselves."""

import json
import shutil
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from hypergpu.outlets.delivery import Delivery, maker_of
from hypergpu.outlets.outlet import Outlet, Round
from tests.hypergpu.outlets.runs import STRANGE, Run
from tests.patience import until

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the libraries among themselves
Series = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Held:
    """What an outlet holds of one run."""

    series: Series
    """Steps and values by figure."""
    text: list[str]
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
    is_prompt: bool = True
    """False if its library writes to its file half a minute later, or at the end."""


def tensorboard(root: Path) -> list[Held]:
    accumulators: Any = import_module("tensorboard.backend.event_processing.event_accumulator")
    held = []
    for place in sorted((root / "store").iterdir()):
        found: Any = accumulators.EventAccumulator(str(place)).Reload()
        tags = found.Tags()
        series: Series = defaultdict(list)
        series |= {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in tags["scalars"]}
        texts = [each.tensor_proto.string_val[0].decode() for tag in tags["tensors"] for each in found.Tensors(tag)]
        held.append(Held(series, [text.replace("\\", "") for text in texts], f"batch_sizes/{STRANGE}"))
    return held


def mlflow(root: Path) -> list[Held]:
    tracking: Any = import_module("mlflow.tracking")
    client = tracking.MlflowClient(f"sqlite:///{root / 'store'}")
    experiment = client.get_experiment_by_name("hypergpu").experiment_id
    held = []
    for run in client.search_runs([experiment], order_by=["attributes.start_time"]):
        names, number = run.data.metrics, run.info.run_id
        history = {name: client.get_metric_history(number, name) for name in names}
        series: Series = defaultdict(list)
        series |= {name: [(each.step, each.value) for each in found] for name, found in history.items()}
        records = Path(run.info.artifact_uri) / "events.jsonl"
        texts = [*run.data.params, *run.data.params.values(), *run.data.tags.values(), run.info.status]
        texts.append(records.read_text() if records.exists() else "")
        held.append(Held(series, texts, "batch_sizes/_b_n_o_d:e _1__/b_"))
    return held


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """Yield the records of a log in the format of LevelDB, which W&B has behind 7 bytes of its own."""
    at, parts, block = 7, b"", 32_768
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, last
            yield parts
            parts = b""


def wandb(root: Path) -> list[Held]:
    """Read the files of offline runs; those of one id are parts of one run."""
    records: Any = import_module("wandb.proto.wandb_internal_pb2")
    runs: dict[str, Held] = {}
    for file in sorted(root.glob("runs/**/wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        held = runs.setdefault(file.stem, Held(defaultdict(list), [], f"batch_sizes/{STRANGE}"))
        for data in leveldb_log(file.read_bytes()):
            record = records.Record.FromString(data)
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            step = int(items.get("_step", 0))
            for name, value in items.items():
                if not name.startswith("_") and name != "events":
                    held.series[name].append((step, json.loads(value)))
            held.text.append(record.run.config.SerializeToString().decode(errors="replace"))
            held.text.extend([json.loads(items["events"])] if "events" in items else [])
            held.text.extend(item.value_json for item in record.summary.update)
    return list(runs.values())


KINDS = [
    Kind("mlflow", lambda store: f"sqlite:///{store}", mlflow, replaces_lost_rounds=False),
    Kind("tensorboard", str, tensorboard, replaces_lost_rounds=True),
    Kind("wandb", lambda store: "offline", wandb, replaces_lost_rounds=False, is_prompt=False),
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
    root: Path

    def delivery(
        self, wrap: Callable[[Outlet], Outlet] = lambda outlet: outlet, *, kept: int | None = None
    ) -> Delivery:
        make = maker_of(self.kind.name)
        target = self.kind.target(self.root / "store")
        return Delivery(self.run.path, self.kind.name, target, lambda target: wrap(make(target)), kept)

    def held(self, last: int) -> Held:
        """Return what is held once the last round is: a process of W&B writes what it was told soon after."""

        def found() -> Held | None:
            (held,) = self.kind.read(self.root)
            return held if last in dict(held.series["accuracy"]) else None

        held = until(found, f"round {last}", every=0.1)
        assert held is not None
        return held

    def rounds(self, last: int) -> list[int]:
        return [step for step, _ in self.held(last).series["accuracy"]]

    def has(self, text: str) -> bool:
        (held,) = self.kind.read(self.root)
        return any(text in each for each in held.text)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store of MLflow, which takes seconds to make."""
    file = tmp_path_factory.mktemp("mlflow") / "store"
    maker_of("mlflow")  # it sets MLflow's variables
    import_module("mlflow.tracking").MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def store(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Store:
    monkeypatch.chdir(tmp_path)  # where MLflow keeps artifacts
    if kind.name == "mlflow":
        shutil.copy(request.getfixturevalue("database"), tmp_path / "store")
    return Store(kind, Run(tmp_path / "runs" / "first"), tmp_path)


def test_a_run_shows_each_round_its_settings_events_and_result(store: Store) -> None:
    store.run.close_rounds(1, 4)
    store.run.end()
    delivery = store.delivery()
    delivery.end()
    delivery.close()
    held = store.held(4)
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
        until(partial(store.has, text), text, every=0.1)


def test_a_run_that_goes_on_is_seen_while_it_does(store: Store) -> None:
    delivery = store.delivery()
    delivery.deliver()
    store.run.close_rounds(1, 2)
    delivery.deliver()
    if store.kind.is_prompt:
        assert store.rounds(2) == [1, 2]
    store.run.close_rounds(3, 3)
    delivery.deliver()
    delivery.deliver()
    if not store.kind.is_prompt:
        delivery.close()
    assert store.rounds(3) == [1, 2, 3]
    delivery.close()


def test_a_resumed_run_goes_on_where_it_was(store: Store) -> None:
    for first, last in ((1, 2), (3, 4)):
        delivery = store.delivery()
        store.run.close_rounds(first, last)
        delivery.deliver()
        delivery.close()
    assert store.rounds(4) == [1, 2, 3, 4]


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
    assert store.rounds(4) == [1, 2, 3, 4]


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
    assert store.rounds(4) == [1, 2, 3, 4]


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
    values = dict(store.held(4).series["accuracy"])
    assert store.rounds(4) == [1, 2, 3, 4]
    assert values[2] == pytest.approx(again or 0.52)
    assert values[4] == pytest.approx(0.9)


def test_two_runs_do_not_mix(store: Store) -> None:
    for name in ("first", "other/first"):
        run = Run(store.run.path.parent / name)
        run.close_rounds(1, 2)
        delivery = Store(store.kind, run, store.root).delivery()
        delivery.end()
        delivery.close()

    def found() -> bool:
        runs = store.kind.read(store.root)
        return [[step for step, _ in held.series["accuracy"]] for held in runs] == [[1, 2], [1, 2]]

    until(found, "two runs", every=0.1)
