"""Trace of each round: the round, the work units in it, and its end, as the round machine decides them."""

from contextlib import AbstractContextManager

from hypergpu.common.tracing import NO_TRACER, OpenSpan, Tracer
from hypergpu.coordinator.core.rounds import events as ev

_NO_SPAN: OpenSpan = NO_TRACER.begin("")


class RoundTraces:
    """Spans of the rounds of a run.

    Args:
        tracer: Maker of spans.
        run_id: Id of the run.
    """

    def __init__(self, tracer: Tracer = NO_TRACER, run_id: str = "") -> None:
        self.tracer, self._run_id = tracer, run_id
        self._round = self._closing = _NO_SPAN
        self._units: dict[str, tuple[int, OpenSpan]] = {}
        """Round and span of the latest work unit of each node."""

    def observe(self, effect: ev.Effect) -> None:
        """Begin and end the spans that an effect is about."""
        if not self.tracer.is_on:
            return
        match effect:
            case ev.StartRound():
                self._round = self.tracer.begin("round", run=self._run_id, round=effect.round, nodes=len(effect.nodes))
            case ev.WorkAssigned():
                self._begin_unit(effect)
            case ev.CloseRound():
                self._end_units(effect)
                self._closing = self.tracer.begin("close", self._round.context, round=effect.round)
            case ev.AbandonRound() | ev.Finish():
                self.round_told("abandoned" if isinstance(effect, ev.AbandonRound) else "over")
                for _, span in self._units.values():
                    span.end(outcome="over")
                self._units.clear()
            case _:
                pass

    def context_of(self, node: str) -> str:
        """Return the context of a node's work unit; empty if there is none."""
        return self._units[node][1].context if node in self._units else ""

    def part(self, name: str) -> AbstractContextManager[str]:
        """Return a span of the end of the round."""
        return self.tracer.span(name, self._closing.context)

    def counted(self, reply: ev.UpdateReply) -> None:
        """End the work unit that an update is of."""
        if reply.node in self._units and self._units[reply.node][0] == reply.round:
            _, span = self._units.pop(reply.node)
            span.end(outcome=str(reply.status), samples=reply.weight, staleness=reply.staleness)

    def round_told(self, outcome: str = "accepted") -> None:
        """End the round: its outcome is on the disk and told."""
        self._closing.end()
        self._round.end(outcome=outcome)
        self._closing = self._round = _NO_SPAN

    def _begin_unit(self, work: ev.WorkAssigned) -> None:
        former = self._units.pop(work.node, None)
        if former is not None:
            former[1].end(outcome="given_up")
        span = self.tracer.begin(
            "work",
            self._round.context,
            round=work.round,
            node=work.node,
            attempt=work.attempt,
            batch_size=work.batch_size,
            local_steps=work.local_steps,
            codec=work.codecs.update,
        )
        self._units[work.node] = work.round, span

    def _end_units(self, closed: ev.CloseRound) -> None:
        """End the units of a round that closes without them; with late updates, they may still end as counted."""
        for contribution in closed.contributions:
            if not contribution.success and not contribution.late and contribution.node in self._units:
                self._units.pop(contribution.node)[1].end(outcome="missing")
