"""What a node may ask, and what it is told: the same for both drivers, which carry the effects out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.errors import InvalidInput, NonFiniteUpdate, ProtocolError, ResourceExhausted, StaleWork
from hypergpu.common.identity import TaskIdentity
from hypergpu.common.transfer_codecs import NO_CODECS, TransferCodecs
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.adaptation import Activity, FixedAdaptation, LateWork, RoundPlan
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.session import (
    AskProgress,
    Directive,
    EndPull,
    Heartbeat,
    Leave,
    OfferUpdate,
    Pull,
    Register,
    RejectUpdate,
    Request,
    Return,
    Session,
    Update,
)

RUN = "run-1"
ALLOWED = 0.05
"""Time that the round of `after_a_round_without_b` left its nodes: its quorum answered at once."""
OWN = TaskIdentity(100, 20, "train", "test", "model", ())
OTHER = TaskIdentity(99, 20, "train", "test", "model", ())


class Links:
    """Notes what the session tells it."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def register(self, node: Register) -> None:
        self.told.append(("register", node.node, node.largest_batch))

    def observe_heartbeat(self, node: str, report: Mapping[str, Any], rtt_ms: float, loaded: bool) -> None:
        self.told.append(("observe_heartbeat", node, report, rtt_ms, loaded))

    def seen(self, node: str) -> None:
        self.told.append(("seen", node))

    def freeze(self, node: str) -> None:
        self.told.append(("freeze", node))


class Desk:
    """A session, its time, and the effects so far."""

    def __init__(
        self,
        *,
        identity: TaskIdentity | None = None,
        stays: bool = False,
        codecs: TransferCodecs = NO_CODECS,
        **training: Any,
    ) -> None:
        config = TrainingConfig(**{"rounds": 3, "local_steps": 2, "batch_size": 8, "quorum": 0.5, **training})
        self.machine = RoundMachine(config, FixedAdaptation(8), lost_after_seconds=10.0, max_nodes=3, codecs=codecs)
        self.links = Links()
        self.session = Session(RUN, self.machine, self.links, identity=identity, stays=stays)
        self.now = 0.0

    def ask(self, request: Request[Any]) -> tuple[Any, Sequence[ev.Effect]]:
        return self.session.handle(request, self.now)

    def join(self, *nodes: str, identity: TaskIdentity | None = None) -> None:
        for node in nodes:
            self.ask(Register(node, "1", 0, {}, identity))

    def pull(self, *nodes: str) -> list[ev.WorkAssigned]:
        return [e for node in nodes for e in self.ask(Pull(node, RUN))[1] if isinstance(e, ev.WorkAssigned)]

    def update(self, node: str, round_number: int = 1, **values: Any) -> ev.UpdateArrived:
        return ev.UpdateArrived(node, round_number, 1, **{"samples": 16, "loss": 1.0, "compute_seconds": 0.1, **values})

    def heartbeat(self, node: str, state: str = "idle", run_id: str = RUN) -> Any:
        return self.ask(Heartbeat(node, run_id, state, 20.0, True, {"network": {}}))[0]


def after_a_round_without_b() -> Desk:
    """Round 1 of a and b was closed at its deadline. A second later b still works on it, too long for a new node."""
    desk = Desk(min_nodes=2)
    desk.join("a", "b")
    assert len(desk.pull("a", "b")) == 2
    desk.ask(Update(desk.update("a")))
    desk.now = desk.machine.deadline_at or 0.0
    desk.session.seen("b", desk.now)
    desk.machine.handle(ev.Tick(), desk.now)
    assert desk.session.stragglers == {"b"}
    desk.now += 1.0
    return desk


def reasons(effects: Sequence[ev.Effect]) -> list[str]:
    return [str(e.decision.reason) for e in effects if isinstance(e, ev.RunEvent) and e.decision is not None]


# ---------------------------------------------------------------- membership


def test_a_node_joins_with_its_link_known_before_a_round_may_begin() -> None:
    desk = Desk()
    reply, effects = desk.ask(Register("a", "1", 64, {"gpu": "T4"}, None))
    assert reply is None
    assert next(e.kind for e in effects if isinstance(e, ev.RunEvent)) == "node_joined"
    assert desk.links.told == [("register", "a", 64)]
    assert desk.session.is_member("a")
    assert desk.session.members == {"a"}
    assert desk.machine.members.require("a").largest_batch == 64


