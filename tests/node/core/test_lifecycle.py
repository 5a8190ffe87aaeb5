import pytest

from hypergpu.common.errors import HyperGPUError, InvalidInput, NotAuthenticated, NotFound, StaleWork, Unavailable
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.node.core import events as life
from hypergpu.node.core.lifecycle import MAX_SHUTDOWN_ATTEMPTS, SHUTTING_DOWN, LifeCycle
from hypergpu.node.core.states import State


def machine() -> LifeCycle[str]:
    return LifeCycle(KeyedRandom(0, "backoff"), base=0.1, cap=5.0)


def failed(error: type[HyperGPUError] = Unavailable) -> life.Failed:
    return life.Failed(error("detail"))


def run(m: LifeCycle[str], *events: life.Event[str]) -> list[life.Effect[str]]:
    effects: list[life.Effect[str]] = []
    for event in events:
        effects = m.handle(event)
    return effects


JOINED = (life.Started(), life.Registered(), life.Prepared(announce=False))
TRAINING = (*JOINED, life.WorkAnnounced("w"), life.WorkReceived("w"))
PUSHING = (*TRAINING, life.Trained())


def test_a_round_without_trouble() -> None:
    m = machine()
    assert run(m, life.Started()) == [life.Register()]
    assert run(m, life.Registered()) == [life.Prepare()]
    assert str(m.state) == "preparing"
    assert run(m, life.Prepared(announce=False)) == [life.Pull()]
    assert str(m.state) == "idle"
    assert run(m, life.NoWork()) == [life.Pull()]
    assert run(m, life.WorkAnnounced("w")) == []
    assert str(m.state) == "pulling"
    assert run(m, life.WorkReceived("w")) == [life.Train("w")]
    assert str(m.state) == "training"
    assert run(m, life.Trained()) == [life.Push("w", 0)]
    assert str(m.state) == "pushing"
    assert run(m, life.Pushed()) == [life.Pull()]
    assert (m.state, m.work) == (State.IDLE, None)


def test_a_node_registers_again_with_what_it_knows_once_it_is_prepared() -> None:
    m = machine()
    assert run(m, life.Started(), life.Registered(), life.Prepared(announce=True)) == [life.Register()]
    assert m.state is State.JOINING
    assert not m.has_joined
    assert run(m, life.Registered()) == [life.Prepare()]
    assert run(m, life.Prepared(announce=False)) == [life.Pull()]
    assert m.has_joined


def test_a_node_that_cannot_prepare_says_why_and_exits_with_the_error() -> None:
    m, wrong_task = machine(), failed(InvalidInput)
    assert run(m, life.Started(), life.Registered(), wrong_task) == [life.Leave("InvalidInput: detail")]
    assert run(m, life.Left()) == [life.Exit(wrong_task.error)]
    m = machine()
    (wait,) = run(m, life.Started(), life.Registered(), failed(Unavailable))  # its data, perhaps, for a moment
    assert isinstance(wait, life.BackOff)
    assert run(m, life.BackoffExpired()) == [life.Register()]


def test_a_node_that_stops_while_it_prepares_leaves() -> None:
    assert run(machine(), life.Started(), life.Registered(), life.StopRequested("SIGTERM")) == [life.Leave("SIGTERM")]


def test_a_push_continues_at_the_first_byte_that_is_missing() -> None:
    m = machine()
    run(m, *PUSHING, failed(), life.BackoffExpired())
    assert run(m, life.ProgressKnown(accepted=False, next_offset=7)) == [life.Push("w", 7)]
    run(m, failed(), life.BackoffExpired())
    assert run(m, life.ProgressKnown(accepted=True, next_offset=9)) == [life.Pull()]
    assert m.work is None


def test_failures_in_a_row_are_forgotten_when_the_coordinator_has_the_update() -> None:
    m = machine()
    run(m, *PUSHING, failed(), life.BackoffExpired(), life.ProgressKnown(accepted=False, next_offset=7))
    (wait,) = run(m, failed())
    assert isinstance(wait, life.BackOff)
    assert wait.attempt == 2  # the answer in between was no success of the push
    run(m, life.BackoffExpired(), life.ProgressKnown(accepted=True, next_offset=9))
    (wait,) = run(m, failed())
    assert isinstance(wait, life.BackOff)
    assert wait.attempt == 1


def test_a_coordinator_that_stays_is_asked_again_later() -> None:
    m = machine()
    assert run(m, *JOINED, life.RunFinished("done", coordinator_stays=True)) == [life.AwaitNextRun("done")]
    assert run(m, life.NoWork()) == [life.Pull()]
    m = machine()
    run(m, *TRAINING, life.StopRequested("SIGTERM"))
    assert run(m, life.RunFinished("done", coordinator_stays=True)) == [life.Leave("done")]


def test_a_request_to_abandon_work_that_is_finished_does_not_hit_the_next() -> None:
    m = machine()
    run(m, *PUSHING, life.Pushed(), life.WorkAnnounced("next"))
    assert run(m, life.AbandonRequested("w")) == []
    assert m.work == "next"


