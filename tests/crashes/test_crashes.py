"""Seeded runs with crashes, partitions and a failing disk, held against a simple model; and faults that it must find.

`python -m tests.crashes SEED` repeats the run of a seed, which each failure names.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from hypergpu.coordinator import app
from hypergpu.coordinator.core.ledger import Ledger
from hypergpu.coordinator.core.model import global_model
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.model.optimizer import Sgd
from hypergpu.coordinator.core.rounds.work import RoundSettings
from hypergpu.coordinator.durability import Durability
from hypergpu.coordinator.failpoints import Point
from hypergpu.coordinator.line_file import LineFile
from hypergpu.coordinator.round_log import Contents, RoundLog
from tests.crashes.forgetful import ForgetfulStorage
from tests.crashes.history import History, faults_of, parameters_after, update_of
from tests.crashes.world import run

SEEDS = 30
SOAK_SEEDS = 1000
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
"""A process that dies closes nothing."""


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_nothing_that_was_told_is_undone_whatever_a_seed_brings(first: int) -> None:
    failed = [str(outcome) for outcome in map(run, range(first, first + 10)) if outcome.faults]
    assert not failed, "\n".join(failed)


@pytest.mark.soak
@pytest.mark.parametrize("first", range(SEEDS, SEEDS + SOAK_SEEDS, 100))
def test_nothing_that_was_told_is_undone_in_a_thousand_runs(first: int) -> None:
    failed = [str(outcome) for outcome in map(run, range(first, first + 100)) if outcome.faults]
    assert not failed, "\n".join(failed)


def test_a_disk_that_fails_while_the_log_is_cut_lets_the_next_start_go_on() -> None:
    outcome = run(578)
    assert not outcome.faults, outcome


def test_a_seed_repeats_its_run() -> None:
    assert run(3) == run(3)


# ---------------------------------------------------------------- faults that must be found


def tell_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    commit = Durability.commit
    writing: set[Any] = set()

    async def told(self: Durability, *arguments: Any) -> None:
        writing.add(asyncio.ensure_future(commit(self, *arguments)))

    patch.setattr(Durability, "commit", told)


def sync_nothing(patch: pytest.MonkeyPatch) -> None:
    def sync(self: ForgetfulStorage, _: int, point: Point) -> None:
        self.reach(point)

    patch.setattr(ForgetfulStorage, "sync", sync)


def skip_a_record(patch: pytest.MonkeyPatch) -> None:
    close_round = RoundLog.close_round

    def skipped(self: RoundLog, number: int, record: Mapping[str, Any]) -> None:
        if number % 4:
            close_round(self, number, record)

    patch.setattr(RoundLog, "close_round", skipped)


def forget_the_last_record(patch: pytest.MonkeyPatch) -> None:
    after = Contents.after
    patch.setattr(Contents, "after", lambda self, number: after(self, number)[:-1])
    patch.setattr(Contents, "lost_after", lambda self, number: "")


def resume_from_the_checkpoint_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Contents, "after", lambda self, number: ())
    patch.setattr(Contents, "lost_after", lambda self, number: "")


def forget_the_momentum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sgd, "restore", lambda self, state: None)


def count_an_update_twice(patch: pytest.MonkeyPatch) -> None:
    add = GlobalModel.add

    def twice(self: GlobalModel, *arguments: Any) -> None:
        add(self, *arguments)
        if arguments[-1] == "a":
            add(self, *arguments)

    patch.setattr(GlobalModel, "add", twice)


def leave_the_directory_unsynced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ForgetfulStorage, "_directory_lasts", lambda self, directory: None)


def acknowledge_what_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    begin = app.Coordinator._make_machine

    def made(self: Any, *arguments: Any) -> Any:
        machine = begin(self, *arguments)
        if self._found is not None:
            for member in machine.members:
                member.last_accepted = self._found.round
        return machine

    patch.setattr(app.Coordinator, "_make_machine", made)


def publish_what_is_not_on_the_disk(patch: pytest.MonkeyPatch) -> None:
    seal = Ledger.seal

    def published(self: Ledger) -> list[str]:
        lines = seal(self)
        self.publish(self.size)
        return lines

    patch.setattr(Ledger, "seal", published)


def forget_leaves_that_were_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LineFile, "note_synced", lambda self, written=None: setattr(self, "synced", self._written + 1))


def go_on_without_who_leaves(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RoundSettings, "awaits_return", property(lambda _: False, lambda _, __: None))


def count_late_updates_in_full(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(global_model, "staleness_weight", lambda _: 1.0)


def acknowledge_late_updates_that_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    add = GlobalModel.add

    def added(self: GlobalModel, *arguments: Any) -> None:
        if arguments[3] is None:  # else it is late
            add(self, *arguments)

    patch.setattr(GlobalModel, "add", added)


MUTANTS: tuple[Callable[[pytest.MonkeyPatch], None], ...] = (
    tell_before_the_sync,
    sync_nothing,
    skip_a_record,
    forget_the_last_record,
    resume_from_the_checkpoint_alone,
    forget_the_momentum,
    count_an_update_twice,
    leave_the_directory_unsynced,
    acknowledge_what_is_not_counted,
    publish_what_is_not_on_the_disk,
    forget_leaves_that_were_not_synced,
)
MODES: Mapping[Callable[[pytest.MonkeyPatch], None], str] = {
    go_on_without_who_leaves: "deterministic",
    count_late_updates_in_full: "buffered",
    acknowledge_late_updates_that_are_not_counted: "buffered",
}
"""Faults of one mode of rounds."""


@pytest.mark.parametrize("mutant", [*MUTANTS, *MODES], ids=lambda mutant: mutant.__name__)
def test_a_broken_durable_path_is_found(mutant: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        given = {"mode": MODES[mutant]} if mutant in MODES else {}
        assert any(run(seed, **given).faults for seed in range(40)), f"{mutant.__name__} went unnoticed in 40 runs"


# ---------------------------------------------------------------- the model itself


def history() -> History:
    seen = [(1, 0), (1, 1), (1, 1), (3, 1), (3, 2)]
    orders = [(1, "a", 1, 0, 0), (1, "a", 2, 1, 0), (3, "a", 2, 1, 0)]
    return History([(1, 1), (3, 2)], orders, [(1, "a", 1, 1), (1, "a", 2, 2), (3, "a", 2, 2)], set(), seen)


ROWS = [{"round": 1, "contributors": ["a", "b"]}, {"round": 2, "contributors": ["a"]}]
INITIAL: Any = np.zeros(8, np.float32)


def faults(of: History, rows: Any = ROWS, final: Any = None) -> list[str]:
    final = parameters_after(INITIAL, ROWS) if final is None else final
    return faults_of(of, rows, 2, INITIAL, final)


def test_the_model_allows_what_is_right() -> None:
    assert faults(history()) == []


def test_the_model_finds_each_kind_of_fault() -> None:
    undone = history()
    undone.seen.append((3, 1))
    assert faults(undone) == ["process 3 undid round 2, and round 2 was done"]
    twice = history()
    twice.told.append((3, 2))
    assert faults(twice) == ["round 2 was told twice"]
    lost = history()
    lost.accepted.append((3, "b", 2, 2))
    assert faults(lost) == ["the update of b for round 2 was acknowledged, and is lost"]
    promised = history()
    promised.orders.append((3, "b", 3, 2, 0))
    assert faults(promised) == ["process 3 told b that round 2 has its update, and it has not"]
    assert faults(history(), ROWS[:1]) == ["rounds.jsonl has the rounds [1]"]
    assert faults(history(), final=INITIAL) == ["the weights are not those that the contributions lead to"]
    doubled = [ROWS[0], {"round": 2, "contributors": ["a", "a"]}]
    assert "round 2 counts the update of a for round 2 again" in faults(history(), doubled)


def test_a_round_that_was_told_with_the_word_that_it_is_not_on_the_disk_may_be_undone() -> None:
    warned = history()
    warned.seen += [(3, 1)]
    warned.unsafe.add((3, 2))
    assert faults(warned) == []


def test_updates_are_whole_numbers_so_that_their_order_does_not_matter() -> None:
    assert (update_of("a", 1, 8) % 1 == 0).all()
    assert not np.array_equal(update_of("a", 1, 8), update_of("b", 1, 8))
