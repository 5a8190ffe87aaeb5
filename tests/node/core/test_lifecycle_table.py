"""The life cycle as a table: from every state that can be reached, what each event leads to.

Write it anew with `pytest tests/node/core/test_lifecycle_table.py --update-transcripts`.
"""

import copy
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import pytest

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.node.core import lifecycle as life
from hypergpu.node.core.lifecycle import LAST_TRIES, Failure, LifeCycle

TABLE = Path(__file__).parent / "transcripts/lifecycle.txt"
FAILURES = tuple(life.Failed(failure, "Kind", "detail") for failure in Failure)
ANSWERS: dict[type, tuple[life.Event[str], ...]] = {
    life.Register: (life.Registered(), *FAILURES),
    life.Pull: (life.NoWork(), life.OrderArrived("work"), life.WorkArrived("work"), *FAILURES),
    life.Train: (life.Trained(), *FAILURES),
    life.Push: (life.Pushed(), *FAILURES),
    life.Return: (life.Returned(),),
    life.BackOff: (life.BackoffOver(),),
    life.Leave: (life.Left(), FAILURES[0]),
}
"""What may come of the operation that is under way."""
AT_ANY_TIME: tuple[life.Event[str], ...] = (
    life.AskedToRegister(),
    life.AskedToAbandon(),
    life.RunEnded("run is over"),
    life.StopAsked("signal"),
    life.GraceOver(),
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
        words += [f"then {told(m._after)}"] if self.operation is life.BackOff else []
        words += ["has work"] if m.work else []
        words += [f"stopping, {min(m._failures, LAST_TRIES)} failures"] if m._stopping else []
        return ", ".join(words)


def told(effect: object) -> str:
    return f"BackOff(because={effect.because.failure})" if isinstance(effect, life.BackOff) else repr(effect)


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
            name = type(event).__name__ + (f"({event.failure})" if isinstance(event, life.Failed) else "")
            if effects or str(after) != str(before):
                lines.append(f"  {name:22} {', '.join(map(told, effects)) or 'nothing'} -> {m.state}")
            if after.operation is not life.Exit and str(after) not in known:
                known.add(str(after))
                todo.append(after)
    return lines


def test_the_life_cycle_goes_as_its_table_says(request: pytest.FixtureRequest) -> None:
    text = "\n".join(table()).lstrip() + "\n"
    if request.config.getoption("--update-transcripts"):
        TABLE.write_text(text)
    assert text.splitlines() == TABLE.read_text().splitlines()


def test_waits_are_drawn_below_a_bound_that_doubles_to_the_cap() -> None:
    m: LifeCycle[str] = LifeCycle(KeyedRandom(0, "backoff"), base=0.1, cap=5.0)
    m.handle(life.Started())
    draws, waits = KeyedRandom(0, "backoff"), []
    for _ in range(9):
        (wait,) = m.handle(life.Failed(Failure.TRANSIENT, "Kind", "detail"))
        assert isinstance(wait, life.BackOff)
        waits.append(wait.seconds)
        m.handle(life.BackoffOver())
    bounds = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert waits == [bound * draws.uniform(number) for number, bound in enumerate(bounds)]