def test_a_broken_push_is_resumed_with_the_same_work() -> None:
    m = machine()
    (wait,) = run(m, *PUSHING, failed())
    assert isinstance(wait, life.BackOff)
    assert m.state is State.BACKING_OFF
    assert run(m, life.BackoffExpired()) == [life.AskProgress("w")]


def test_waits_double_up_to_the_cap_with_full_jitter_and_start_over_after_success() -> None:
    m = machine()
    run(m, life.Started())
    waits = []
    for _ in range(40):
        (wait,) = m.handle(failed())
        assert isinstance(wait, life.BackOff)
        waits.append(wait.seconds)
        assert m.handle(life.BackoffExpired()) == [life.Register()]
    assert all(0 <= seconds <= min(5.0, 0.1 * 2**i) for i, seconds in enumerate(waits))
    assert max(waits[10:]) > 4
    assert min(waits[10:]) < 1
    run(m, life.Registered(), life.Prepared(announce=False))
    (first,) = run(m, failed())
    assert isinstance(first, life.BackOff)
    assert first.seconds <= 0.1


@pytest.mark.parametrize("where", [JOINED, TRAINING, PUSHING])
def test_asked_to_register_drops_the_work_and_registers(where: tuple[life.Event[str], ...]) -> None:
    m = machine()
    assert run(m, *where, life.RegistrationRequested()) == [life.Register()]
    assert (m.state, m.work) == (State.JOINING, None)
    assert run(m, life.RegistrationRequested()) == []


def test_work_that_cannot_be_done_is_handed_back_and_the_node_lives_on() -> None:
    m = machine()
    assert run(m, *TRAINING, failed(InvalidInput)) == [life.Return("w", "InvalidInput", "detail")]
    (wait,) = run(m, life.Returned())
    assert isinstance(wait, life.BackOff)
    assert run(m, life.BackoffExpired()) == [life.Pull()]


def test_a_lost_membership_registers_and_stale_work_pulls() -> None:
    m = machine()
    run(m, *JOINED, failed(NotFound))
    assert run(m, life.BackoffExpired()) == [life.Register()]
    m = machine()
    run(m, *PUSHING, failed(StaleWork))
    assert run(m, life.BackoffExpired()) == [life.Pull()]


def test_what_no_try_can_help_ends_with_the_reason() -> None:
    wrong_token = failed(NotAuthenticated)
    assert run(machine(), life.Started(), wrong_token) == [life.Exit(wrong_token.error)]


def test_stopping_finishes_the_work_first() -> None:
    m = machine()
    assert run(m, *TRAINING, life.StopRequested("SIGTERM")) == [life.StartGrace()]
    assert run(m, life.Trained()) == [life.Push("w", 0)]
    (wait,) = run(m, failed())
    assert isinstance(wait, life.BackOff)  # a broken push is still worth a try
    assert run(m, life.BackoffExpired()) == [life.AskProgress("w")]
    assert run(m, life.Pushed()) == [life.Leave("SIGTERM")]
    assert run(m, life.Left()) == [life.Exit()]


def test_stopping_hands_the_work_back_when_the_grace_is_over() -> None:
    m = machine()
    run(m, *TRAINING, life.StopRequested("SIGTERM"))
    (back,) = run(m, life.GraceExpired())
    assert isinstance(back, life.Return)
    assert (back.work, back.kind) == ("w", SHUTTING_DOWN)
    assert run(m, life.Returned()) == [life.Leave("SIGTERM")]


def test_stopping_gives_up_on_a_coordinator_that_is_dead() -> None:
    m = machine()
    run(m, *PUSHING, life.StopRequested("SIGTERM"))
    for _ in range(MAX_SHUTDOWN_ATTEMPTS - 1):
        (wait,) = m.handle(failed())
        assert isinstance(wait, life.BackOff)
        assert m.handle(life.BackoffExpired()) == [life.AskProgress("w")]
    assert m.handle(failed()) == [life.Leave("SIGTERM")]
    assert m.handle(failed()) == [life.Exit()]


def test_stopping_while_idle_leaves_and_while_joining_ends() -> None:
    assert run(machine(), *JOINED, life.StopRequested("SIGTERM")) == [life.Leave("SIGTERM")]
    assert run(machine(), life.Started(), life.StopRequested("SIGTERM")) == [life.Exit()]
    m = machine()
    run(m, life.Started(), failed())
    assert run(m, life.StopRequested("SIGTERM")) == [life.Exit()]


def test_stopping_between_order_and_parameters_hands_it_back() -> None:
    (back,) = run(machine(), *JOINED, life.WorkAnnounced("w"), life.StopRequested("SIGTERM"))
    assert isinstance(back, life.Return)


def test_abandoned_work_makes_room_for_the_next() -> None:
    m = machine()
    assert run(m, *TRAINING, life.AbandonRequested("w")) == [life.Pull()]
    assert m.state is State.IDLE
    assert run(machine(), *JOINED, life.AbandonRequested("w")) == []


def test_the_end_of_the_run_leaves_from_anywhere() -> None:
    for where in (JOINED, TRAINING, PUSHING, (*PUSHING, failed())):
        m = machine()
        assert run(m, *where, life.RunFinished("over")) == [life.Leave("over")]
        assert run(m, life.RegistrationRequested()) == []
        assert run(m, failed()) == [life.Exit()]
