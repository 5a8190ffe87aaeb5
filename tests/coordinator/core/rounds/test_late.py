"""Late updates: merged in a later round with less weight, each unit of work once, and none lost without a word."""

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.coordinator.core.decisions import DecisionKind
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import FixedAdaptation, LateWork, ModelAction, RoundJudgement
from hypergpu.coordinator.core.rounds.state import Phase
from hypergpu.coordinator.core.rounds.validation import validate
from tests.coordinator.core.rounds.test_machine import Driver
from tests.examples import examples

ACCEPTED, LATE = ev.UpdateStatus.ACCEPTED, ev.UpdateStatus.LATE


class Recorder(FixedAdaptation):
    """Keeps what it is told, and judges as the test says."""

    def __init__(self) -> None:
        super().__init__(8)
        self.late: list[LateWork] = []
        self.judgement = RoundJudgement()

    def record_late(self, work: LateWork) -> None:
        self.late.append(work)

    def finish_round(self, report: Any) -> RoundJudgement:
        del report
        return self.judgement


def driver(adaptation: FixedAdaptation | None = None, **options: Any) -> Driver:
    """Return a driver whose rounds close with the first two of three updates; c is late for the first."""
    settings = {"rounds": 9, "mode": "late", "quorum": 0.6, "close_share": 0.6, "min_nodes": 3, **options}
    found = Driver(adaptation=adaptation, **settings)
    found.join("a", "b", "c")
    found.ask("a", "b", "c")
    return found


def close_round(found: Driver) -> None:
    """Let a and b finish the open round."""
    for node in ("a", "b"):
        assert found.push(node).status is ACCEPTED
    found.ask("a", "b")


def closed(found: Driver, number: int) -> ev.CloseRound:
    rounds: list[ev.CloseRound] = found.of(ev.CloseRound)
    return next(each for each in rounds if each.round == number)


def outcomes(found: Driver, node: str) -> list[str]:
    """Return the reasons of the decisions about a late unit of a node."""
    kinds = (DecisionKind.UPDATE, DecisionKind.REASSIGNMENT)
    return [str(each.reason) for each in found.machine.decisions if each.kind in kinds and each.subject == node]


def test_a_late_update_counts_in_the_open_round_with_less_weight() -> None:
    found = driver()
    close_round(found)
    reply = found.push("c", 1)
    assert (reply.status, reply.staleness) == (ACCEPTED, 1)
    assert reply.weight == 16
    close_round(found)
    merged = closed(found, 2)
    assert [(each.node, each.round, each.staleness, each.samples) for each in merged.late] == [("c", 1, 1, 16)]
    assert merged.samples == 48, "its samples were used"
    assert not closed(found, 1).late


@pytest.mark.parametrize("rounds_late", [2, 3])
def test_the_weight_falls_with_the_staleness(rounds_late: int) -> None:
    found = driver()
    for _ in range(rounds_late):
        close_round(found)
    reply = found.push("c", 1)
    assert reply.staleness == rounds_late
    close_round(found)
    (merged,) = closed(found, rounds_late + 1).late
    assert merged.weight == pytest.approx(16 / math.sqrt(1 + rounds_late))


@pytest.mark.parametrize("phase", [Phase.CLOSING, Phase.IDLE])
def test_an_update_that_arrives_between_two_rounds_counts_in_the_next(phase: Phase) -> None:
    found = driver()
    found.evaluate = False
    found.push("a")
    found.push("b")
    if phase is Phase.IDLE:
        found.send(ev.Pause(), ev.Evaluated(1, 0.5, 0.9))
    assert found.machine.round_state.phase is phase
    reply = found.push("c", 1)
    assert (reply.status, reply.staleness) == (ACCEPTED, 1)
    found.evaluate = True
    found.send(ev.Evaluated(1, 0.5, 0.9), ev.Resume())
    found.ask("a", "b")
    close_round(found)
    assert [each.node for each in closed(found, 2).late] == ["c"]