def test_a_node_beyond_the_limit_changes_nothing() -> None:
    desk = Desk(min_nodes=4)
    desk.join("a", "b", "c")
    desk.pull("a", "b", "c")
    with pytest.raises(ResourceExhausted):
        desk.join("d")
    assert ("register", "d", 0) not in desk.links.told
    assert not desk.session.is_member("d")


def test_the_oldest_node_that_never_asked_for_work_makes_room() -> None:
    desk = Desk(min_nodes=4)
    desk.join("a", "b", "c")
    desk.pull("a")
    _, effects = desk.ask(Register("d", "1", 0, {}, None))
    assert [e.kind for e in effects if isinstance(e, ev.RunEvent)][:1] == ["node_lost"]
    assert desk.session.members == {"a", "c", "d"}
    assert desk.machine.members.require("b").reason == "made room for d: it had never asked for work"
    desk.join("d")
    assert desk.session.members == {"a", "c", "d"}, "a member needs no room"


def test_a_node_with_another_task_is_refused_with_the_difference() -> None:
    desk = Desk(identity=OWN)
    with pytest.raises(InvalidInput, match=r"the task of a is another one than the coordinator's: 100 train samples"):
        desk.join("a", identity=OTHER)
    assert not desk.session.is_member("a")


def test_a_node_gets_work_once_its_task_is_known_to_be_the_same() -> None:
    desk = Desk(identity=OWN)
    desk.join("a")
    with pytest.raises(StaleWork, match="without the identity of its task"):
        desk.pull("a")
    desk.join("a", identity=OWN)
    assert [work.node for work in desk.pull("a")] == ["a"]


def test_names_are_given_once_and_skip_those_that_nodes_gave_themselves() -> None:
    desk = Desk()
    desk.join("node_2")
    assert [desk.session.free_name(), desk.session.free_name()] == ["node_1", "node_3"]


def test_a_node_leaves_and_its_link_is_kept_as_it_was() -> None:
    desk = Desk()
    desk.join("a")
    desk.ask(Leave("z", RUN, "done"))
    desk.ask(Leave("a", RUN, "done"))
    assert desk.links.told[1:] == [("freeze", "a")]
    assert not desk.session.is_member("a")


@pytest.mark.parametrize(
    "request_",
    [
        Pull("a", "run-0"),
        AskProgress("a", "run-0", 1),
        Return("a", "run-0", 1, 1, "leaving", ""),
        Leave("a", "run-0", "done"),
        OfferUpdate("run-0", ev.UpdateArrived("a", 1, 1, 16, 1.0, 0.1)),
    ],
)
def test_a_request_of_another_run_is_stale(request_: Request[object]) -> None:
    desk = Desk()
    desk.join("a")
    with pytest.raises(StaleWork, match=r"unknown run 'run-0' \(current: 'run-1'\)"):
        desk.ask(request_)
    assert desk.session.is_member("a")


# ---------------------------------------------------------------- heartbeats


def test_a_heartbeat_of_a_node_that_is_not_known_asks_it_to_register() -> None:
    desk = Desk()
    assert desk.heartbeat("a") is Directive.REGISTER_AGAIN
    desk.join("a")
    assert desk.heartbeat("a", run_id="run-0") is Directive.REGISTER_AGAIN
    assert desk.heartbeat("a") is Directive.CONTINUE
    assert desk.links.told == [("register", "a", 0), ("observe_heartbeat", "a", {"network": {}}, 20.0, True)]


@pytest.mark.parametrize("state", ["pulling", "training", "pushing"])
def test_a_straggler_that_is_busy_is_asked_to_abandon_its_work(state: str) -> None:
    desk = after_a_round_without_b()
    assert desk.heartbeat("b", state) is Directive.ABANDON_WORK
    assert desk.heartbeat("a", state) is Directive.CONTINUE


