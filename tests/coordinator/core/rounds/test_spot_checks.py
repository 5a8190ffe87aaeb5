"""Spot checks: which updates are computed again, by whom, and who is named."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.local_optimizer import LocalOptimizer
from hypergpu.common.transfer_codecs import TransferCodecs
from hypergpu.coordinator.core.decisions import Decision, DecisionKind
from hypergpu.coordinator.core.model.sketch import WIDTH, Sketch
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import FixedAdaptation
from hypergpu.coordinator.core.rounds.effect_buffer import EffectBuffer
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.membership import Member
from hypergpu.coordinator.core.rounds.spot_checks import (
    MOST_KEPT,
    MOST_ROUNDS,
    MOST_TRIES,
    TOLERANCE,
    Answer,
    Check,
    SpotChecks,
    distance,
    judge,
)
from hypergpu.coordinator.core.rounds.work import WorkUnit
from tests.coordinator.core.rounds.test_machine import Driver
from tests.examples import examples

ACCEPTED, COMPARED = ev.UpdateStatus.ACCEPTED, ev.UpdateStatus.COMPARED
NODES = "abcd"


def sketch(seed: int = 0, length: float = 1.0) -> Sketch:
    """Return a sketch of a direction of its own."""
    drawn = np.random.default_rng(seed).standard_normal(WIDTH)
    return np.asarray(length * drawn / np.linalg.norm(drawn), np.float32)


def near(away: float, seed: int = 9) -> Sketch:
    """Return a sketch at a distance from `sketch()`."""
    return sketch() + sketch(seed, away)


def unit(node: str = "a", **options: Any) -> WorkUnit:
    return WorkUnit(node, ev.Shard(0, 4, 0), 8, 2, LocalOptimizer("sgd", 0.1), **{"attempt": 1, **options})


def check(sent: Sketch, *answers: Sketch) -> Check:
    return Check("a", 3, unit(), sent, "", [Answer(f"by_{n}", each) for n, each in enumerate(answers)])


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize(
    ("sent", "answers", "reason", "guilty"),
    [
        (sketch(), [sketch()], "reproduced", ""),
        (near(0.5 * TOLERANCE), [sketch()], "reproduced", ""),
        (near(2 * TOLERANCE), [sketch()], "differs", ""),
        (sketch(length=1.5), [sketch()], "differs", ""),
        (near(0.5), [sketch(), sketch()], "not_reproduced", "a"),
        (near(0.5), [sketch(), near(1e-4, 8)], "not_reproduced", "a"),
        (sketch(), [near(0.5), sketch()], "check_was_wrong", "by_0"),
        (sketch(), [near(0.5), near(0.5, 8)], "unresolved", ""),
        (near(1.5 * TOLERANCE), [sketch(), near(0.8 * TOLERANCE, 8)], "unresolved", ""),
        (near(1.5 * TOLERANCE), [sketch(), near(TOLERANCE)], "reproduced", ""),
    ],
)
def test_a_node_is_named_only_if_two_others_agree_and_it_is_far_off(
    sent: Sketch, answers: list[Sketch], reason: str, guilty: str
) -> None:
    verdict = judge(check(sent, *answers))
    assert (verdict.reason, verdict.guilty) == (reason, guilty)
    assert verdict.figures["of_round"] == 3


@pytest.mark.parametrize("spread", [1e-6, 0.01, 0.03, 0.3])
def test_rounding_of_any_size_names_nobody(spread: float) -> None:
    """Three honest results that differ by chance are at about the same distances from each other."""
    for seed in range(200):
        three = [near(spread, 3 * seed + n) for n in range(3)]
        assert not judge(check(three[0], *three[1:])).guilty


def test_a_distance_is_in_lengths_of_the_longer_update() -> None:
    assert distance(sketch(), sketch()) == 0
    assert distance(sketch(), sketch(length=4.0)) == pytest.approx(0.75)
    assert distance(sketch(length=0.0), sketch(length=0.0)) == 0
    assert distance(sketch(length=0.0), sketch()) == 1


# ---------------------------------------------------------------- drawing


def arrived(node: str = "a", **options: Any) -> ev.UpdateArrived:
    usual = {"samples": 16, "attempt": 1, "loss": 1.0, "compute_seconds": 0.1, "sketch": sketch()}
    return ev.UpdateArrived(node, **{"round": 3, **usual, **options})


def drawn(event: ev.UpdateArrived, *, share: float = 1.0, secret: int = 0, **options: Any) -> bool:
    checks = SpotChecks(share, secret)
    checks.draw(event.round, Member(event.node), unit(event.node, **options), event)
    return bool(checks.waiting)


def test_only_updates_that_follow_from_their_order_alone_are_drawn() -> None:
    assert drawn(arrived())
    assert not drawn(arrived(), share=0.0)
    assert not drawn(arrived(samples=15)), "it has done less"
    assert not drawn(arrived(attempt=2)), "it may be of another order"
    assert not drawn(arrived(), earlier_codecs=frozenset({"none"})), "the same, of a round that was opened again"
    assert not drawn(arrived(), taken_over=True), "the same, of a node that came back to other work"
    assert not drawn(arrived(), trial=True)
    assert not drawn(arrived(), suspect=True)
    assert not drawn(arrived(sketch=None))
    assert not drawn(arrived(codec="topk")), "what it lost before is added"


def test_a_process_that_has_kept_what_a_codec_lost_is_drawn_no_more() -> None:
    checks, member = SpotChecks(1.0), Member("a", incarnation="1")
    checks.draw(3, member, unit(), arrived(codec="int4"))
    checks.draw(4, member, unit(), arrived(round=4))
    assert not checks.waiting
    member.incarnation = "2"
    checks.draw(5, member, unit(), arrived(round=5))
    assert [each.round for each in checks.waiting] == [5]


def test_the_draw_takes_its_share_and_depends_on_the_secret() -> None:
    by_secret = [
        [number for number in range(1, 2001) if drawn(arrived(round=number), share=0.05, secret=secret)]
        for secret in (1, 2)
    ]
    assert [len(each) for each in by_secret] == pytest.approx([100, 100], abs=30)
    assert len(set(by_secret[0]) & set(by_secret[1])) < 20


def test_parameters_of_two_rounds_are_kept_at_most() -> None:
    checks = SpotChecks(1.0)
    for number in range(1, 6):
        for node in "ab":
            checks.draw(number, Member(node), unit(node), arrived(node, round=number))
    assert checks.parameters == {(1, "none"), (2, "none")}
    assert len(checks.waiting) == 2 * MOST_KEPT
    other = SpotChecks(1.0)
    for codec in ("none", "bf16", "int8"):
        other.draw(1, Member(codec), unit(codec, codecs=TransferCodecs("none", codec)), arrived(codec, round=1))
    assert other.parameters == {(1, "none"), (1, "bf16")}


# ---------------------------------------------------------------- dealing


def dealt(members: list[Member], *, nodes: int | None = None, answered: str = "") -> list[str]:
    """Return who is to check an update of node a."""
    checks = SpotChecks(1.0)
    checks.waiting.append(check(sketch()))
    checks.waiting[0].answers.extend(Answer(node, sketch(1)) for node in answered)
    return list(checks.deal(4, members, len(members) if nodes is None else nodes, EffectBuffer(4)))


def test_another_node_of_the_same_kind_checks_an_update() -> None:
    assert dealt([Member("a"), Member("b"), Member("c")]) in (["b"], ["c"])
    assert dealt([Member("a"), Member("b"), Member("c")], answered="b") == ["c"]
    assert dealt([Member("a"), Member("b", largest_batch=7), Member("c", largest_batch=8)]) == ["c"]
    assert dealt([Member("a"), Member("b", info={"numerics": "another"}), Member("c")]) == ["c"]
    assert dealt([Member("a"), Member("b")]) == [], "of two that differ, nobody knows which is wrong"
    assert dealt([Member("b")], nodes=3) == ["b"]


def test_a_quarter_of_a_round_checks_at_most_and_what_is_in_dispute_comes_first() -> None:
    checks, effects = SpotChecks(1.0), EffectBuffer(4)
    checks.waiting += [Check(node, 3, unit(node), sketch(), "") for node in "abcdefgh"]
    checks.waiting[-1].answers.append(Answer("x", sketch(1)))
    checking = checks.deal(4, [Member(node) for node in "abcdefgh"], 8, effects)
    assert len(checking) == 2
    assert "h" in {checks.dealt[node].check.node for node in checking}


def test_a_check_that_nobody_can_do_is_given_up_on_record() -> None:
    checks, effects = SpotChecks(1.0), EffectBuffer(4)
    checks.waiting.append(check(sketch()))
    unlike = [Member(node, info={"numerics": "another"}) for node in NODES]
    for number in range(4, 4 + MOST_TRIES):
        assert checks.waiting
        assert not checks.deal(number, unlike, 4, effects)
    assert not checks.waiting
    assert [(each.subject, str(each.reason)) for each in effects.latest] == [("a", "given_up")]


# ---------------------------------------------------------------- in rounds


class Checked(Driver):
    """Driver of a run whose nodes send what `results` says of an order, and all of whose updates are drawn."""

    def __init__(self, wrong: Mapping[str, int] | None = None, **options: Any) -> None:
        super().__init__(rounds=50, min_nodes=4, quorum=0.5, **options)
        config = TrainingConfig(rounds=50, min_nodes=4, quorum=0.5, local_steps=2, batch_size=8, **options)
        self.machine = RoundMachine(config, FixedAdaptation(8), spot_check_share=1.0, secret=3)
        self.wrong = wrong or {}
        self.orders: dict[str, ev.WorkAssigned] = {}
        self.join(*NODES)
        self.ask(*NODES)

    def send(self, *events: ev.Event) -> list[ev.Effect]:
        effects = super().send(*events)
        self.orders |= {each.node: each for each in effects if isinstance(each, ev.WorkAssigned)}
        return effects

    def result(self, order: ev.WorkAssigned) -> Sketch:
        """Return what a node sends: the result of its order, or if it is wrong something else that agrees with it."""
        exact = sketch(100 * order.drawn_round + order.shard.index)
        cheats = order.repeats is None and order.node in self.wrong
        return exact + sketch(self.wrong[order.node], 0.5) if cheats else exact

    def deliver(self, node: str) -> ev.UpdateReply:
        """Let a node do its order, and ask for the next."""
        order = self.orders.pop(node)
        event = ev.UpdateArrived(node, order.round, order.attempt, 16, 1.0, 0.1, sketch=self.result(order))
        reply = next(each for each in self.send(event) if isinstance(each, ev.UpdateReply))
        self.ask(node)
        return reply

    def checker(self) -> str:
        """Return the node that has a check, of the open round."""
        (node,) = [node for node, order in self.orders.items() if order.repeats is not None]
        return node

    def close_round(self) -> None:
        """Let the nodes that train deliver."""
        number = self.machine.round
        for node in [node for node, order in self.orders.items() if order.repeats is None]:
            assert self.deliver(node).status is ACCEPTED
        assert self.machine.round == number + 1

    def verdicts(self) -> list[Decision]:
        return [each for each in reversed(self.machine.decisions) if each.kind is DecisionKind.SPOT_CHECK]


def test_an_order_is_repeated_in_the_place_of_a_nodes_work_and_counts_for_nothing() -> None:
    d = Checked()
    first = dict(d.orders)
    d.close_round()
    checker = d.checker()
    order = d.orders[checker]
    assert order.repeats == ev.Repeated(1, "none")
    assert order.trial, "the node keeps nothing of it"
    assert order.codecs == TransferCodecs("none", "none")
    repeated = next(each for each in first.values() if each.shard == order.shard)
    assert repeated.node != checker
    assert order.accepted_round == 1
    contributed, cursors = d.machine.members.require(checker).rounds_contributed, d.machine.shards.snapshot()
    assert d.deliver(checker).status is COMPARED
    assert d.machine.shards.snapshot() == cursors
    assert d.machine.members.require(checker).rounds_contributed == contributed
    assert [(str(each.reason), each.subject, each.figures["distance"]) for each in d.verdicts()] == [
        ("reproduced", repeated.node, 0.0)
    ]
    d.close_round()
    closed = d.of(ev.CloseRound)[1]
    assert checker not in {each.node for each in closed.contributions}
    assert closed.reason is ev.CloseReason.ALL_CONTRIBUTED


def test_a_round_waits_for_no_check_and_the_answer_still_counts() -> None:
    d = Checked()
    d.close_round()
    checker = d.checker()
    d.close_round()
    assert checker in d.machine.members.stragglers
    assert checker not in d.machine.selected
    assert d.machine.may_finish(checker, d.now)
    assert d.machine.is_late(checker, 2)
    assert (2, "none") in d.machine.checked_parameters
    assert d.deliver(checker).status is COMPARED
    assert [str(each.reason) for each in d.verdicts()] == ["reproduced"]
    assert checker not in d.machine.members.stragglers
    d.close_round()
    assert checker in d.orders


def test_an_answer_that_comes_twice_is_compared_once() -> None:
    d = Checked()
    d.close_round()
    checker = d.checker()
    order = d.orders[checker]
    d.deliver(checker)
    again = ev.UpdateArrived(checker, order.round, order.attempt, 16, 1.0, 0.1, sketch=sketch(7))
    reply, _ = d.machine.take_update(again, d.now)
    assert reply.status is ev.UpdateStatus.DUPLICATE
    assert len(d.verdicts()) == 1


def test_an_update_of_other_work_is_not_taken_for_the_answer() -> None:
    d = Checked()
    d.close_round()
    checker = d.checker()
    other = ev.UpdateArrived(checker, d.orders[checker].round, 1, 16, 1.0, 0.1, sketch=sketch(7))
    reply, _ = d.machine.take_update(other, d.now)
    assert reply.status is ev.UpdateStatus.LATE
    assert d.deliver(checker).status is COMPARED
    assert [str(each.reason) for each in d.verdicts()] == ["reproduced"]


@pytest.mark.parametrize("node", NODES)
def test_a_node_that_does_not_do_its_work_is_named_and_gets_no_more(node: str) -> None:
    d = Checked({node: 7})
    for _ in range(12):
        d.close_round() if d.machine.round == 1 else [d.deliver(each) for each in list(d.orders)]
    by_node = {each.subject: str(each.reason) for each in d.verdicts() if each.reason != "reproduced"}
    assert by_node == {node: "not_reproduced"}, "of all that differed, and only after a third agreed"
    (accused,) = [each for each in d.machine.decisions if each.kind is DecisionKind.QUARANTINE]
    assert (accused.subject, str(accused.reason)) == (node, "not_reproduced")
    assert accused.figures["apart"] == 0.0
    named = next(each for each in d.of(ev.RunEvent) if each.kind == "node_suspected")
    assert named.fields["node"] == node
    assert d.machine.suspicions.is_suspended(node, d.machine.round)
    assert node not in d.machine.selected


def test_a_checker_that_lies_is_named_and_not_the_node_that_it_accuses() -> None:
    d = Checked()
    d.close_round()
    liar = d.checker()
    d.result = lambda order: sketch(5) if order.node == liar else Checked.result(d, order)  # type: ignore[method-assign]
    checked = d.orders[liar].shard
    d.deliver(liar)
    assert str(d.verdicts()[-1].reason) == "differs"
    assert not d.machine.suspicions.is_suspended(liar, 3)
    d.close_round()
    assert d.orders[d.checker()].shard == checked, "what is in dispute comes first"
    d.deliver(d.checker())
    assert str(d.verdicts()[-1].reason) == "check_was_wrong"
    assert d.machine.suspicions.is_suspended(liar, d.machine.round)


@pytest.mark.parametrize("event", ["lost", "returned", "asked_again", "restarted", "silent", "empty"])
def test_a_check_whose_node_does_not_answer_goes_to_another(event: str) -> None:
    d = Checked()
    d.close_round()
    checker = d.checker()
    order = d.orders.pop(checker)
    (check,) = [each.check for each in d.machine.round_state.spot_checks.dealt.values()]
    if event == "lost":
        d.send(ev.NodeLost(checker))
    elif event == "returned":
        d.send(ev.WorkReturned(checker, order.round, order.attempt, "NonFiniteUpdate"))
    elif event == "asked_again":
        d.ask(checker)
    elif event == "restarted":
        d.send(ev.NodeJoined(checker, incarnation="2"))
    elif event == "empty":
        d.send(ev.UpdateArrived(checker, order.round, order.attempt, 16, 1.0, 0.1))
    else:
        for _ in range(MOST_ROUNDS + 1):
            assert d.machine.may_finish(checker, d.now)
            d.close_round()
            for node in [node for node, each in d.orders.items() if each.repeats]:
                d.deliver(node)
        assert not d.machine.may_finish(checker, d.now), "its next heartbeat tells it"
    assert d.machine.wanted_unit(checker, order.round) is None
    assert check.tries == 1
    pending = d.machine.round_state.spot_checks
    assert check in pending.waiting or check in [each.check for each in pending.dealt.values()] or event == "silent"


def test_a_check_that_no_node_has_begun_when_its_round_closes_is_dealt_again() -> None:
    d = Checked()
    number = d.machine.round
    for node in [*NODES][:3]:
        d.deliver(node)
    order = d.orders.pop("d")
    event = ev.UpdateArrived("d", order.round, order.attempt, 16, 1.0, 0.1, sketch=d.result(order))
    d.send(event)
    assert d.machine.round == number + 1
    spot_checks = d.machine.round_state.spot_checks
    (checker,) = spot_checks.dealt
    if checker != "d":  # it has begun
        d.orders.pop(checker)
        d.send(ev.NodeLost(checker))
    else:
        d.close_round()
        assert spot_checks.dealt.get("d") is None or spot_checks.dealt["d"].round == d.machine.round
    assert all(each.unit.attempt or each.round == d.machine.round for each in spot_checks.dealt.values())


def test_nothing_is_drawn_by_default() -> None:
    d = Driver(min_nodes=4)
    d.join(*NODES)
    for _ in range(2):
        orders = d.ask(*NODES)
        for order in orders:
            d.send(ev.UpdateArrived(order.node, order.round, 1, 16, 1.0, 0.1, sketch=sketch(order.shard.index)))
    assert not d.machine.checked_parameters
    assert len(d.of(ev.WorkAssigned)) == 8


EVENTS = ["all", "all", "deliver", "deliver", "send again", "ask", "lost", "restart", "return", "tick"]


class Storm(Checked):
    """Nodes to which anything happens; all are honest."""

    def __init__(self, mode: str) -> None:
        super().__init__(mode=mode, close_share=0.8)
        self.incarnations, self.sent = Counter[str](), dict[str, ev.UpdateArrived]()
        self.compared: list[tuple[str, int, int]] = []
        self.join("e")
        self.ask("e")

    def happens(self, what: str, node: str) -> None:
        order = self.orders.get(node)
        if what in ("all", "deliver"):
            for each in list(self.orders) if what == "all" else [node]:
                self.push_order(each)
        elif what == "send again" and node in self.sent:
            self.push_update(self.sent[node])
        elif what in ("lost", "restart"):
            self.orders.pop(node, None)
            self.incarnations[node] += what == "restart"
            incarnation = str(1 + self.incarnations[node])
            self.send(*[ev.NodeLost(node)][: what == "lost"], ev.NodeJoined(node, incarnation), ev.WorkRequested(node))
        elif what == "return" and order is not None:
            self.orders.pop(node)
            self.send(ev.WorkReturned(node, order.round, order.attempt, "Unavailable"), ev.WorkRequested(node))
        elif what == "tick":
            self.wait(1.0)
        elif what == "ask":
            self.orders.pop(node, None)
            self.ask(node)

    def push_order(self, node: str) -> None:
        order = self.orders.pop(node, None)
        if order is not None:
            sketch = self.result(order)
            update = ev.UpdateArrived(node, order.round, order.attempt, 16, 1.0, 0.1, sketch=sketch)
            self.sent[node] = update
            self.push_update(update)
            self.ask(node)

    def push_update(self, update: ev.UpdateArrived) -> None:
        replies = [each for each in self.send(update) if isinstance(each, ev.UpdateReply)]
        key = update.node, update.round, self.incarnations[update.node]
        self.compared += [key for each in replies if each.status is COMPARED]


@pytest.mark.parametrize("mode", ["sync", "late", "buffered"])
@given(events=st.lists(st.tuples(st.sampled_from(EVENTS), st.sampled_from("abcde")), min_size=10, max_size=60))
@examples(60)
def test_whatever_happens_no_honest_node_is_named_and_each_answer_is_compared_once(
    mode: str, events: list[tuple[str, str]]
) -> None:
    storm = Storm(mode)
    for what, node in events:
        storm.happens(what, node)
        assert len(storm.machine.checked_parameters) <= MOST_KEPT
    assert len(set(storm.compared)) == len(storm.compared)
    assert {str(each.reason) for each in storm.verdicts()} <= {"reproduced", "given_up"}
    assert not [each for each in storm.machine.decisions if str(each.reason) == "not_reproduced"]
