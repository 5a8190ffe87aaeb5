"""Watchers of a run."""

import pytest

from hypergpu.common.errors import ResourceExhausted
from hypergpu.coordinator.event_broadcaster import MAX_WATCHERS, EventBroadcaster, Watcher
from hypergpu.coordinator.run_records import RunEvent


def event(number: int) -> RunEvent:
    return RunEvent(float(number), number, "round_closed", f"round {number} closed", {"round": 99, "samples": number})


def taken(watcher: Watcher) -> list[int | None]:
    return [None if (one := watcher.get_nowait()) is None else one.round for _ in range(watcher.qsize())]


def test_a_watcher_gets_the_last_events_then_what_happens_then_the_end() -> None:
    feed = EventBroadcaster()
    for number in range(5):
        feed.publish(event(number))
    early, late = feed.subscribe(0), feed.subscribe(2)
    feed.publish(event(5))
    feed.end()
    assert taken(early) == [5, None]
    assert taken(late) == [3, 4, 5, None]
    assert taken(feed.subscribe(1000)) == [0, 1, 2, 3, 4, 5, None]


def test_one_that_cannot_keep_up_is_let_go_and_holds_up_nobody() -> None:
    feed = EventBroadcaster()
    slow = feed.subscribe(0)
    for number in range(slow.maxsize + 1):
        feed.publish(event(number))
    assert taken(slow)[-1] is None
    feed.publish(event(0))
    assert slow.empty()


def test_watchers_are_limited_and_make_room_when_they_go() -> None:
    feed = EventBroadcaster()
    watchers = [feed.subscribe(0, f"10.0.0.{number % 10}") for number in range(MAX_WATCHERS)]
    with pytest.raises(ResourceExhausted, match="100 clients"):
        feed.subscribe(0)
    feed.unsubscribe(watchers[0])
    feed.subscribe(0)


def test_a_field_never_hides_a_column() -> None:
    assert event(3).row() == {
        "seconds": 3.0,
        "round": 3,
        "kind": "round_closed",
        "text": "round 3 closed",
        "samples": 3,
    }