def test_a_new_node_may_finish_within_sixteen_times_the_round_to_show_how_long_it_takes() -> None:
    desk = Desk(min_nodes=2)
    desk.join("a", "b")
    desk.pull("a", "b")
    desk.now = 1.0
    desk.ask(Update(desk.update("a")))
    desk.now = 2.0
    desk.machine.handle(ev.Tick(), desk.now)
    assert desk.session.stragglers == {"b"}
    for desk.now in (10.0, 31.9):
        desk.session.seen("b", desk.now)
        assert desk.heartbeat("b", "training") is Directive.CONTINUE
    desk.now = 32.0
    assert desk.heartbeat("b", "training") is Directive.ABANDON_WORK


@pytest.mark.parametrize("state", ["idle", "joining", "preparing", "backing_off", "leaving"])
def test_a_straggler_that_does_nothing_has_nothing_to_abandon(state: str) -> None:
    desk = after_a_round_without_b()
    assert desk.heartbeat("b", state) is Directive.CONTINUE


@pytest.mark.parametrize(("stays", "directive"), [(False, Directive.SHUT_DOWN), (True, Directive.CONTINUE)])
def test_when_the_run_is_over_nodes_shut_down_unless_the_coordinator_stays(stays: bool, directive: Directive) -> None:
    desk = Desk(stays=stays)
    desk.join("a")
    desk.machine.handle(ev.Stop("enough"), 0.0)
    assert desk.heartbeat("a") is directive


def test_silence_is_judged_by_the_last_sign_of_life_whatever_it_was() -> None:
    desk = Desk()
    desk.join("a", "b", "c")
    assert desk.session.suspects(9.9) == []
    desk.session.seen("a", 8.0)
    desk.now = 7.0
    desk.heartbeat("b")
    assert sorted(desk.session.suspects(10.0)) == ["a", "b", "c"]
    desk.machine.handle(ev.Tick(), 10.0)
    assert desk.session.members == {"a", "b"}
    assert desk.session.suspects(17.9) == ["b"]
    desk.session.seen("b", 6.0)  # a heartbeat that is dated earlier than the one before it
    desk.machine.handle(ev.Tick(), 17.0)
    assert desk.session.members == {"a"}


# ---------------------------------------------------------------- work


def test_a_node_that_is_not_registered_gets_no_work() -> None:
    desk = Desk()
    with pytest.raises(StaleWork, match="'a' is not registered"):
        desk.pull("a")


def test_a_node_that_stopped_waiting_is_given_no_work_until_it_asks_again() -> None:
    desk = Desk(min_nodes=2)
    desk.join("a", "b")
    assert desk.pull("a") == []
    assert desk.ask(EndPull("a"))[0] is None
    assert [work.node for work in desk.pull("b")] == ["b"]
    assert [work.node for work in desk.pull("a")] == ["a"]


def test_returned_work_is_assigned_again() -> None:
    desk = Desk()
    desk.join("a")
    desk.pull("a")
    reply, effects = desk.ask(Return("a", RUN, 1, 1, "OutOfMemory", "detail"))
    assert reply is None
    assert reasons(effects) == ["smaller_batch"]
    (again,) = desk.pull("a")
    assert (again.attempt, again.batch_size) == (2, 4)


# ---------------------------------------------------------------- updates


def test_an_update_is_needed_once() -> None:
    desk = Desk()
    desk.join("a", "b")
    desk.pull("a", "b")
    assert desk.session.needs_update("a", 1)
    assert desk.ask(OfferUpdate(RUN, desk.update("a"))) == (None, ())
    assert desk.ask(AskProgress("a", RUN, 1)) == (False, ())
    reply, _ = desk.ask(Update(desk.update("a", norm=1.0)))
    assert isinstance(reply, ev.UpdateReply)
    assert (reply.status, reply.weight) == (ev.UpdateStatus.ACCEPTED, 16)
    assert not desk.session.needs_update("a", 1)
    assert desk.ask(AskProgress("a", RUN, 1)) == (True, ())
    again, effects = desk.ask(OfferUpdate(RUN, desk.update("a")))
    assert isinstance(again, ev.UpdateReply)
    assert again.status is ev.UpdateStatus.DUPLICATE
    assert again in effects


def test_a_late_update_is_answered_and_the_node_is_counted_on_again() -> None:
    desk = after_a_round_without_b()
    reply, effects = desk.ask(OfferUpdate(RUN, desk.update("b")))
    assert isinstance(reply, ev.UpdateReply)
    assert reply.status is ev.UpdateStatus.LATE
    assert reasons(effects) == ["after_deadline"]
    assert not desk.session.stragglers