def test_an_update_beyond_the_bound_is_late_and_its_node_stops_before() -> None:
    found = driver(max_staleness=2)
    for _ in range(2):
        close_round(found)
        assert found.machine.may_finish("c", found.now)
    close_round(found)
    assert not found.machine.may_finish("c", found.now), "the next heartbeat tells the node"
    assert outcomes(found, "c") == ["too_stale"]
    reply = found.push("c", 1)
    assert (reply.status, reply.weight) == (LATE, 0)
    assert found.machine.members.require("c").late == 1


def test_a_synchronous_run_refuses_every_late_update() -> None:
    found = driver(mode="sync")
    close_round(found)
    assert found.push("c", 1).status is LATE
    assert not found.machine.may_finish("c", found.now)


def test_a_late_update_is_merged_once() -> None:
    found = driver()
    close_round(found)
    assert [found.push("c", 1).status for _ in range(2)] == [ACCEPTED, ev.UpdateStatus.DUPLICATE]
    close_round(found)
    assert len(closed(found, 2).late) == 1


def test_a_late_node_gets_no_work_before_it_has_delivered() -> None:
    found = driver()
    close_round(found)
    assert found.machine.selected == ("a", "b")
    found.push("c", 1)
    assert not found.ask("c"), "the open round goes on without it"
    close_round(found)
    assert set(found.machine.selected) == {"a", "b", "c"}


@pytest.mark.parametrize("mode", ["restarts", "asks", "leaves", "returns", "outlier", "reverts", "stops"])
def test_a_late_unit_that_is_given_up_is_recorded_and_its_update_refused(mode: str) -> None:
    adaptation = Recorder()
    found = driver(adaptation)
    close_round(found)
    wanted = ev.UpdateArrived("c", 1, 1, 16, loss=1.0, compute_seconds=0.1)
    match mode:
        case "restarts":
            found.send(ev.NodeJoined("c", incarnation="2"))
        case "asks":
            found.ask("c")
        case "leaves":
            found.send(ev.NodeLeft("c"))
        case "returns":
            found.send(ev.WorkReturned("c", 1, 1, "OutOfMemory"))
        case "outlier":
            for _ in range(8):
                found.machine.round_state.guards.norms[0].judge(1.0, 0.2)
            refused = found.send(ev.UpdateArrived("c", 1, 1, 16, 1.0, 0.1, norm=1e9))
            assert ev.UpdateStatus.REFUSED in [e.status for e in refused if isinstance(e, ev.UpdateReply)]
        case "reverts":
            adaptation.judgement = RoundJudgement(model=ModelAction.REVERT)
            close_round(found)
        case "stops":
            found.send(ev.Stop("enough"))
    assert "c" not in found.machine.late_units
    reasons = {
        "restarts": "node_gone",
        "asks": "given_up",
        "leaves": "node_gone",
        "returns": "given_up",
        "outlier": "norm_too_large",
        "reverts": "model_reverted",
        "stops": "run_over",
    }
    assert reasons[mode] in outcomes(found, "c")
    assert "merged_late" not in outcomes(found, "c")
    replies = [e.status for e in found.send(wanted) if isinstance(e, ev.UpdateReply)]
    assert replies == [LATE]


def test_a_lost_node_may_still_deliver() -> None:
    found = driver()
    close_round(found)
    found.send(ev.NodeLost("c"))
    assert found.push("c", 1).status is ACCEPTED


def test_updates_that_led_on_from_a_model_that_is_given_up_are_not_merged() -> None:
    adaptation = Recorder()
    found = driver(adaptation)
    found.evaluate = False
    found.push("a")
    found.push("b")
    assert found.push("c", 1).status is ACCEPTED
    adaptation.judgement = RoundJudgement(model=ModelAction.REVERT)
    found.send(ev.Evaluated(1, 0.5, 0.9))
    adaptation.judgement = RoundJudgement()
    found.evaluate = True
    found.ask("a", "b", "c")
    close_round(found)
    assert not closed(found, 2).late, "the driver discards it with the model"
    assert outcomes(found, "c")[0] == "model_reverted"


