"""What a node keeps between rounds of one fragment each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.fragments import Fragments
from hypergpu.common.tensors import Flat, Manifest, TensorSpec
from hypergpu.node.core.local_model import LocalModel

SIZES, STATE = (3, 3), 1
SIZE = sum(SIZES) + STATE


def made() -> LocalModel:
    specs = [TensorSpec(f"layer{index}.weight", (size,)) for index, size in enumerate(SIZES)]
    local = LocalModel(Fragments(Manifest((*specs, TensorSpec("mean", (STATE,)))), sum(SIZES), 2), SIZE)
    local.receive(np.zeros(SIZE, np.float32), (0, 1))
    return local


def change(value: float) -> Flat:
    return np.full(SIZE, value, np.float32)


def unit(local: LocalModel, number: int, value: float, *, trial: bool = False) -> Flat:
    """Do the work unit of a round, which adds `value` everywhere; return the update of the round's fragment."""
    local.begin(number, number - 1)
    return local.capture(local.end(change(value), number, trial=trial), number, number % 2, trial=trial)


def test_an_update_is_the_change_since_its_fragment_was_received() -> None:
    local = made()
    np.testing.assert_array_equal(unit(local, 1, 1.0), [1, 1, 1, 1])
    local.receive(np.full(4, 10, np.float32), (1,))  # what round 1 made of fragment 1, and of the state
    np.testing.assert_array_equal(local.base(1), [10, 10, 10, 10])
    np.testing.assert_array_equal(local.begin(2, 1), [1, 1, 1, 10, 10, 10, 10])
    # Fragment 0 was received before round 1: its change is that of two rounds. The state travels as it is.
    np.testing.assert_array_equal(unit(local, 2, 1.0), [2, 2, 2, 11])


def test_work_that_is_done_again_begins_where_it_began_before() -> None:
    local = made()
    first = unit(local, 1, 1.0)
    np.testing.assert_array_equal(unit(local, 1, 1.0), first)
    np.testing.assert_array_equal(local.begin(2, 1), change(1.0))


def test_work_that_was_given_up_leaves_nothing() -> None:
    local = made()
    local.begin(1, 0)
    np.testing.assert_array_equal(local.begin(2, 1), change(0.0))


def test_a_trial_leaves_nothing() -> None:
    local = made()
    np.testing.assert_array_equal(unit(local, 1, 5.0, trial=True), [5, 5, 5, 5])
    np.testing.assert_array_equal(local.begin(2, 1), change(0.0))


def test_everything_that_is_received_replaces_what_was_trained() -> None:
    local = made()
    unit(local, 1, 1.0)
    local.receive(change(7.0), (0, 1), 3)
    np.testing.assert_array_equal(local.begin(2, 1), change(7.0))
    assert local.fragment_versions == [3, 3]


@pytest.mark.parametrize("accepted", [True, False])
def test_what_a_codec_loses_is_added_to_the_next_update_of_the_same_fragment_if_it_was_accepted(accepted: bool) -> None:
    local, exact = made(), np.array([1.0, 0.01, 0.003, 0.0], np.float32)

    def encoded(number: int, accepted_round: int) -> Flat:
        update = local.encode(
            exact.copy(), "int4", number % 2, round_number=number, accepted_round=accepted_round, trial=False
        )
        found = np.empty(4, np.float32)
        update.form.decode(update.payload, found)
        return found

    first = encoded(1, 0)
    other = encoded(2, 1 if accepted else 0)
    np.testing.assert_array_equal(other, first)  # the other fragment has no residual yet
    third = encoded(3, 2 if accepted else 0)
    fed_back = exact[:3] + np.float32(0.95) * (exact - first)[:3] if accepted else exact[:3]
    assert abs(third[:3] - fed_back).max() <= abs(fed_back).max() / 7
    assert np.array_equal(third, first) is not accepted


# ---------------------------------------------------------------- fragments that travel beside the training


def test_what_arrives_during_a_unit_moves_the_next_one_by_what_its_merge_added() -> None:
    local = made()
    values = local.begin(1, 0)
    np.testing.assert_array_equal(local.capture(values, 1, 1), [0, 0, 0, 0])
    local.end(change(1.0), 1)
    values = local.begin(2, 1)
    local.capture(values, 2, 0)
    local.receive_later(np.full(4, 10, np.float32), (1,))  # captured at 0, merged to 10
    local.end(change(1.0), 2)
    np.testing.assert_array_equal(local.begin(3, 2), [2, 2, 2, 12, 12, 12, 2])  # 10, and the steps of two rounds


@pytest.mark.parametrize("why", ["refused", "sat out"])
def test_a_merge_without_the_nodes_own_update_replaces_its_values(why: str) -> None:
    local = made()
    values = local.begin(1, 0)
    if why == "refused":
        local.capture(values, 1, 1)
    local.end(change(1.0), 1)
    local.begin(2, 0)
    local.receive_later(np.full(4, 10, np.float32), (1,))
    local.end(change(1.0), 2)
    np.testing.assert_array_equal(local.begin(3, 2), [2, 2, 2, 10, 10, 10, 2])


def test_what_arrives_again_in_a_round_that_was_opened_again_moves_nothing() -> None:
    local = made()
    local.capture(local.begin(1, 0), 1, 1)
    local.end(change(1.0), 1)
    for _ in range(2):  # nobody's update arrived in round 2, and it is opened again
        local.capture(local.begin(2, 1), 2, 0)
        local.receive_later(np.full(4, 10, np.float32), (1,))
        local.end(change(1.0), 2)
    np.testing.assert_array_equal(local.begin(3, 2), [2, 2, 2, 12, 12, 12, 2])  # as if it had been opened once


@given(st.data())
def test_each_step_counts_once_in_what_is_merged(data: st.DataObject) -> None:
    """One node, whose updates the server adds as they are: model + steps since the last capture = the node's values."""
    local, model = made(), np.zeros(SIZE, np.float32)
    steps: list[float] = []
    sent: tuple[int, Flat] | None = None
    for number in range(1, data.draw(st.integers(3, 9))):
        fragment = number % 2
        values = local.begin(number, number - 1)
        np.testing.assert_array_equal(values[:6], [sum(steps)] * 6)
        update = local.capture(values, number, fragment)
        if sent is not None:  # what was merged in the round before arrives now
            local.receive_later(local.fragments.take(model, (sent[0],)), (sent[0],))
        steps.append(float(data.draw(st.integers(-4, 4))))
        local.end(change(steps[-1]), number)
        merged = local.fragments.take(model, (fragment,))
        merged[:3] += update[:3]
        local.fragments.put(merged, model, (fragment,))
        sent = fragment, update
        assert local.fragments.take(model, (fragment,))[0] == sum(steps[:-1]), "all steps before the capture, once"
