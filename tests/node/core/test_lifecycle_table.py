"""The life cycle as a table: from every state that can be reached, what each event leads to.

Write it anew with `pytest tests/node/core/test_lifecycle_table.py --update-transcripts`.
"""

import copy
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from hypergpu.common.errors import InvalidInput, NotAuthenticated, NotFound, StaleWork, Unavailable
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.node.core import events as life
from hypergpu.node.core.lifecycle import MAX_SHUTDOWN_ATTEMPTS, LifeCycle
from tests.transcripts import RequireTranscript

TABLE = Path(__file__).parent / "transcripts/lifecycle.txt"
FAILURES = tuple(
    life.Failed(error("detail")) for error in (Unavailable, NotFound, StaleWork, InvalidInput, NotAuthenticated)
)
ANSWERS: dict[type, tuple[life.Event[str], ...]] = {
    life.Register: (life.Registered(), *FAILURES),
    life.Prepare: (life.Prepared(announce=True), life.Prepared(announce=False), *FAILURES),
    life.Pull: (life.NoWork(), life.WorkAnnounced("work"), life.WorkReceived("work"), *FAILURES),
    life.Train: (life.Trained(), *FAILURES),
    life.Push: (life.Pushed(), *FAILURES),
    life.AskProgress: (
        life.ProgressKnown(accepted=False, next_offset=7),
        life.ProgressKnown(accepted=True, next_offset=9),
        *FAILURES,
    ),
    life.AwaitNextRun: (life.NoWork(),),
    life.Return: (life.Returned(),),
    life.BackOff: (life.BackoffExpired(),),
    life.Leave: (life.Left(), FAILURES[0]),
}
"""What may come of the operation that is under way."""
AT_ANY_TIME: tuple[life.Event[str], ...] = (
    life.RegistrationRequested(),
    life.AbandonRequested("work"),
    life.RunFinished("run is over"),
    life.RunFinished("run is over", coordinator_stays=True),
    life.StopRequested("signal"),
    life.GraceExpired(),
)


@dataclass(frozen=True)
class Situation:
    """A life cycle and the operation that is under way."""

    m: LifeCycle[str]
    operation: type

    def __str__(self) -> str:
        """All that decides what comes next, but for the length of waits."""
        m = self.m
        words = [f"{m.state}, {self.operation.__name__}"]
        words += [f"then {told(m._after_backoff)}"] if self.operation is life.BackOff else []
        words += ["has work"] if m.work else []
        words += [f"stopping, {min(m._failures, MAX_SHUTDOWN_ATTEMPTS)} failures"] if m._stopping else []
        return ", ".join(words)


def short(event: life.Event[str]) -> str:
    match event:
        case life.Prepared(announce):
            return f"Prepared(announce={announce})"
        case life.ProgressKnown(accepted):
            return f"ProgressKnown(accepted={accepted})"
        case life.RunFinished(coordinator_stays=True):
            return "RunFinished(stays)"
    return type(event).__name__


def told(effect: object) -> str:
    return f"BackOff({effect.failure})" if isinstance(effect, life.BackOff) else repr(effect)


def table() -> list[str]:
    begin: LifeCycle[str] = LifeCycle(KeyedRandom(0, "backoff"))
    begin.handle(life.Started())
    todo = deque([Situation(begin, life.Register)])
    known, lines = {str(todo[0])}, []
    while todo:
        before = todo.popleft()
        lines.append(f"\n{before}")
        for event in (*ANSWERS[before.operation], *AT_ANY_TIME):
            m = copy.deepcopy(before.m)
            effects = m.handle(event)
            operations = [type(effect) for effect in effects if not isinstance(effect, life.StartGrace)]
            after = Situation(m, operations[0] if operations else before.operation)
            name = f"Failed({event.kind})" if isinstance(event, life.Failed) else short(event)
            if effects or str(after) != str(before):
                lines.append(f"  {name:29} {', '.join(map(told, effects)) or 'nothing'} -> {m.state}")
            if after.operation is not life.Exit and str(after) not in known:
                known.add(str(after))
                todo.append(after)
    return lines


def test_the_life_cycle_goes_as_its_table_says(require_transcript: RequireTranscript) -> None:
    require_transcript(TABLE, "\n".join(table()).lstrip().splitlines())


def test_waits_are_drawn_below_a_bound_that_doubles_to_the_cap() -> None:
    m: LifeCycle[str] = LifeCycle(KeyedRandom(0, "backoff"), base=0.1, cap=5.0)
    m.handle(life.Started())
    draws, waits = KeyedRandom(0, "backoff"), []
    for _ in range(9):
        (wait,) = m.handle(life.Failed(Unavailable("detail")))
        assert isinstance(wait, life.BackOff)
        waits.append(wait.seconds)
        m.handle(life.BackoffExpired())
    bounds = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert waits == [bound * draws.uniform(number) for number, bound in enumerate(bounds)]
