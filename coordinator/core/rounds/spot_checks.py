"""Spot checks: accepted updates that another node computes again, from the same order and the same parameters.

A keyed draw takes an accepted update (Sarmenta, "Sabotage-tolerance mechanisms for volunteer computing systems", CCGrid
2001); its node cannot know it. In the next round, another node is given the order in place of its own work, and the
result is compared with the update. If they differ, a third node does the same: only if two of three agree, and the one
that differs is far off, is it named. What is computed again enters no mean, and no round waits for it.

It works only where an update follows from its order alone: see `SpotChecks.draw`.
"""

from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np

from hypergpu.common.codecs import find_codec
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.decisions import DecisionKind, Figures
from hypergpu.coordinator.core.model.sketch import Sketch
from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer
from hypergpu.coordinator.core.rounds.events import Repeated, UpdateArrived, UpdateReply, UpdateStatus
from hypergpu.coordinator.core.rounds.membership import Member
from hypergpu.coordinator.core.rounds.work import WorkUnit

TOLERANCE: Final = 0.02
"""Distance of two updates, in lengths of the longer one, up to which they are the same. On machines of the same kind
they are equal, but for cards that add in any order; docs/contribution.md has figures."""
FAR: Final = 10.0
"""Times the distance of two that agree by which a third has to be away from both, to be the wrong one: chance alone
puts three that differ by rounding at about the same distances."""
MOST_KEPT: Final = 2
"""Parameters of earlier rounds, by codec, that are kept at once: the memory of as many models."""
LEAST_NODES: Final = 3
"""Nodes of a round of which one may check another."""
LARGEST_PART: Final = 4
"""Nodes of a round of which one checks at most."""
MOST_TRIES: Final = 3
"""Nodes that may fail to answer, or rounds in which nobody can check, before a check is given up."""
FIRST_ATTEMPT: Final = 1_000_000
"""Attempts of checks are counted from here, so that none is taken for work of the same round."""
MOST_ROUNDS: Final = 2
"""Rounds after its own in which a node may still answer."""


class SpotCheckReason(StrEnum):
    """Result of a spot check."""

    REPRODUCED = "reproduced"
    DIFFERS = "differs"
    """A third node will decide."""
    NOT_REPRODUCED = "not_reproduced"
    """Two others agree, and the update of the node is another one."""
    CHECK_WAS_WRONG = "check_was_wrong"
    """A third node reproduced the update, and the node that had not is wrong."""
    UNRESOLVED = "unresolved"
    """All three differ."""
    GIVEN_UP = "given_up"
    """No node of the same kind has computed it again."""


_R = SpotCheckReason


class Answer(NamedTuple):
    """Result of computing an order again."""

    node: str
    sketch: Sketch


@dataclass(slots=True)
class Check:
    """Accepted update that is computed again."""

    node: str
    round: int
    unit: WorkUnit
    sketch: Sketch
    numerics: str
    """Kind of machine that computed it, by what its rounding depends on."""
    answers: list[Answer] = field(default_factory=list)
    tries: int = 0

    @property
    def parameters(self) -> tuple[int, str]:
        """Round and codec of the parameters that the order begins with."""
        return self.round, self.unit.codecs.parameters

    def may_be_done_by(self, member: Member) -> bool:
        """Return whether a node can compute the same: another one, of the same kind, whose memory takes the batch."""
        known = {self.node, *(answer.node for answer in self.answers)}
        fits = not member.largest_batch or member.largest_batch >= self.unit.batch_size
        return member.node_id not in known and fits and member.info.get("numerics", "") == self.numerics


@dataclass(slots=True)
class Dealt:
    """Check that a node does."""

    check: Check
    unit: WorkUnit
    round: int
    """Round in whose place the node does it."""


class Verdict(NamedTuple):
    """Result of the answers to a check."""

    reason: SpotCheckReason
    figures: Figures
    guilty: str = ""
    """Node that sent what it has not computed; empty if none is known to."""