def test_a_round_counts_if_only_late_updates_arrived_in_it() -> None:
    found = driver()
    close_round(found)
    found.push("c", 1)
    found.send(ev.NodeLeft("a"), ev.NodeLeft("b"))
    ended = closed(found, 2)
    assert (ended.reason, ended.samples, ended.loss) == (ev.CloseReason.SURVIVORS_CONTRIBUTED, 16, 1.0)


def test_the_samples_of_late_work_are_dealt_once() -> None:
    found = driver()
    found.machine.shards._most = 30  # so that the shard of c is a whole pass behind after the first round
    first = {each.node: each.shard for each in found.of(ev.WorkAssigned)}
    close_round(found)
    again = {each.node: each.shard for each in found.of(ev.WorkAssigned) if each.round == 2}
    assert first["c"].index not in {shard.index for shard in again.values()}
    found.machine.shards._most = 10**6
    found.push("c", 1)
    close_round(found)
    (next_unit,) = found.ask("c")
    assert (next_unit.shard.index, next_unit.shard.cursor) == (first["c"].index, 16)
    assert next_unit.accepted_round == 1, "so that the node commits what its codec held back"


def test_a_shard_in_late_use_goes_to_nobody_else() -> None:
    found = driver()
    shards = found.machine.shards
    busy = shards.shard_of("c")
    dealt = shards.assign(["a", "b", "c"][:2], [busy])
    assert busy.index not in {shard.index for shard in dealt.values()}
    shards.advance(shards.shard_of("a"), 10**6)
    swapped = shards.assign(["a", "b"], [busy])
    assert busy.index not in {shard.index for shard in swapped.values()}
    given_away = shards.assign(["b", "c"], [busy])
    assert given_away["c"].index == shards.shard_of("a").index


def test_the_adaptation_learns_that_the_late_update_counted() -> None:
    adaptation = Recorder()
    found = driver(adaptation)
    close_round(found)
    found.now += 2.0
    found.push("c", 1)
    (work,) = adaptation.late
    assert (work.node, work.merged, work.elapsed_seconds) == ("c", True, 2.0)


def test_no_update_counts_after_the_last_round() -> None:
    found = driver(rounds=1)
    found.evaluate = False
    found.push("a")
    found.push("b")
    assert found.push("c", 1).status is LATE


def test_an_abandoned_round_leaves_no_late_units() -> None:
    found = driver(close_share=1.0)
    found.wait(600.0)
    for _ in range(200):
        found.wait(1000.0)
        if found.of(ev.AbandonRound):
            break
    assert found.of(ev.AbandonRound)
    assert not found.machine.late_units, "the same round opens again, with other work"


EVENT = st.one_of(
    st.tuples(st.just("push"), st.integers(0, 4)),
    st.tuples(st.just("push again"), st.integers(0, 4)),
    st.tuples(st.just("ask"), st.integers(0, 4)),
    st.tuples(st.just("lost"), st.integers(0, 4)),
    st.tuples(st.just("restart"), st.integers(0, 4)),
    st.tuples(st.just("return"), st.integers(0, 4)),
    st.tuples(st.just("wait"), st.integers(1, 40)),
    st.tuples(st.just("evaluate"), st.just(0)),
)