def test_an_update_that_nobody_asked_for_is_an_error_and_a_decision() -> None:
    desk = Desk()
    desk.join("a")
    reply, effects = desk.ask(OfferUpdate(RUN, desk.update("a", 7)))
    assert isinstance(reply, StaleWork)
    assert str(reply) == "no such work was assigned: update of a for round 7, current round is 1"
    assert reasons(effects) == ["not_ordered"]


@pytest.mark.parametrize("values", [{"loss": float("nan")}, {"norm": float("inf")}])
def test_an_update_with_nan_is_an_error_and_its_work_is_returned(values: dict[str, Any]) -> None:
    desk = Desk()
    desk.join("a")
    desk.pull("a")
    reply, effects = desk.ask(Update(desk.update("a", **values)))
    assert isinstance(reply, NonFiniteUpdate)
    (returned,) = [e for e in effects if isinstance(e, ev.RunEvent) and e.kind == "work_returned"]
    assert returned.fields["reason"] == "NonFiniteUpdate"
    assert desk.session.needs_update("a", 1)


def test_an_update_with_nan_that_is_late_is_late() -> None:
    desk = after_a_round_without_b()
    reply, _ = desk.ask(Update(desk.update("b", loss=float("nan"))))
    assert isinstance(reply, ev.UpdateReply)
    assert reply.status is ev.UpdateStatus.LATE


def test_an_update_that_the_driver_cannot_use_is_returned_with_a_bounded_reason() -> None:
    desk = Desk()
    desk.join("a")
    desk.pull("a")
    _, effects = desk.ask(RejectUpdate(desk.update("a"), InvalidInput("x" * 1000)))
    (returned,) = [e for e in effects if isinstance(e, ev.RunEvent) and e.kind == "work_returned"]
    assert returned.fields["reason"] == "InvalidInput"
    assert returned.fields["detail"] == "x" * 256


# ---------------------------------------------------------------- late work


class Recording(FixedAdaptation):
    """Keeps what it is told of late work."""

    def __init__(self) -> None:
        super().__init__(8)
        self.late: list[LateWork] = []

    def record_late(self, work: LateWork) -> None:
        self.late.append(work)


class Probing(Recording):
    """Waits for nobody but a."""

    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        return replace(super().plan_round(available, round_number), probes=[node for node in available if node != "a"])


def late_desk() -> tuple[Desk, list[LateWork]]:
    desk = after_a_round_without_b()
    adaptation = Recording()
    desk.machine.adaptation = adaptation
    return desk, adaptation.late


def test_the_time_of_a_late_update_is_told_once() -> None:
    desk, late = late_desk()
    desk.now += 1.0
    for _ in range(2):
        desk.ask(OfferUpdate(RUN, desk.update("b", compute_seconds=0.4)))
    assert late == [LateWork("b", desk.now, Activity.DONE, 0.4, 8, 2, ALLOWED, awaited=True, received_share=0.0)]


def test_a_late_update_cannot_have_computed_for_longer_than_it_was_away() -> None:
    desk, late = late_desk()
    desk.ask(OfferUpdate(RUN, desk.update("b", compute_seconds=1e9)))
    assert late[0].compute_seconds == late[0].elapsed_seconds == desk.now


@pytest.mark.parametrize("state", ["pulling", "training", "pushing"])
def test_what_a_straggler_was_doing_is_told_when_it_abandons_its_work(state: str) -> None:
    desk, late = late_desk()
    desk.now += 1.0
    report = {"performance": {"step_time": 2.5}}
    for _ in range(2):
        assert desk.ask(Heartbeat("b", RUN, state, 20.0, False, report))[0] is Directive.ABANDON_WORK
    assert late == [LateWork("b", desk.now, Activity(state), 5.0, 8, 2, ALLOWED)]
    desk.ask(OfferUpdate(RUN, desk.update("b")))
    assert len(late) == 1


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"performance": 3},
        *({"performance": {"step_time": bad}} for bad in (None, "1", -1.0, math.nan, math.inf, 10**400)),
    ],
)
def test_a_pace_that_makes_no_sense_is_none(report: dict[str, Any]) -> None:
    desk, late = late_desk()
    desk.ask(Heartbeat("b", RUN, "training", 20.0, False, report))
    assert late[0].compute_seconds == 0.0


