import pytest

from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.node.core import lifecycle as life
from hypergpu.node.core.lifecycle import Failure, LifeCycle, State


def machine() -> LifeCycle[str]:
    return LifeCycle(KeyedRandom(0, "backoff"), base=0.1, cap=5.0)


def failed(failure: Failure = Failure.TRANSIENT) -> life.Failed:
    return life.Failed(failure, "Kind", "detail")


def run(m: LifeCycle[str], *events: life.Event[str]) -> list[life.Effect[str]]:
    effects: list[life.Effect[str]] = []
    for event in events:
        effects = m.handle(event)
    return effects


JOINED = (life.Started(), life.Registered())
TRAINING = (*JOINED, life.OrderArrived("w"), life.WorkArrived("w"))
PUSHING = (*TRAINING, life.Trained())


def test_a_round_without_trouble() -> None:
    m = machine()
    assert run(m, life.Started()) == [life.Register()]
    assert run(m, life.Registered()) == [life.Pull()]
    assert str(m.state) == "idle"
    assert run(m, life.NoWork()) == [life.Pull()]
    assert run(m, life.OrderArrived("w")) == []
    assert str(m.state) == "pulling"
    assert run(m, life.WorkArrived("w")) == [life.Train("w")]
    assert str(m.state) == "training"
    assert run(m, life.Trained()) == [life.Push("w", resume=False)]
    assert str(m.state) == "pushing"
    assert run(m, life.Pushed()) == [life.Pull()]
    assert (m.state, m.work) == (State.IDLE, None)


def test_a_broken_push_is_resumed_with_the_same_work() -> None:
    m = machine()
    (wait,) = run(m, *PUSHING, failed())
    assert isinstance(wait, life.BackOff)
    assert m.state is State.BACKING_OFF
    assert run(m, life.BackoffOver()) == [life.Push("w", resume=True)]


def test_waits_double_up_to_the_cap_with_full_jitter_and_start_over_after_success() -> None:
    m = machine()
    run(m, life.Started())
    waits = []
    for _ in range(40):
        (wait,) = m.handle(failed())
        assert isinstance(wait, life.BackOff)
        waits.append(wait.seconds)
        assert m.handle(life.BackoffOver()) == [life.Register()]
    assert all(0 <= seconds <= min(5.0, 0.1 * 2**i) for i, seconds in enumerate(waits))
    assert max(waits[10:]) > 4
    assert min(waits[10:]) < 1
    run(m, life.Registered())
    (first,) = run(m, failed())
    assert isinstance(first, life.BackOff)
    assert first.seconds <= 0.1


@pytest.mark.parametrize("where", [JOINED, TRAINING, PUSHING])
def test_asked_to_register_drops_the_work_and_registers(where: tuple[life.Event[str], ...]) -> None:
    m = machine()
    assert run(m, *where, life.AskedToRegister()) == [life.Register()]
    assert (m.state, m.work) == (State.JOINING, None)
    assert run(m, life.AskedToRegister()) == []


def test_work_that_cannot_be_done_is_handed_back_and_the_node_lives_on() -> None:
    m = machine()
    assert run(m, *TRAINING, failed(Failure.BAD_WORK)) == [life.Return("w", "Kind", "detail")]
    (wait,) = run(m, life.Returned())
    assert isinstance(wait, life.BackOff)
    assert run(m, life.BackoffOver()) == [life.Pull()]


def test_a_lost_membership_registers_and_stale_work_pulls() -> None:
    m = machine()
    run(m, *JOINED, failed(Failure.UNKNOWN_NODE))
    assert run(m, life.BackoffOver()) == [life.Register()]
    m = machine()
    run(m, *PUSHING, failed(Failure.STALE))
    assert run(m, life.BackoffOver()) == [life.Pull()]


def test_what_no_try_can_help_ends_with_the_reason() -> None:
    assert run(machine(), life.Started(), failed(Failure.FATAL)) == [life.Exit("detail")]


def test_stopping_finishes_the_work_first() -> None:
    m = machine()
    assert run(m, *TRAINING, life.StopAsked("SIGTERM")) == [life.StartGrace()]
    assert run(m, life.Trained()) == [life.Push("w", resume=False)]
    (wait,) = run(m, failed())
    assert isinstance(wait, life.BackOff)  # a broken push is still worth a try
    assert run(m, life.BackoffOver()) == [life.Push("w", resume=True)]
    assert run(m, life.Pushed()) == [life.Leave("SIGTERM")]
    assert run(m, life.Left()) == [life.Exit()]


def test_stopping_hands_the_work_back_when_the_grace_is_over() -> None:
    m = machine()
    run(m, *TRAINING, life.StopAsked("SIGTERM"))
    (back,) = run(m, life.GraceOver())
    assert isinstance(back, life.Return)
    assert (back.work, back.kind) == ("w", life.SHUTTING_DOWN)
    assert run(m, life.Returned()) == [life.Leave("SIGTERM")]


def test_stopping_gives_up_on_a_coordinator_that_is_dead() -> None:
    m = machine()
    run(m, *PUSHING, life.StopAsked("SIGTERM"))
    for _ in range(life.LAST_TRIES - 1):
        (wait,) = m.handle(failed())
        assert isinstance(wait, life.BackOff)
        assert m.handle(life.BackoffOver()) == [life.Push("w", resume=True)]
    assert m.handle(failed()) == [life.Leave("SIGTERM")]
    assert m.handle(failed()) == [life.Exit()]


def test_stopping_while_idle_leaves_and_while_joining_ends() -> None:
    assert run(machine(), *JOINED, life.StopAsked("SIGTERM")) == [life.Leave("SIGTERM")]
    assert run(machine(), life.Started(), life.StopAsked("SIGTERM")) == [life.Exit()]
    m = machine()
    run(m, life.Started(), failed())
    assert run(m, life.StopAsked("SIGTERM")) == [life.Exit()]


def test_stopping_between_order_and_parameters_hands_it_back() -> None:
    (back,) = run(machine(), *JOINED, life.OrderArrived("w"), life.StopAsked("SIGTERM"))
    assert isinstance(back, life.Return)


def test_abandoned_work_makes_room_for_the_next() -> None:
    m = machine()
    assert run(m, *TRAINING, life.AskedToAbandon()) == [life.Pull()]
    assert m.state is State.IDLE
    assert run(machine(), *JOINED, life.AskedToAbandon()) == []


def test_the_end_of_the_run_leaves_from_anywhere() -> None:
    for where in (JOINED, TRAINING, PUSHING, (*PUSHING, failed())):
        m = machine()
        assert run(m, *where, life.RunEnded("over")) == [life.Leave("over")]
        assert run(m, life.AskedToRegister()) == []
        assert run(m, failed()) == [life.Exit()]