@pytest.mark.parametrize("mode", ["sync", "late", "buffered"])
@given(events=st.lists(EVENT, max_size=80), max_staleness=st.integers(1, 3))
@examples(200)
def test_each_unit_is_applied_at_most_once_and_accounted_exactly_once(
    mode: str, events: list[tuple[str, int]], max_staleness: int
) -> None:
    found = Driver(mode=mode, max_staleness=max_staleness, rounds=0, close_share=0.5, quorum=0.4, lost_after=1e9)
    nodes = [f"n{index}" for index in range(5)]
    held: dict[str, ev.WorkAssigned] = {}
    sent: dict[str, ev.WorkAssigned] = {}
    incarnations: Counter[str] = Counter()
    accepted: list[tuple[str, int]] = []
    closing: list[ev.CloseRound] = []

    def send(event: ev.Event) -> list[ev.Effect]:
        effects = found.machine.handle(event, found.now)
        validate(found.machine.round_state)
        for each in effects:
            if isinstance(each, ev.WorkAssigned):
                held[each.node] = each
            if isinstance(each, ev.CloseRound):
                closing.append(each)
            if isinstance(each, ev.UpdateReply) and each.status is ACCEPTED:
                accepted.append((each.node, each.round))
        return effects

    for node in nodes:
        send(ev.NodeJoined(node, "0"))
    for what, number in events:
        node = nodes[number % 5]
        work = held.get(node) if what != "push again" else sent.get(node)
        if what.startswith("push") and work is not None:
            send(ev.UpdateArrived(node, work.round, work.attempt, 16, 1.0, 0.01))
            sent[node] = work
            held.pop(node, None)
        elif what == "ask" and node in found.machine.members.connected:
            held.pop(node, None)
            send(ev.WorkRequested(node))
        elif what == "lost":
            send(ev.NodeLost(node))
        elif what == "restart":
            incarnations[node] += 1
            held.pop(node, None)
            send(ev.NodeJoined(node, str(incarnations[node])))
        elif what == "return" and work is not None:
            held.pop(node, None)
            send(ev.WorkReturned(node, work.round, work.attempt, "OutOfMemory"))
        elif what == "wait":
            found.now += number
            send(ev.Tick())
        elif what == "evaluate" and closing and found.machine.round_state.closed_round is not None:
            send(ev.Evaluated(found.machine.round, 0.5, 0.9))
    assert len(accepted) == len(set(accepted)), "no unit is applied twice"
    require_each_counted_once(found, closing, accepted)
    assert mode != "sync" or not any(ended.late for ended in closing)
    assert all(0 < each.staleness <= max_staleness for ended in closing for each in ended.late)


def require_each_counted_once(found: Driver, closing: list[ev.CloseRound], accepted: list[tuple[str, int]]) -> None:
    """Require that what was accepted is in one closed round, in the open one, or waits for the next."""
    counted = [(each.node, ended.round) for ended in closing for each in ended.contributions if each.success]
    counted += [(each.node, each.round) for ended in closing for each in ended.late]
    state = found.machine.round_state
    open_round = state.open_round
    waiting = [(each.node, each.round) for each in state.late.merged]
    if open_round is not None:
        waiting += [(each.node, each.round) for each in open_round.late]
        waiting += [(each.node, open_round.number) for each in open_round.contributions]
    assert sorted(counted + waiting) == sorted(accepted)


@pytest.mark.parametrize(("mode", "rounds"), [("sync", 0), ("late", 3)])
def test_an_upload_counts_until_its_update_would_be_too_late(mode: str, rounds: int) -> None:
    found = driver(mode=mode, max_staleness=3)
    assert found.machine.counts_until == pytest.approx(600.0 * (1 + rounds)), "nothing is known of its rounds"
    found.now = 2.0
    close_round(found)
    assert found.machine.deadline_at is not None
    assert found.machine.counts_until == pytest.approx(found.machine.deadline_at + 2.0 * rounds)
    found.send(ev.Stop("enough"))
    assert found.machine.counts_until is None


def test_a_late_update_of_local_data_weighs_as_much_data_as_its_node_has() -> None:
    found = driver()
    close_round(found)
    found.machine.late_units["c"].unit.data_weight = 500
    assert found.push("c", 1).weight == 500
    close_round(found)
    (merged,) = closed(found, 2).late
    assert merged.weight == pytest.approx(500 / 2**0.5)