def test_a_heartbeat_of_a_node_that_works_on_the_open_round_is_no_late_work() -> None:
    desk, late = late_desk()
    desk.ask(Heartbeat("a", RUN, "training", 20.0, False, {}))
    assert late == []


def after_a_round_that_did_not_wait_for_b() -> tuple[Desk, list[LateWork]]:
    """At 1 s, a closes a round with a deadline of 600 s, on which b still works."""
    desk, adaptation = Desk(min_nodes=2), Probing()
    desk.machine.adaptation = adaptation
    desk.join("a", "b")
    desk.pull("a", "b")
    desk.now = 1.0
    desk.ask(Update(desk.update("a")))
    assert desk.session.stragglers == {"b"}
    return desk, adaptation.late


def test_a_node_that_no_round_waits_for_may_finish_its_work_until_the_deadline() -> None:
    desk, late = after_a_round_that_did_not_wait_for_b()
    for desk.now in (2.0, 599.9):
        desk.session.seen("b", desk.now)
        assert desk.heartbeat("b", "training") is Directive.CONTINUE
    assert late == []
    desk.now = 600.0
    assert desk.heartbeat("b", "training") is Directive.ABANDON_WORK
    assert late == [LateWork("b", 600.0, Activity.TRAINING, 0.0, 8, 2, 600.0, awaited=False)]


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_share_of_a_late_update_that_was_received_is_told(share: float) -> None:
    desk, late = after_a_round_that_did_not_wait_for_b()
    desk.now = 3.0
    update = desk.update("b", received_share=share)
    desk.ask(Update(update) if share else OfferUpdate(RUN, update))
    assert late == [LateWork("b", 3.0, Activity.DONE, 0.1, 8, 2, 600.0, awaited=False, received_share=share)]


def test_a_part_of_an_upload_is_a_sign_of_life_of_a_member_and_its_link() -> None:
    desk = Desk()
    desk.join("a")
    desk.session.seen("a", 3.0)
    desk.session.seen("z", 3.0)
    assert desk.links.told[1:] == [("seen", "a")]
    assert desk.machine.members.require("a").last_seen == 3.0


# ---------------------------------------------------------------- parts of a round


def test_the_time_from_the_first_offer_of_an_update_to_its_arrival_is_its_upload() -> None:
    desk = Desk(min_nodes=2)
    desk.join("a", "b")
    desk.pull("a", "b")
    for desk.now in (3.0, 4.0):  # the stream breaks once
        desk.ask(OfferUpdate(RUN, desk.update("a", compute_seconds=2.0)))
    desk.now = 8.0
    desk.ask(Update(desk.update("a", compute_seconds=2.0)))
    _, effects = desk.ask(Update(desk.update("b", compute_seconds=7.0)))
    (closed,) = [each for each in effects if isinstance(each, ev.CloseRound)]
    parts = [
        (each.node, each.compute_seconds, each.waiting_seconds, each.upload_seconds) for each in closed.contributions
    ]
    assert parts == [("a", 2.0, 6.0, 5.0), ("b", 7.0, 1.0, 0.0)]


def test_work_that_is_assigned_again_is_offered_again() -> None:
    desk = Desk()
    desk.join("a")
    desk.pull("a")
    desk.now = 1.0
    desk.ask(OfferUpdate(RUN, desk.update("a")))
    desk.ask(Return("a", RUN, 1, 1, "Unavailable", ""))
    desk.now = 2.0
    desk.pull("a")
    desk.now = 5.0
    desk.ask(OfferUpdate(RUN, replace(desk.update("a"), attempt=2)))
    desk.now = 6.0
    _, effects = desk.ask(Update(replace(desk.update("a"), attempt=2)))
    (closed,) = [each for each in effects if isinstance(each, ev.CloseRound)]
    assert closed.contributions[0].upload_seconds == 1.0


# ---------------------------------------------------------------- codecs


