"""Spans of rounds, as the coordinator begins and ends them."""

from collections.abc import Sequence
from typing import Any

from hypergpu.common.tracing import NoTracer
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.traces import RoundTraces


class Span:
    def __init__(self, log: list[str], name: str, parent: str) -> None:
        self._log, self.context, self._ended = log, name, False
        log.append(f"begin {name} in {parent}" if parent else f"begin {name}")

    def end(self, **attributes: Any) -> None:
        if not self._ended:
            self._log.append(f"end {self.context} {attributes.get('outcome', '')}".rstrip())
        self._ended = True


class Log(NoTracer):
    is_on = True  # type: ignore[misc]

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, name: str, parent: str = "", **attributes: Any) -> Span:
        return Span(self.lines, f"{name} {attributes.get('node', '')}".strip(), parent)


def assigned(node: str, number: int = 1) -> ev.WorkAssigned:
    return ev.WorkAssigned(number, node, 1, 8, 4, 0.1, "sgd", ev.Shard(0, 1, 0), 9.0)


def closed(*contributions: ev.Contribution) -> ev.CloseRound:
    return ev.CloseRound(1, contributions, ev.CloseReason.ALL_CONTRIBUTED, 1.0, 8, 0.5, True)


def told(effects: Sequence[Any]) -> list[str]:
    tracer = Log()
    traces = RoundTraces(tracer, "run")
    for each in effects:
        if isinstance(each, ev.UpdateReply):
            traces.counted(each)
        elif each == "told":
            traces.round_told()
        else:
            traces.observe(each)
    return tracer.lines


def test_a_round_holds_its_work_units_and_its_end() -> None:
    accepted = ev.UpdateReply("a", 1, ev.UpdateStatus.ACCEPTED, 8)
    story = [ev.StartRound(1, ["a", "b"], 9.0), assigned("a"), assigned("b"), accepted]
    missing = ev.Contribution("b", success=False)
    assert told([*story, closed(ev.Contribution("a", success=True), missing), "told"]) == [
        "begin round",
        "begin work a in round",
        "begin work b in round",
        "end work a accepted",
        "end work b missing",
        "begin close in round",
        "end close",
        "end round accepted",
    ]


def test_a_unit_that_is_given_up_a_late_one_and_one_of_a_run_that_ends_have_an_end() -> None:
    late = ev.Contribution("a", success=False, late=True)
    reply = ev.UpdateReply("a", 1, ev.UpdateStatus.ACCEPTED, 8, staleness=1)
    story = [ev.StartRound(1, ["a"], 9.0), assigned("a"), assigned("a"), closed(late), "told", reply]
    rest = [ev.StartRound(2, ["a"], 9.0), assigned("a", 2), ev.UpdateReply("a", 1, ev.UpdateStatus.STALE)]
    over = [ev.Finish(ev.FinishReason.STOPPED)]
    assert told([*story, *rest, *over])[2:] == [
        "end work a given_up",
        "begin work a in round",
        "begin close in round",
        "end close",
        "end round accepted",
        "end work a accepted",
        "begin round",
        "begin work a in round",
        "end round over",
        "end work a over",
    ]


def test_without_a_tracer_nothing_is_kept() -> None:
    traces = RoundTraces()
    traces.observe(ev.StartRound(1, ["a"], 9.0))
    traces.observe(assigned("a"))
    assert traces.context_of("a") == ""
