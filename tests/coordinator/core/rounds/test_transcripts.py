"""The round machine against transcripts: each is a story of commands and their effects.

A transcript is a file of comments (`#`), commands (`>`) and, below each command, the effects of the machine. After an
intended change, run `pytest tests/coordinator/core/rounds/test_transcripts.py --update-transcripts` and read the diff.

    > machine min_nodes=2 lost_after=10     begin, with these settings of `training`
    > join a b                              nodes register (`incarnation=2` for another process)
    > ask a                                 a node asks for work; `gone a` stops asking
    > push a samples=16 norm=1.0 round=1    an update arrives
    > return a OutOfMemory                  a node returns its work
    > evaluated 0.5 0.9                     the closed round is evaluated
    > wait 5                                time passes, and the timer fires
    > later 5                               time passes, and the timer is late
    > gain a                                the gain of an update of a has been measured
    > rehearsed                             the result of a rehearsal arrives
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.connections import ONE_EACH
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rehearsal import RehearsalResult
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import FixedAdaptation
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from tests.transcripts import RequireTranscript

DIRECTORY = Path(__file__).parent / "transcripts"
MACHINE_OPTIONS = {"lost_after": float, "max_nodes": int, "first_round": int}


class Stage:
    """A machine, its clock, and the commands."""

    def __init__(self, options: Mapping[str, str]) -> None:
        machine = {key: kind(options[key]) for key, kind in MACHINE_OPTIONS.items() if key in options}
        training = {key: value for key, value in options.items() if key not in MACHINE_OPTIONS}
        config = TrainingConfig.model_validate({"rounds": 9, "local_steps": 2, "batch_size": 8, **training})
        lost_after = machine.pop("lost_after", None)
        adaptation = FixedAdaptation(config.batch_size)
        self.machine = RoundMachine(config, adaptation, lost_after_seconds=lost_after, **machine)
        self.now = 0.0
        self.commands: dict[str, Callable[[list[str], dict[str, str]], list[ev.Event]]] = {
            "join": self._join,
            "ask": lambda nodes, _: [ev.WorkRequested(node) for node in nodes],
            "gone": lambda nodes, _: [ev.RequestEnded(node) for node in nodes],
            "seen": self._seen,
            "leave": lambda nodes, _: [ev.NodeLeft(node, "done") for node in nodes],
            "lost": lambda nodes, _: [ev.NodeLost(node) for node in nodes],
            "push": self._push,
            "return": self._return,
            "evaluated": self._evaluated,
            "failed": lambda _, named: [
                ev.EvaluationFailed(self._number(named), "error", named.get("stepped") == "yes")
            ],
            "include": lambda nodes, _: [ev.OverrideSet(node, NodeOverride.INCLUDE) for node in nodes],
            "exclude": lambda nodes, _: [ev.OverrideSet(node, NodeOverride.EXCLUDE) for node in nodes],
            "wait": self._wait,
            "pause": lambda _, __: [ev.Pause()],
            "resume": lambda _, __: [ev.Resume()],
            "stop": lambda words, _: [ev.Stop(" ".join(words))],
            "suspend": lambda _, __: [ev.Suspend()],
            "fail": lambda words, _: [ev.Fail(" ".join(words))],
            "later": self._later,
            "gain": lambda words, _: [ev.GainMeasured(words[0], 1, 0.5, 0.25)],
            "rehearsed": lambda _, __: [ev.Rehearsed(RehearsalResult(1, 2.5))],
        }

    def run(self, line: str) -> list[str]:
        name, *words = line.split()
        named = dict(word.split("=", 1) for word in words if "=" in word)
        lines = []
        for event in self.commands[name]([word for word in words if "=" not in word], named):
            lines += [line_of(effect) for effect in self.machine.handle(event, self.now)]
        waiting = f", waiting for {self.machine.waiting_for}" if self.machine.waiting_for else ""
        return [*lines, f"= {self.machine.state}, round {self.machine.round}{waiting}"]

    @staticmethod
    def _join(nodes: list[str], named: dict[str, str]) -> list[ev.Event]:
        largest = int(named.get("largest", "0"))
        return [ev.NodeJoined(node, named.get("incarnation", "1"), largest) for node in nodes]

    def _seen(self, nodes: list[str], _: dict[str, str]) -> list[ev.Event]:
        for node in nodes:
            self.machine.seen(node, self.now)
        return []

    def _return(self, words: list[str], _: dict[str, str]) -> list[ev.Event]:
        node, *rest = words
        current = self.machine.round_state.open_round
        unit = current.units.get(node) if current is not None else None
        return [ev.WorkReturned(node, self.machine.round, unit.attempt if unit else 1, *rest)]

    def _push(self, nodes: list[str], named: dict[str, str]) -> list[ev.Event]:
        number = self._number(named)
        norm = float(named["norm"]) if "norm" in named else None
        samples, attempt = int(named.get("samples", "16")), int(named.get("attempt", "1"))
        return [
            ev.UpdateArrived(node, number, attempt, samples, 1.5, 0.25, loss_before=2.0, norm=norm) for node in nodes
        ]

    def _evaluated(self, words: list[str], named: dict[str, str]) -> list[ev.Event]:
        loss, metric = (None if word == "none" else float(word) for word in (*words, "none", "none")[:2])
        return [ev.Evaluated(self._number(named), loss, metric)]

    def _number(self, named: dict[str, str]) -> int:
        return int(named.get("round", self.machine.round))

    def _later(self, words: list[str], _: dict[str, str]) -> list[ev.Event]:
        self.now += float(words[0])
        return []

    def _wait(self, words: list[str], _: dict[str, str]) -> list[ev.Event]:
        self.now += float(words[0])
        return [ev.Tick()]


def line_of(effect: ev.Effect) -> str:
    if isinstance(effect, ev.RunEvent):
        return f"  {effect.kind}: {effect.text}"
    if isinstance(effect, ev.CloseRound):
        parts = [
            f"{c.node} gave {c.samples} (batch {c.batch_size}, waited {c.waiting_seconds:g}"
            + (")" if c.success else f", late {c.late}, measured {c.measured})")
            for c in effect.contributions
        ]
        figures = f"{effect.reason}, {effect.seconds:g} s, {effect.samples} samples, loss {effect.loss:g}"
        figures += f"{', evaluate' if effect.evaluate else ''}, ended {effect.restarts[0]} in {effect.restarts[1]:g} s"
        merged = "".join(f", {c.node} of round {c.round} merged by {c.weight:.3g}" for c in effect.late)
        return f"  * CloseRound {effect.round}: {figures}: {'; '.join(parts)}{merged}"
    values = ", ".join(
        f"{field.name}={shown(getattr(effect, field.name))}"
        for field in dataclasses.fields(effect)
        if getattr(effect, field.name) not in (ONE_EACH, None)
    )
    return f"  * {type(effect).__name__} {values}"


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, ev.Shard):
        return f"{value.index}/{value.count}@{value.cursor}"
    return "+".join(value) if isinstance(value, tuple) else str(value)


def replayed(text: str) -> list[str]:
    """Return the transcript with the present effects; comments and commands stay."""
    lines: list[str] = []
    stage = Stage({})
    for line in text.splitlines():
        if line.startswith("> machine"):
            stage = Stage(dict(word.split("=", 1) for word in line.split()[2:]))
            lines.append(line)
        elif line.startswith("> "):
            lines += [line, *stage.run(line[2:])]
        elif line.startswith("#") or not line:
            lines.append(line)
    return lines


@pytest.mark.parametrize("name", sorted(file.stem for file in DIRECTORY.glob("*.txt")))
def test_the_machine_answers_as_its_transcript_says(name: str, require_transcript: RequireTranscript) -> None:
    file = DIRECTORY / f"{name}.txt"
    require_transcript(file, replayed(file.read_text()))