@pytest.mark.parametrize("request_type", [OfferUpdate, Update])
def test_an_update_in_another_codec_than_ordered_is_refused_and_the_work_stays(request_type: Any) -> None:
    desk = Desk(codecs=TransferCodecs("int8"))
    desk.join("a")
    (work,) = desk.pull("a")
    assert work.codecs.update == "int8"
    wrong, right = (desk.update("a", codec=codec) for codec in ("topk", "int8"))

    def request(update: ev.UpdateArrived) -> Request[Any]:
        return OfferUpdate(RUN, update) if request_type is OfferUpdate else Update(update)

    with pytest.raises(ProtocolError, match="an update of a in codec topk; the order says int8"):
        desk.ask(request(wrong))
    assert desk.session.needs_update("a", 1)
    reply, _ = desk.ask(request(right))
    assert reply is None if request_type is OfferUpdate else reply.status is ev.UpdateStatus.ACCEPTED


def test_a_late_update_is_late_in_any_codec() -> None:
    desk = after_a_round_without_b()
    reply, _ = desk.ask(OfferUpdate(RUN, desk.update("b", codec="topk")))
    assert reply.status is ev.UpdateStatus.LATE


def test_an_order_names_the_latest_round_that_was_accepted() -> None:
    desk = Desk()
    desk.join("a")
    (first,) = desk.pull("a")
    desk.ask(Update(desk.update("a")))
    desk.machine.handle(ev.Evaluated(1, 1.0, 0.5), desk.now)
    (second,) = desk.pull("a")
    assert (first.round, first.accepted_round) == (1, 0)
    assert (second.round, second.accepted_round) == (2, 1)
    assert not second.trial


class CodecsInTurn(FixedAdaptation):
    """Plans another codec of updates for each attempt at a round."""

    def __init__(self, *codecs: str) -> None:
        super().__init__(8)
        self.codecs = list(codecs)

    def plan_round(self, available: Sequence[str], round_number: int) -> RoundPlan:
        plan = super().plan_round(available, round_number)
        return replace(plan, codecs=dict.fromkeys(available, TransferCodecs(self.codecs.pop(0))))


def after_an_abandoned_round(*codecs: str) -> Desk:
    """Round 1 was abandoned once for each codec but the last, and a has its work for the next attempt."""
    desk = Desk()
    desk.machine.adaptation = CodecsInTurn(*codecs)
    desk.join("a")
    for codec in codecs[:-1]:
        (work,) = desk.pull("a")
        assert (work.round, work.codecs.update) == (1, codec)
        while desk.machine.round_state.open_round is not None:
            desk.now = desk.machine.deadline_at or 0.0
            desk.session.seen("a", desk.now)
            desk.machine.handle(ev.Tick(), desk.now)
        desk.now += 60.0
        desk.session.seen("a", desk.now)
    (work,) = desk.pull("a")
    assert (work.round, work.codecs.update) == (1, codecs[-1])
    return desk


def test_an_update_for_an_abandoned_attempt_counts_in_the_next_one_in_its_own_codec() -> None:
    """No step was taken in between, so it is as good as a new one."""
    desk = after_an_abandoned_round("int4", "none", "int8")
    with pytest.raises(ProtocolError, match="an update of a in codec topk; the order says int8"):
        desk.ask(OfferUpdate(RUN, desk.update("a", codec="topk")))
    early = desk.update("a", codec="int4")
    assert desk.ask(OfferUpdate(RUN, early))[0] is None
    reply, effects = desk.ask(Update(early))
    assert reply.status is ev.UpdateStatus.ACCEPTED
    (closed,) = [each for each in effects if isinstance(each, ev.CloseRound)]
    assert closed.contributions[0].codec == "int4"


def test_codecs_of_an_earlier_round_are_not_taken() -> None:
    desk = after_an_abandoned_round("int4", "int8", "none")
    desk.machine.adaptation.codecs.append("bf16")  # type: ignore[attr-defined]
    desk.ask(Update(desk.update("a", codec="none")))
    desk.machine.handle(ev.Evaluated(1, 1.0), desk.now)
    (work,) = desk.pull("a")
    assert work.round == 2
    with pytest.raises(ProtocolError, match="the order says bf16"):
        desk.ask(OfferUpdate(RUN, desk.update("a", 2, codec="int8")))