@dataclass(slots=True)
class SpotChecks:
    """Draws updates to check, deals the checks to nodes, and judges their answers.

    Args:
        share: Share of the accepted updates that are checked; 0 checks none.
        secret: Key of the draws, which nodes must not know.
    """

    share: float = 0.0
    secret: int = 0
    waiting: list[Check] = field(default_factory=list)
    dealt: dict[str, Dealt] = field(default_factory=dict)
    """Checks that nodes are to do, or do, by node."""
    _begun: int = 0
    """Checks that nodes have begun."""
    _answered: dict[str, int] = field(default_factory=dict)
    """Round of the latest answer of each node."""
    _residuals: dict[str, str] = field(default_factory=dict)
    """Nodes that add what a codec lost to their next updates, and the process that does."""

    @property
    def parameters(self) -> Set[tuple[int, str]]:
        """Parameters of earlier rounds that are still to be sent, by round and codec."""
        pending = [*self.waiting, *(each.check for each in self.dealt.values())]
        return {check.parameters for check in pending}

    def wanted(self, node: str, round_number: int) -> WorkUnit | None:
        """Return the unit of a check that a node has begun in the place of its work in this round."""
        found = self.dealt.get(node)
        return found.unit if found is not None and found.round == round_number and found.unit.attempt else None

    def is_answered(self, node: str, round_number: int) -> bool:
        """Return whether the check of a node in the place of its work in this round has been answered."""
        return self._answered.get(node) == round_number

    def draw(self, round_number: int, member: Member, unit: WorkUnit, event: UpdateArrived) -> None:
        """Take an update that was accepted in time, if it is drawn, and follows from its order alone.

        One of a node that adds what a codec lost of earlier updates does not, nor does one that may be of an earlier
        order of the same round.
        """
        if not self.share:
            return
        if find_codec(event.codec).needs_feedback:
            self._residuals[member.node_id] = member.incarnation
        has_residual = self._residuals.get(member.node_id) == member.incarnation
        is_its_only_order = event.attempt == unit.attempt and not unit.earlier_codecs and not unit.taken_over
        is_as_ordered = event.samples == unit.samples and is_its_only_order
        if event.sketch is None or not is_as_ordered or has_residual or unit.trial or unit.suspect:
            return
        if KeyedRandom(self.secret, "spot_check", round_number, member.node_id).uniform(0) >= self.share:
            return
        check = Check(member.node_id, round_number, unit, event.sketch, member.info.get("numerics", ""))
        if len({*self.parameters, check.parameters}) <= MOST_KEPT:
            self.waiting.append(check)

    def deal(self, round_number: int, members: Sequence[Member], nodes: int, effects: EffectBuffer) -> Collection[str]:
        """Deal the waiting checks to nodes of a round that opens, and return who does one in place of its work.

        Args:
            round_number: Number of the round.
            members: Nodes that may be spared.
            nodes: Number of nodes that were chosen for the round.
            effects: Receives what is recorded.
        """
        self._expire(round_number, effects)
        if not self.waiting or nodes < LEAST_NODES:
            return ()
        free = {member.node_id: member for member in members if member.node_id not in self.dealt}
        most = max(1, nodes // LARGEST_PART)
        checking: list[str] = []
        for check in sorted(self.waiting, key=lambda check: -len(check.answers)):
            if len(checking) >= most:
                break
            able = [node for node, member in free.items() if check.may_be_done_by(member)]
            if not able:
                self._try_again(check, effects)
                continue
            draws = {node: KeyedRandom(self.secret, check.node, check.round, node).uniform(0) for node in able}
            node = min(able, key=draws.__getitem__)
            self.waiting.remove(check)
            self.dealt[node] = Dealt(check, _repeated(check.unit, free.pop(node)), round_number)
            checking.append(node)
        return checking

    def assign(self, member: Member, deadline_at: float | None, now: float, effects: EffectBuffer) -> bool:
        """Give a node that asks for work its check, if it has one; return whether it has it now.

        A node that asks for it again has lost it: another one is to do it. `deadline_at` is that of the open round.
        """
        found = self.dealt.get(member.node_id)
        if found is None:
            return False
        if found.unit.attempt or deadline_at is None:
            self.give_up(member.node_id, effects)
            return False
        unit, check = found.unit, found.check
        unit.attempt, unit.first_at = FIRST_ATTEMPT + self._begun, now
        self._begun += 1
        member.requesting, member.assignment = False, None
        repeats = Repeated(*check.parameters)
        effects.emit(unit.order(found.round, deadline_at, member.last_accepted, repeats=repeats))
        return True

    def close_round(self, effects: EffectBuffer) -> Collection[str]:
        """Take back the checks that no node has begun; return the nodes that go on with theirs."""
        for node in [node for node, found in self.dealt.items() if not found.unit.attempt]:
            self.give_up(node, effects)
        return self.dealt.keys()

    def give_up(self, node: str, effects: EffectBuffer) -> None:
        """Let another node do the check of one that will not answer, if it has one."""
        found = self.dealt.pop(node, None)
        if found is not None:
            self.waiting.append(found.check)
            self._try_again(found.check, effects)

    def clear(self) -> None:
        """Drop all checks: the run is over."""
        self.waiting.clear()
        self.dealt.clear()

    def answer(self, event: UpdateArrived, effects: EffectBuffer) -> Verdict | None:
        """Judge the answer to a check, record the verdict, and answer the node; None if it sent nothing to compare."""
        if event.sketch is None:
            self.give_up(event.node, effects)
            effects.reply(UpdateReply(event.node, event.round, UpdateStatus.LATE))
            return None
        check = self.dealt.pop(event.node).check
        check.answers.append(Answer(event.node, event.sketch))
        self._answered[event.node] = event.round
        verdict = judge(check)
        if verdict.reason is _R.DIFFERS:
            self.waiting.append(check)
        effects.reply(UpdateReply(event.node, event.round, UpdateStatus.COMPARED))
        effects.decide(DecisionKind.SPOT_CHECK, check.node, verdict.reason, verdict.figures)
        return verdict

    def _expire(self, round_number: int, effects: EffectBuffer) -> None:
        for node in [node for node, found in self.dealt.items() if round_number - found.round > MOST_ROUNDS]:
            self.give_up(node, effects)

    def _try_again(self, check: Check, effects: EffectBuffer) -> None:
        """Count a try that failed, and give the check up after the last."""
        check.tries += 1
        if check.tries >= MOST_TRIES:
            self.waiting.remove(check)
            figures: Figures = {"of_round": check.round, "tries": check.tries, "answers": len(check.answers)}
            effects.decide(DecisionKind.SPOT_CHECK, check.node, _R.GIVEN_UP, figures)


def judge(check: Check) -> Verdict:
    """Return what the answers to a check say: one, or two if the first differs from the update."""
    by = [answer.node for answer in check.answers]
    away = [distance(check.sketch, answer.sketch) for answer in check.answers]
    figures: Figures = {"of_round": check.round, "by": ", ".join(by), "distance": round(away[-1], 6)}
    if len(away) == 1:
        return Verdict(_R.REPRODUCED if away[0] <= TOLERANCE else _R.DIFFERS, figures)
    apart = distance(check.answers[0].sketch, check.answers[1].sketch)
    figures = {**figures, "first_distance": round(away[0], 6), "apart": round(apart, 6)}
    if apart <= TOLERANCE < min(away) and min(away) > FAR * apart:
        return Verdict(_R.NOT_REPRODUCED, figures, check.node)
    if away[1] <= TOLERANCE < min(away[0], apart) and min(away[0], apart) > FAR * away[1]:
        return Verdict(_R.CHECK_WAS_WRONG, figures, by[0])
    return Verdict(_R.REPRODUCED if away[1] <= TOLERANCE else _R.UNRESOLVED, figures)


def distance(one: Sketch, other: Sketch) -> float:
    """Return the distance of two updates by their sketches, in lengths of the longer one; 0 if they are equal."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    longer = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return float(np.linalg.norm(a - b)) / longer if longer else 0.0


def _repeated(unit: WorkUnit, member: Member) -> WorkUnit:
    """Return the work unit of a node that repeats another one; its parameters are sent as they were received."""
    codecs = TransferCodecs(parameters="none", update=unit.codecs.update)
    return WorkUnit(
        member.node_id,
        unit.shard,
        unit.batch_size,
        unit.local_steps,
        unit.optimizer,
        codecs,
        trial=True,
        awaited=False,
        incarnation=member.incarnation,
    )
