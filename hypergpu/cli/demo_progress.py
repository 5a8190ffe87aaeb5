"""Progress of the demo: a live view on a terminal, lines in a pipe."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum

from rich.console import Console
from rich.live import Live

from hypergpu.common.text import duration, milliseconds, number
from hypergpu.console import known, progress_bar
from hypergpu.dashboard import History, Snapshot, dashboard
from hypergpu.local_run import NetworkChange, Progress
from hypergpu.protos import coordinator_pb2 as pb

DETAIL_EVERY = 5
"""Rounds between detailed statuses."""
_FIRST_ROUNDS = 3
"""Rounds at the start that get a line each."""
_MOST_LINES = 20
"""Most lines about rounds in a pipe."""
_ROUTINE = frozenset(
    {
        "round_started",
        "round_closed",
        "decision",
        "gain_measured",
        "waiting",
        "node_joined",
        "node_ready",
        "node_left",
        "shards_dealt",
    }
)
"""Kinds of events that get no line at the normal level."""


class Level(StrEnum):
    """Amount of output."""

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"


@contextmanager
def progress_of_run(console: Console, level: Level, changes: Sequence[NetworkChange]) -> Iterator[Progress]:
    """Show the progress of a run: as a live view on a terminal, as lines in a pipe."""
    if level is Level.QUIET:
        yield Progress()
        return
    lines = Lines(console, level, changes)
    if not console.is_terminal:
        yield Progress(lines.event, lines.snapshot)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(snapshot: Snapshot, history: History) -> None:
            live.update(dashboard(snapshot, history, min(console.height, 32)), refresh=True)

        yield Progress(lines.event if level is Level.VERBOSE else lambda _: None, show)


@contextmanager
def steps(console: Console, level: Level, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of a task: as a bar on a terminal, as a line per quarter in a pipe."""
    if level is Level.QUIET:
        yield lambda *_: None
        return
    if console.is_terminal:
        with progress_bar(what) as tell:
            yield tell
        return
    _say(console, f"{what} …")
    quarters = 0

    def tell_quarters(done: int, total: int) -> None:
        nonlocal quarters
        reached = 4 * done // total if total else 4
        if quarters < reached < 4:
            _say(console, f"{what}: {25 * reached} %")
        quarters = max(quarters, reached)

    yield tell_quarters


class Lines:
    """Lines about a run, for a pipe or above the live view."""

    def __init__(self, console: Console, level: Level, changes: Sequence[NetworkChange]) -> None:
        self._console, self._level = console, level
        self._changes = {change.round: change.text for change in changes}
        self._rounds = 0
        self._detailed = 0
        self._waited = False

    def event(self, record: pb.RunEvent) -> None:
        """Print an event of the run, unless it is routine."""
        if record.kind == "round_started" and record.round in self._changes:
            self._line(record.seconds, f"round {record.round}: {self._changes.pop(record.round)}")
        if record.kind == "waiting" and not self._waited:
            self._waited = True
            self._line(record.seconds, record.text)
        elif self._level is Level.VERBOSE or record.kind not in _ROUTINE or self._is_due(record):
            self._line(record.seconds, record.text)

    def snapshot(self, now: Snapshot, _: History) -> None:
        """Print the state of each node, every few rounds."""
        self._rounds = now.status.rounds
        if now.status.round // DETAIL_EVERY <= self._detailed:
            return
        self._detailed = now.status.round // DETAIL_EVERY
        if self._level is Level.VERBOSE:
            for node in now.nodes:
                _say(self._console, f"          {_detail(node)}")
        elif now.status.round % self._step() == 0:
            _say(self._console, f"          links: {', '.join(map(_brief, now.nodes))}")

    def _is_due(self, record: pb.RunEvent) -> bool:
        first = record.round <= _FIRST_ROUNDS
        return record.kind == "round_closed" and (first or record.round % self._step() == 0)

    def _step(self) -> int:
        """Return the number of rounds between lines, a multiple of `DETAIL_EVERY`."""
        return DETAIL_EVERY * max(1, round(self._rounds / _MOST_LINES / DETAIL_EVERY))

    def _line(self, seconds: float, text: str) -> None:
        _say(self._console, f"{duration(seconds):>11}  {text}")


def _detail(node: pb.NodeInfo) -> str:
    lost = known(node, "loss_rate")
    return (
        f"{node.node_id}: {node.state}, {node.quality} ({number(known(node, 'score'))}), "
        f"{milliseconds(known(node, 'latency_ms'))}, loss {'–' if lost is None else f'{100 * lost:.0f} %'}, "
        f"batch {node.batch_size}, contributed {node.rounds_contributed}"
    )


def _brief(node: pb.NodeInfo) -> str:
    score = known(node, "score")
    return f"{node.node_id} {node.quality}" + ("" if score is None else f" {score:.0f}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
